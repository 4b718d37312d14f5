"""One training, from its options to its result, in this process or on Ray Train."""
