"""A stand-in for the Ascend adapter for TensorFlow 1. As in the real one, only importing npu_init changes
TensorFlow."""
