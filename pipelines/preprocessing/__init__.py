"""From a dataset to a finished frame cache, on Ray Data."""
