"""The resources that a training requests from the cluster."""

import time
from dataclasses import replace

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from pipelines.cluster.resources import ResourceOptions, Resources, _room, waited_for

FOUR = Resources(workers=4, gpus_per_worker=1)


def nodes(*sizes: tuple[float, float]) -> list[dict[str, float]]:
    return [{"CPU": cpus, "GPU": gpus} for cpus, gpus in sizes]


def test_training_starts_with_min_workers_if_there_is_room_for_them() -> None:
    two_gpus = nodes((16, 2))
    assert _room(FOUR, two_gpus) == 0
    assert _room(replace(FOUR, min_workers=2), two_gpus) == 1
    assert _room(replace(FOUR, min_workers=3), two_gpus) == 0


def test_a_worker_needs_room_on_one_node() -> None:
    wide = Resources(workers=1, cpus_per_worker=6)
    assert _room(wide, nodes((4, 0), (4, 0))) == 0
    assert _room(wide, nodes((4, 0), (13, 0))) == 2
    assert _room(replace(wide, workers=3), nodes((6, 0), (13, 0))) == 1
    assert _room(FOUR, nodes((1, 8), (8, 1))) == 0, "GPUs without CPUs are of no use"
    assert _room(FOUR, nodes((8, 3), (8, 5))) == 2
    assert _room(replace(FOUR, workers=2), []) == 0


def _until(waits: bool, resources: Resources) -> str:
    """Returns the line once there is one, or none; Ray reports pending requests every second."""
    while bool(line := waited_for(resources)) != waits:
        time.sleep(0.1)
    return line or ""


def test_workers_that_are_starting_are_not_waited_for(local_ray: None) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    resources = Resources(cpus_per_worker=cpus)
    first, second = (placement_group([resources.per_worker]) for _ in range(2))
    try:
        assert f"with {cpus} CPU" in _until(True, resources)
        assert waited_for(resources).endswith("; 0 CPUs of the cluster are free")
        remove_placement_group(first)
        assert second.wait(60)
        _until(False, resources)
        assert "CPU" not in ray.available_resources(), "the second has taken them"
        task = ray.remote(lambda: 0).options(num_cpus=cpus).remote()
        _until(True, resources)
        remove_placement_group(second)
        assert ray.get(task) == 0
    finally:
        for group in (first, second):
            remove_placement_group(group)


def test_shares_of_a_gpu_fill_it() -> None:
    for several in (2, 3, 6, 7, 10):
        share = Resources(gpus_per_worker=1 / several)
        assert _room(share, nodes((64, 2))) == 2 * several


def test_ray_train_gets_a_range_only_with_min_workers() -> None:
    assert replace(FOUR, min_workers=1).scaling().num_workers == (1, 4)
    assert FOUR.scaling().num_workers == replace(FOUR, min_workers=4).scaling().num_workers == 4
    assert FOUR.scaling().resources_per_worker == {"CPU": 1, "GPU": 1}
    assert Resources().scaling().resources_per_worker == {"CPU": 1}


@pytest.mark.parametrize(
    ("options", "gpus", "most_workers", "workers", "share"),
    [
        (ResourceOptions(), 0, 64, 1, 0),
        (ResourceOptions(), 8, 64, 8, 1),
        (ResourceOptions(), 8, 3, 3, 1),
        (ResourceOptions(), 8, 1, 1, 1),
        (ResourceOptions(device="cpu"), 8, 64, 1, 0),
        (ResourceOptions(gpus_per_worker=0), 8, 64, 1, 0),
        (ResourceOptions(gpus_per_worker=0.25), 8, 64, 1, 0.25),
        (ResourceOptions(workers=2), 8, 64, 2, 1),
        (ResourceOptions(workers=2), 0, 64, 2, 0),
        (ResourceOptions(min_workers=3), 1, 64, 3, 1),
        (ResourceOptions(device="gpu"), 1, 64, 1, 1),
    ],
)
def test_what_the_user_leaves_open_follows_from_the_gpus(
    options: ResourceOptions, gpus: int, most_workers: int, workers: int, share: float
) -> None:
    settled = options.on(gpus, most_workers)
    assert (settled.workers, settled.gpus_per_worker) == (workers, share)
    assert settled.device == ("gpu" if share else "cpu")
    for name in ("min_workers", "restarts", "micro_batch"):
        assert getattr(settled, name) == getattr(options, name)
    assert settled.compile == ("auto" if share else "off")
    for compile in ("on", "off"):
        assert replace(options, compile=compile).on(gpus, most_workers).compile == compile


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"workers": 2, "gpus_per_worker": 0.5}, "cannot share a GPU"),
        ({"gpus_per_worker": 8.0}, "set it to 1 and workers to 8"),
        ({"device": "cpu", "gpus_per_worker": 1.0}, "device is cpu; leave one out"),
        ({"device": "gpu", "gpus_per_worker": 0.0}, "device is gpu; leave one out"),
    ],
)
def test_devices_that_cannot_work_are_refused(values: dict[str, object], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        ResourceOptions(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("min_workers", 0),
        ("min_workers", 5),
        ("restarts", -1),
        ("cpus_per_worker", 0),
        ("gpus_per_worker", -1),
        ("micro_batch", 0),
        ("checkpoint_minutes", 0),
    ],
)
def test_number_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(FOUR, **{name: value})
