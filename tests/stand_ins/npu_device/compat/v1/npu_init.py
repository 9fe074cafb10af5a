"""The adapter's functions for TensorFlow 2 in graph mode."""
from ascend_adapter import *  # noqa: F401, F403
from ascend_adapter import tf

from npu_device.compat import enabled

assert tf.__version__ >= '2', 'npu_device is for TensorFlow 2'
assert enabled, 'npu_device.compat.enable_v1() comes first'
