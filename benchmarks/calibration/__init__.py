"""Calibration of the verdict on planted models: `python -m benchmarks.calibration`."""
