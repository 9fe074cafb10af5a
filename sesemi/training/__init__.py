"""Training steps, evaluation, metrics, checkpoints and the saved classifier."""
