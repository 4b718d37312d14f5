"""The check of a GPU that was reserved for a process."""

import pytest

from stop_core.runtime.devices import check_gpu


def test_a_reserved_gpu_that_torch_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OSError, match=r"a GPU was reserved on .* finds none.*--device cpu"):
        check_gpu()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_gpu()
