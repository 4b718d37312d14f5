"""Hyperparameter search on Ray Tune: spaces, trials, results."""
