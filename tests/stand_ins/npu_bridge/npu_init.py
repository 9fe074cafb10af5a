"""The adapter's functions for TensorFlow 1."""
from ascend_adapter import *  # noqa: F401, F403
from ascend_adapter import tf

assert tf.__version__ < '2', 'npu_bridge is for TensorFlow 1'
