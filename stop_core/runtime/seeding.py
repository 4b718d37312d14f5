"""Random seeds."""

import torch


def seed_weights(seed: int) -> None:
    """Seeds torch before a model is built: alike on every process, so that all start alike."""
    torch.manual_seed(seed)
