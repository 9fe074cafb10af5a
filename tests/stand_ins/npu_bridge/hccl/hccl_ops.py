"""The adapter's collective operations for TensorFlow 1."""
from ascend_adapter import allreduce  # noqa: F401
