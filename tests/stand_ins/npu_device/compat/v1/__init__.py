"""The adapter's functions for graph mode."""
