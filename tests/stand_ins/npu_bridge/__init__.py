"""A stand-in for the Ascend adapter. As with that, importing npu_init, not this, changes TensorFlow."""
