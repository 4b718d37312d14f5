"""The training loop, objectives, losses and checkpoints."""
