"""Detects that a device has too little memory, so that the caller can retry with less."""

from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


class OutOfMemory(MemoryError):
    """A computation needs more memory than the device has."""


def within_memory(work: Callable[[], _T]) -> _T | None:
    """Returns the result of `work`; None if its device runs out of memory.

    With None, the exception and all tensors that `work` had computed are freed.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as problem:  # the CPU's allocator has no exception type
        if "DefaultCPUAllocator" in str(problem):
            return None
        raise


def free_cached() -> None:
    """Frees the memory that PyTorch caches, in blocks that may not fit the next allocation."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
