"""CPU, GPU or NPU: which and why, its session, precision and optimizer, and what several processes compute
together.
"""
