"""Starts and joins Ray, and describes the resources of a training."""
