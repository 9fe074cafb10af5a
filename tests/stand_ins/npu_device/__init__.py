"""A stand-in for the Ascend adapter for TensorFlow 2. As in the real one, only importing npu_init changes
TensorFlow."""
from npu_device import compat  # noqa: F401
