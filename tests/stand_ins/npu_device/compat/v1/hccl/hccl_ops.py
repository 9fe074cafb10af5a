"""The adapter's collective operations for TensorFlow 2."""
from ascend_adapter import allreduce  # noqa: F401
