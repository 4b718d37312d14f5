"""Devices of a process."""

import socket

import torch


def check_gpu() -> None:
    """Refuses a GPU that was reserved for this process and that torch cannot use.

    Raises:
        OSError: with the machine and the remedy.
    """
    if not torch.cuda.is_available():
        raise OSError(
            f"a GPU was reserved on {socket.gethostname()}, but PyTorch {torch.__version__} finds "
            "none there; look at nvidia-smi and the driver on that machine, or train with "
            "--device cpu"
        )
