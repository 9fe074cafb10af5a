"""The folder of a run: its lock, record, log, result, report page, plots and events."""
