"""Helpers that are independent of samples, models and stores."""
