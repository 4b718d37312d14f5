"""Mixed precision."""

import torch

from stop_core.settings.experiment import ExperimentConfig


def autocast(config: ExperimentConfig, device: torch.device) -> torch.autocast:
    """Returns the autocast context of the model: bfloat16 with `precision` "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
