"""Modalities: kinds of samples, each with its sources, views, rendering and preprocessing."""
