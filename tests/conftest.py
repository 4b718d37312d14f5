"""Fixtures of several packages: video files, and a dataset in the layout of HMDB51."""

import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

if TYPE_CHECKING:
    from stop_core.storage.paths import RemotePath

WriteVideo = Callable[..., Path]
_ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Lets Ctrl-C reach tested commands, also if a shell started the tests in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # xdist can be absent or turned off
def pytest_xdist_auto_num_workers() -> int:
    """Returns the number of processes: one more than cores, as the group "clusters" waits."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Returns a scheduler that runs each group of tests in one process: see `_group`.

    Not xdist's `loadgroup`, which renames tests: pytest 9.2 ignores the new names.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the groups of Ray first, then the longest files.

    So one process mostly waits for clusters while the others compute, and none is left with a long
    file at the end. Needs `--no-loadscope-reorder`, without which xdist orders files by their
    number of tests.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    first = {"shared ray": 0, "clusters": 1}
    items.sort(key=lambda item: first.get(_group(item.nodeid), 2 if item.path in slow else 3))


def _group(nodeid: str) -> str:
    """Returns the group of a test: all tests of the shared Ray, of other clusters, or its file."""
    file, _, function = nodeid.partition("[")[0].partition("::")
    return _group_of(file, function)


@cache
def _group_of(file: str, function: str) -> str:
    # xdist distributes tests by their ids only, so the group follows from the source, in which ruff
    # leaves two empty lines between functions.
    source = (_ROOT / file).read_text(encoding="utf-8")
    parts = source.split("\n\n\n")
    own = next((part for part in parts if f"def {function}(" in part), "")
    if "local_ray" in own or "trained_here" in own:
        return "shared ray"
    return "clusters" if "mark.cluster" in own else file


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Ends the shared Ray after its last test: its idle processes would take time from others."""
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and "local_ray" not in getattr(nextitem, "fixturenames", ()):
        ray.shutdown()


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the list of known caches of this machine out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOP_CACHE_FOLDER", str(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _stores_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies the tables of the first MLflow store to the others: the migrations take a second."""
    if "mlflow" not in sys.modules:  # no test of this run imports it
        yield
        return
    from mlflow.store.db import utils

    template = tmp_path_factory.mktemp("tables") / "mlflow.db"
    create = utils._initialize_tables

    def copy(engine: Any) -> None:
        is_file = engine.url.drivername == "sqlite" and engine.url.database
        if not (is_file and template.exists()):
            create(engine)
        engine.dispose()
        if is_file and not template.exists():
            shutil.copyfile(engine.url.database, template)
        elif is_file:
            shutil.copyfile(template, engine.url.database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


@pytest.fixture(autouse=True)
def _keeps_its_scheduling() -> Iterator[None]:
    """A real-time process can block the machine: see `tests.scheduling`."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before, "this test has changed how its process is scheduled"


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Returns a function that writes a small video; its frames differ, also by seed."""
    return video_writer()


def video_writer() -> WriteVideo:
    """Returns the function of the fixture, for a script."""

    def write(
        path: Path, frames: int = 9, width: int = 64, height: int = 48, seed: int = 0
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        columns = np.arange(width)[None, :, None] + np.zeros((height, 1, 3), dtype=int)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for i in range(frames):
                picture = ((columns * (seed + 1) + 20 * i) % 256).astype(np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return write


@pytest.fixture(scope="session")
def _hmdb51(tmp_path_factory: pytest.TempPathFactory, write_video: WriteVideo) -> Path:
    root = tmp_path_factory.mktemp("hmdb51")
    splits = root / "testTrainMulti_7030_splits"
    splits.mkdir(parents=True)
    for c, name in enumerate(("ride_bike", "wave")):
        lines = []
        for i in range(8):
            file = f"film{i}_{name}_f_cm_np1_fr_med_0.avi"
            write_video(root / "hmdb51_org" / name / file, seed=8 * c + i)
            lines.append(f"{file} {1 if i < 6 else 2} \n")
        (splits / f"{name}_test_split1.txt").write_text("".join(lines))
    return root


@pytest.fixture
def hmdb51_root(tmp_path: Path, _hmdb51: Path) -> Path:
    """A dataset of two classes, 6 training and 2 test clips each, in the layout of HMDB51."""
    return shutil.copytree(_hmdb51, tmp_path / "hmdb51")


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """The address of an S3 server in this process."""
    from tests.stores import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> "RemotePath":
    """A folder in a new bucket, as `--output` would be read."""
    from tests.stores import new_bucket

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    return new_bucket(s3_address, f"test-{secrets.token_hex(8)}")
