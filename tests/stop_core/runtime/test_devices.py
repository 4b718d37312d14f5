"""The preparation of a process for the GPU that was reserved for it."""

import pytest
import torch

from stop_core.runtime.devices import autocast, use_gpu
from stop_core.settings.experiment import ExperimentConfig


def test_a_reserved_gpu_that_torch_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OSError, match=r"a GPU was reserved on .* finds none.*--device cpu"):
        use_gpu()


def test_convolutions_on_a_gpu_round_no_input_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    use_gpu()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_products_have_the_type_of_the_precision(precision: str, dtype: torch.dtype) -> None:
    config = ExperimentConfig(precision=precision)  # type: ignore[arg-type]
    with autocast(config, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
