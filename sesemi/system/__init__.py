"""Safe file writing, cores and memory, worker pools, signals, output, command-line parsing."""
