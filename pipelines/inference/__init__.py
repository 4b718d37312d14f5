"""Inference: many videos through a trained model."""
