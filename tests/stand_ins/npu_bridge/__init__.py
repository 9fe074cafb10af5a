"""A stand-in for the Ascend adapter on a machine without one. As with that, importing npu_init, not this, changes TensorFlow."""
