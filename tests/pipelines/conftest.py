"""Fixtures of the pipelines: a small frame cache, a local Ray, an MLflow store, a model."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from pipelines.cluster.resources import Resources
from pipelines.cluster.session import start_ray
from pipelines.tracking.store import open_experiment
from pipelines.training.pool import Job
from pipelines.training.result import TrainingResult
from stop_core.datasets.motion.files import write_motion_dataset
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig
from tests.caches import decoding_here, write_cache
from tests.tools import without_figures

NewStore = Callable[[Path], str]
Encode = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that the value that MLflow's set_tracking_uri puts there is undone after a test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def local_ray() -> None:
    """Starts a Ray that all tests with this fixture share; `tests/conftest.py` ends it."""
    start_ray()


@pytest.fixture
def no_figures() -> Iterator[None]:
    with without_figures():
        yield


@pytest.fixture
def trained_here(local_ray: None, no_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains the jobs of a pool in this process, as each worker imports torch and MLflow first."""
    import ray

    def train(job: Job, resources: Resources, parent: str) -> "ray.ObjectRef[TrainingResult]":
        return ray.put(job.training.train(resources, parent, job.label, in_process=True))

    monkeypatch.setattr("pipelines.training.pool._submit", train)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> NewStore:
    """Returns a function that creates an MLflow store in a file, and returns its URI.

    It copies one store, as creating a store takes seconds.
    """
    template = tmp_path_factory.mktemp("store")
    open_experiment(template, "motion")

    def new(file: Path) -> str:
        file.parent.mkdir(exist_ok=True)
        shutil.copyfile(template / "mlflow.db", file)
        return f"sqlite:///{file}"

    return new


@pytest.fixture(scope="session")
def small_motion_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training clips and 16 test clips of the motion set, as video files."""
    root = tmp_path_factory.mktemp("motion") / "videos"
    write_motion_dataset(root, train=48, test=16, seed=1)
    return root


@pytest.fixture(scope="session")
def small_cache(small_motion_set: Path) -> Path:
    """The small motion set as a cache, with some of its training clips for validation."""
    return write_cache(
        "hmdb51", small_motion_set, small_motion_set.parent / "cache", frames=6, size=32
    )


@pytest.fixture
def captioned_cache(hmdb51_root: Path, tmp_path: Path) -> Path:
    """Three clips with captions, one in each split."""
    first, second, third = sorted(hmdb51_root.glob("hmdb51_org/*/*.avi"))[:3]
    splits = {first: "train", second: "val", third: "test"}
    lines = [f"{p.relative_to(tmp_path)},{split},a {p.stem}" for p, split in splits.items()]
    (tmp_path / "clips.csv").write_text("\n".join(["path,split,caption", *lines]))
    return write_cache("csv-captions", tmp_path, tmp_path / "captions", frames=2, size=32)


@pytest.fixture(scope="session")
def small_experiment() -> ExperimentConfig:
    stop = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4)
    return ExperimentConfig(stop=stop, epochs=2, batch_size=16, warmup_steps=2)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of four frames and three classes, with prompts that have an effect."""
    import torch

    from stop_core.clip.loading import load_clip
    from stop_core.model.methods import build_method
    from stop_core.trained_model.files import ModelRecord, Provenance, label_classes
    from stop_core.trained_model.frames import Preprocessing
    from stop_core.trained_model.model import TrainedModel, tower_facts

    stop = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4)
    config = ExperimentConfig(stop=stop, templates=("a {}",))
    clip = load_clip("tiny")
    facts = tower_facts(clip)
    model = build_method(config, clip, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    record = ModelRecord(
        config,
        label_classes(("red_square", "blue_circle", "green_cross"), config.templates),
        Preprocessing(4, model.image_size, facts.mean, facts.std),
        Provenance(facts.fingerprint, run="a run"),
    )
    folder = tmp_path_factory.mktemp("models") / "model"
    TrainedModel(**vars(record), model=model).save(folder)
    return folder


@pytest.fixture
def decoded_here() -> Iterator[None]:
    """Decodes in this process, as starting a decoding process takes a second."""
    import torch

    torch.set_num_threads(1)  # small tensors gain nothing from threads
    with decoding_here():
        yield


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets torch.compile return its function; the sizes of the batches that run in it."""
    sizes: list[int] = []

    def compiled(encode: Encode) -> Encode:
        def run(frames: Tensor) -> Tensor:
            sizes.append(len(frames))
            return encode(frames)

        return run

    monkeypatch.setattr("torch.compile", compiled)
    return sizes
