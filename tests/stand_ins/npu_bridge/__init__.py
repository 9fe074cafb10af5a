"""A stand-in for the Ascend adapter on a machine without one. Importing npu_init, not this, changes TensorFlow, as with the real one."""
