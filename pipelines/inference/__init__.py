"""Many videos through a trained model."""
