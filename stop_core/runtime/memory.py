"""What to do when a device has too little memory: notice it, and try again with less."""

from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


class OutOfMemory(MemoryError):
    """Something needs more memory than the device has."""


def within_memory(work: Callable[[], _T]) -> _T | None:
    """What `work` returns; None if the memory of its device does not suffice.

    When None comes back the error is gone, and with it all that `work` had computed.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as problem:  # of the CPU's allocator, which has no type of its own
        if "DefaultCPUAllocator" in str(problem):
            return None
        raise


def free_cached() -> None:
    """Gives memory back that torch keeps for itself, in blocks that may be of no use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
