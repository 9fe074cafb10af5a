"""The adapter's graph mode."""
enabled = []


def enable_v1():
    """In the real one it loads the library of the NpuOptimizer."""
    import tensorflow.compat.v1 as tf
    tf.disable_v2_behavior()
    enabled.append(True)
