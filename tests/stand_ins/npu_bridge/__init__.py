"""A stand-in for the Ascend adapter. As in the real one, only importing npu_init changes TensorFlow."""
