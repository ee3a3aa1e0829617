"""Trackers of experiments: TensorBoard, MLflow, W&B, CSV files, and user code."""
