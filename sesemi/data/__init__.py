"""Data sets by name, the labeled split, leaks, the cache, batches and views. No TensorFlow."""
