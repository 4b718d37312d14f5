"""The simulated GPU refuses what CUDA refuses, and counts what makes the host wait."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.simulated_gpu import MixedDevicesError, simulated_gpu


def test_results_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    layer = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    F.cross_entropy(layer(x), labels).backward()
    expected = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    with simulated_gpu() as traffic:
        on_gpu = layer.to("cuda")
        F.cross_entropy(on_gpu(x.to("cuda")), labels.to("cuda")).backward()
        assert not traffic.reads
        for found, wanted in zip(on_gpu.parameters(), expected, strict=True):
            assert found.grad is not None
            assert found.grad.device.type == "cuda"
            assert torch.equal(found.grad.cpu(), wanted)


def test_a_cpu_tensor_next_to_one_of_the_gpu_is_refused() -> None:
    with simulated_gpu():
        x = torch.ones(3, device="cuda")
        assert (x * 2 + torch.tensor(1.0)).tolist() == [3, 3, 3]  # CUDA takes scalars of the CPU
        for other in (torch.ones(3), torch.ones(1)):
            with pytest.raises(MixedDevicesError, match="is on the CPU"):
                x + other
        with pytest.raises(MixedDevicesError):
            x.copy_(torch.ones(3)).add_(torch.ones(3))


def test_each_wait_of_the_host_is_counted() -> None:
    with simulated_gpu() as traffic:
        x = torch.tensor([1.0, 0.0, 2.0], device="cuda")
        for number, read in enumerate(
            (
                lambda: x.sum().item(),
                lambda: float(x[0]),
                lambda: bool(x.any()),
                lambda: x.cpu(),
                lambda: x.tolist(),
                lambda: x[x > 0],
                lambda: x.nonzero(),
                lambda: torch.empty(3).copy_(x),
            ),
            1,
        ):
            read()
            assert traffic.reads.total() == number
        traffic.clear()
        torch.ones(3).to("cuda", non_blocking=True)
        x[torch.tensor([0, 1])]
        assert (traffic.reads.total(), traffic.copies.total()) == (0, 3 - 1)


def test_nothing_is_left_behind() -> None:
    available = torch.cuda.is_available()
    with simulated_gpu():
        assert torch.cuda.is_available()
    assert torch.cuda.is_available() == available
    assert torch.ones(2).pin_memory is not None
    assert torch.zeros(2, device="meta").is_meta
    layer = nn.Linear(2, 2)
    weight = layer.weight
    assert layer.to(torch.float64).weight is weight
