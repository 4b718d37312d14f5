"""Pretraining of the tiny CLIPs whose weights are in `stop_core/tiny`."""
