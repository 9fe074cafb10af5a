"""The device of a run, a CPU, GPU or NPU: its choice, session, precision, optimizer; sums over processes."""
