"""The folder of a run: its lock, identity, log, result, report page, plots and events."""
