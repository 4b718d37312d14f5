"""Random seeds."""

import torch


def seed_weights(seed: int) -> None:
    """Seeds PyTorch before a model is built, so that all processes get the same weights."""
    torch.manual_seed(seed)
