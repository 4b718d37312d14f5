"""The checks of `stop doctor`."""
