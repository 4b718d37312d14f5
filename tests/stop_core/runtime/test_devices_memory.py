"""Out-of-memory errors are recognized, and other errors are passed on."""

import gc
import weakref

import pytest
import torch

from stop_core.runtime.devices import within_memory


def _raise(problem: BaseException) -> None:
    raise problem


def test_what_fits_is_returned_and_what_does_not_is_none() -> None:
    assert within_memory(lambda: 7) == 7
    assert within_memory(lambda: _raise(torch.OutOfMemoryError("CUDA out of memory"))) is None
    assert within_memory(lambda: torch.empty(1 << 60, dtype=torch.uint8)) is None


@pytest.mark.parametrize(
    "problem",
    [RuntimeError("mat1 and mat2 do not fit"), ValueError("x"), KeyboardInterrupt(), MemoryError()],
    ids=repr,
)
def test_other_failures_are_passed_on(problem: BaseException) -> None:
    with pytest.raises(type(problem)) as raised:
        within_memory(lambda: _raise(problem))
    assert raised.value is problem


def test_tensors_are_released_after_an_out_of_memory_error() -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        large = torch.ones(10)
        seen.append(weakref.ref(large))
        raise torch.OutOfMemoryError

    assert within_memory(work) is None
    gc.collect()
    assert seen[0]() is None
