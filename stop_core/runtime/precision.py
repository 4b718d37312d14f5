"""Mixed precision."""

import torch

from stop_core.settings.experiment import ExperimentConfig


def autocast(config: ExperimentConfig, device: torch.device) -> torch.autocast:
    """The context in which the model runs: bfloat16 where the experiment says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
