"""The modules that train_evaluate_sesemi.py, predict.py, report.py and export.py are made of."""
