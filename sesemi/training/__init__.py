"""Steps, evaluation, metrics, checkpoints, the saved classifier."""
