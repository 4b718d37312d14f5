"""Devices of a process: GPUs, too little memory, mixed precision, and the seed of the weights."""

import socket
from collections.abc import Callable
from typing import TypeVar

import torch

from stop_core.settings.experiment import ExperimentConfig


def use_gpu() -> None:
    """Prepares this process for the GPU that was reserved for it; OSError if torch finds none.

    float32 is computed in full: by default, cuDNN rounds the inputs of convolutions to TF32, and
    convolutions decide which patches are selected.
    """
    if not torch.cuda.is_available():
        raise OSError(
            f"a GPU was reserved on {socket.gethostname()}, but PyTorch {torch.__version__} finds "
            "none there; look at nvidia-smi and the driver on that machine, or give --device cpu"
        )
    torch.backends.cudnn.allow_tf32 = False


_T = TypeVar("_T")


class OutOfMemory(MemoryError):
    """A computation needs more memory than the device has."""


def within_memory(work: Callable[[], _T]) -> _T | None:
    """Returns the result of `work`; None, with all its tensors freed, if memory runs out."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as problem:  # the CPU's allocator has no exception type
        if "DefaultCPUAllocator" in str(problem):
            return None
        raise


def autocast(config: ExperimentConfig, device: torch.device) -> torch.autocast:
    """Returns the autocast context of the model: bfloat16 with `precision` "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def seed_weights(seed: int) -> None:
    """Seeds PyTorch before a model is built, so that all processes get the same weights."""
    torch.manual_seed(seed)
