"""Settings: of STOP, of an experiment, and the class templates."""
