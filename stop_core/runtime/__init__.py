"""Processes, memory, precision and random seeds."""
