"""The choice of devices, on simulated GPUs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelines.cli.console import RunError
from pipelines.cluster import devices
from pipelines.cluster.devices import choose_devices
from pipelines.cluster.resources import ResourceOptions
from stop_core.settings.experiment import ExperimentConfig

H100, T4 = ("NVIDIA H100", 9), ("Tesla T4", 7)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The name and the major compute capability of each GPU of this machine."""
    gpus: list[tuple[str, int]] = []

    def properties(number: int) -> SimpleNamespace:
        name, major = gpus[number]
        return SimpleNamespace(name=name, major=major, total_memory=(80 - major) << 30)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(gpus))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gpus))
    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    return gpus


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The resources of the nodes of a cluster."""
    nodes: list[dict[str, float]] = []
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr("pipelines.cluster.session.start_ray", lambda: None)
    monkeypatch.setattr(devices, "node_resources", lambda: nodes)
    return nodes


def test_without_a_gpu_nothing_changes(machine: list[tuple[str, int]]) -> None:
    chosen = choose_devices(ResourceOptions(), 64)
    assert chosen.resources == ResourceOptions().on(0)
    config = ExperimentConfig()
    assert chosen.settle(config) == replace(config, precision="fp32")
    assert chosen.settle(config).hash == config.hash


def test_all_gpus_are_used_in_bf16_and_the_user_reads_it(
    machine: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine += [H100] * 8
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(100))
    chosen = choose_devices(ResourceOptions(), 64)
    assert chosen.resources.cpus_per_worker == 8  # not 12: more do not read faster
    assert choose_devices(ResourceOptions(gpus_per_worker=0.5)).resources.cpus_per_worker == 4
    assert choose_devices(ResourceOptions(cpus_per_worker=3)).resources.cpus_per_worker == 3
    assert choose_devices(ResourceOptions(device="cpu")).resources.cpus_per_worker == 1
    capsys.readouterr()
    chosen = choose_devices(ResourceOptions(), 64)
    assert (chosen.resources.workers, chosen.resources.gpus_per_worker) == (8, 1)
    assert chosen.resources.gpu_bytes == 71 << 30
    assert chosen.settle(ExperimentConfig()).precision == "bf16"
    assert chosen.settle(ExperimentConfig(precision="fp32")).precision == "fp32"
    assert "8 x NVIDIA H100; precision auto is bf16" in capsys.readouterr().err
    choose_devices(ResourceOptions(workers=2), 64)
    assert "2 of 8 x NVIDIA H100" in capsys.readouterr().err


def test_one_old_gpu_means_fp32(machine: list[tuple[str, int]]) -> None:
    machine += [H100, T4]
    assert choose_devices(ResourceOptions()).settle(ExperimentConfig()).precision == "fp32"


def test_the_cpu_is_used_where_it_is_asked_for(machine: list[tuple[str, int]]) -> None:
    machine += [H100]
    for options in (ResourceOptions(device="cpu"), ResourceOptions(gpus_per_worker=0)):
        chosen = choose_devices(options, 64)
        assert chosen.resources.gpus_per_worker == 0
        assert chosen.settle(ExperimentConfig()).precision == "fp32"


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"gpus_per_worker": 1}])
def test_a_gpu_that_is_missing_is_refused(
    machine: list[tuple[str, int]], cluster: list[dict[str, float]], options: dict[str, object]
) -> None:
    with pytest.raises(RunError, match=r"the cluster has none.*stop doctor.*--device cpu"):
        choose_devices(ResourceOptions(**options))  # type: ignore[arg-type]


def test_a_driver_that_torch_cannot_use_is_reported(
    machine: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert choose_devices(ResourceOptions()).resources.gpus_per_worker == 0
    assert "there is an NVIDIA GPU, but torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("types", "precision"),
    [(["H100"], "bf16"), (["A100", "L4"], "bf16"), (["H100", "V100"], "fp32"), ([], "fp32")],
)
def test_a_cluster_is_asked_for_the_types_of_its_gpus(
    cluster: list[dict[str, float]], types: list[str], precision: str
) -> None:
    cluster += [{"CPU": 8, f"accelerator_type:{name}": 1, "GPU": 4} for name in types]
    cluster += [{"CPU": 64}, {"CPU": 8, "GPU": 2}]
    chosen = choose_devices(ResourceOptions(), 64)
    assert chosen.resources.workers == 4 * len(types) + 2
    assert chosen.resources.cpus_per_worker == (2 if types else 4)
    assert chosen.settle(ExperimentConfig()).precision == precision
