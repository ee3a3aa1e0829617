"""What is said of a finished model beyond the figures that choose epochs: calibration, classes, cost."""
