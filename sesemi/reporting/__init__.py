"""The parts of a report: plots, the page, TensorBoard events. ../report.py puts them together."""
