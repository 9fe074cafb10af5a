"""The stand-in for the adapter's collective operations."""
