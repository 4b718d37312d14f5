"""Checks of Python, its packages, torch and the GPUs, memory, privacy and disks."""

import os
import platform
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from stop_core.storage.private import is_private

from ..cli.folders import CHECKOUT
from ..cluster.devices import has_nvidia_gpu
from ..cluster.session import LONGEST_TEMP_DIR
from .finding import Finding, failure, ok, one_line, warn_if, warning

_OLDEST_PYTHON = (3, 11)
OLDEST_DRIVERS = {"12": 525, "13": 580}
"""By the major version of CUDA, on Linux."""
_GIB = 1 << 30
_LITTLE_MEMORY = 4 * _GIB
_LITTLE_DISK, _NO_DISK = 10 * _GIB, 1 * _GIB
_RAY_STOPS_SPILLING = 0.95  # Ray's local_fs_capacity_threshold
_FEW_FILES = 4096  # below this, Ray warns
_OTHER_TMPDIR = f"set TMPDIR to a larger disk, with a path of at most {LONGEST_TEMP_DIR} bytes"
_INSTALL = (
    "pip install --constraint constraints.txt --editable '.[pipelines]'"
    if CHECKOUT
    else "pip install 'stop-video[pipelines]'"
)


def check_python() -> Iterator[Finding]:
    """Checks the interpreter and the required packages."""
    from packaging.requirements import Requirement

    found = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    if sys.version_info < _OLDEST_PYTHON:
        yield failure("python", found, "install Python 3.11 or newer, and make setup with it")
    else:
        yield ok("python", found)
    try:
        wanted = [Requirement(text) for text in requires("stop-video") or ()]
    except PackageNotFoundError:
        yield warning("packages", "stop-video is not installed, only checked out", _INSTALL)
        return
    extras = [{"extra": name} for name in ("", "video", "pipelines")]
    others = [one for one in wanted if one.name != "stop-video"]
    needed = [one for one in others if not one.marker or any(map(one.marker.evaluate, extras))]
    wrong = [problem for one in needed if (problem := _unmet(one.name, str(one.specifier)))]
    if wrong:
        yield failure("packages", "; ".join(wrong), f"run {_INSTALL}")
    else:
        yield ok("packages", f"all {len(needed)} required packages are installed")


def _unmet(name: str, wanted: str) -> str:
    from packaging.specifiers import SpecifierSet

    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing"
    fits = SpecifierSet(wanted).contains(found, prereleases=True)
    return "" if fits else f"{name} is {found}, but {wanted} is required"


def check_torch() -> Iterator[Finding]:
    """Checks that torch computes, also on every GPU that it sees."""
    import torch

    cpus = len(os.sched_getaffinity(0))
    torch.ones(2, 2) @ torch.ones(2, 2)
    yield ok("torch", f"{torch.__version__}, {torch.get_num_threads()} threads on {cpus} CPUs")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _check_gpu(index)
    elif has_nvidia_gpu():
        driver = OLDEST_DRIVERS.get((torch.version.cuda or "").partition(".")[0])
        needed = f"driver {driver} or newer" if driver else "a driver for that version"
        yield failure(
            "gpu",
            f"there is an NVIDIA GPU, but torch (for CUDA {torch.version.cuda}) cannot use it",
            f"it needs {needed}, and nvidia-smi shows yours: update it, or install a torch for an "
            "older CUDA (docs/index.md, GPUs); start a container with --gpus all",
        )
    else:
        yield ok("gpu", "none: everything runs on the CPU, which is slow for a large tower")


def _check_gpu(index: int) -> Finding:
    import torch

    about, device = f"gpu {index}", torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    try:
        ones = torch.ones(256, 256, device=device)
        right = bool(((ones @ ones) == 256).all())
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as problem:
        advice = "see nvidia-smi: another process may have the GPU, or the driver needs a restart"
        if "no kernel image" in str(problem):  # older than all that the wheels are built for
            advice = "install a torch for an older CUDA (docs/index.md, GPUs), or give --device cpu"
        return failure(about, f"{properties.name}: {one_line(problem)}", advice)
    found = f"{properties.name}, {_gib(free)} of {_gib(total)} free"
    if not right:
        return failure(about, f"{found}; it multiplies wrongly", "do not use this GPU")
    advice = "another process uses it: see nvidia-smi, or wait"
    return warn_if(free < total / 2, about, found, advice)


def check_memory() -> Iterator[Finding]:
    """Checks memory, shared memory (where Ray stores objects), and the limit of open files."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _container_limit()
    total = min(memory.total, limit or memory.total)
    available = min(memory.available, total)
    found = f"{_gib(available)} of {_gib(total)} available"
    found += " (limit of this container)" if limit and limit < memory.total else ""
    advice = "close other programs: a worker takes 1 to 2 GiB and may be killed"
    yield warn_if(available < _LITTLE_MEMORY, "memory", found, advice)
    yield _check_shared_memory(total)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"run `ulimit -n {min(hard, 65536)}` first: Ray opens many files"
    yield warn_if(soft < _FEW_FILES, "open files", f"at most {soft}", advice)


def _container_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None


def _check_shared_memory(total: int) -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return ok("shared memory", "no /dev/shm on this system; Ray uses the temporary folder")
    usage = shutil.disk_usage(folder)
    found = f"{_gib(usage.free)} of {_gib(usage.total)} free in /dev/shm"
    advice = "Ray then stores objects on disk, which is slow: docker run --shm-size=4g or more"
    return warn_if(usage.free < min(2 * _GIB, 0.3 * total), "shared memory", found, advice)


def check_privacy(output: Path) -> Iterator[Finding]:
    """Checks that other users of this machine cannot read secrets or run code as this user."""
    from ..cluster.ray_token import token_file
    from ..cluster.session import ray_temp_dir

    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        found = "RAY_AUTH_MODE=disabled: every user here runs code as you"
        yield failure("ray token", found, "unset RAY_AUTH_MODE, or set it to token")
    if os.environ.get("RAY_ADDRESS") == "auto":
        found = "RAY_ADDRESS=auto takes any Ray of this machine, another user's too"
        yield warning("ray address", found, "set it to the head of your cluster, HOST:6379")
    yield _check_secret("ray token", token_file(), "run code as you")
    credentials = Path("~/.mlflow/credentials").expanduser()
    yield _check_secret("mlflow password", credentials, "use your account")
    yield _check_temporary(ray_temp_dir().parent)
    folder = output.resolve()
    if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
        advice = f"chmod o-w {folder}: others can change models and results"
        yield warning("output folder", f"everybody can write to {folder}", advice)


def _check_secret(about: str, path: Path, danger: str) -> Finding:
    if not os.path.lexists(path):
        return ok(about, f"no {path}")
    if is_private(path.lstat()):
        return ok(about, f"only you can read {path}")
    advice = f"chmod 600 {path}, and replace it if you do not trust all users"
    return failure(about, f"{path} is a link, or others can read it and {danger}", advice)


def _check_temporary(private: Path) -> Finding:
    about, parent = "private folder", private.parent
    mode = parent.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        advice = f"chmod +t {parent}, or set TMPDIR to a private folder"
        return failure(about, f"others can replace files in {parent}", advice)
    usual = private.with_name(f"stop-{os.getuid()}")
    if private != usual:
        advice = (
            f"remove {usual}, or ask its owner to: each command creates a new folder until then"
        )
        return warning(about, f"{usual} is a link, or others own it or can enter it", advice)
    return ok(about, f"only you can enter {private}, where Ray keeps sockets, logs and objects")


def check_disks(output: Path) -> Iterator[Finding]:
    """Checks free space and permissions of the folder for results, and of Ray's for spilling."""
    for about, wanted, option in (
        ("output folder", output, "choose another --output"),
        ("temporary folder", Path(tempfile.gettempdir()), _OTHER_TMPDIR),
    ):
        folder = wanted.resolve()
        while not folder.is_dir():
            folder = folder.parent
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0" * 4096)
                file.flush()
        except OSError as problem:
            reason = problem.strerror or str(problem)
            yield failure(about, f"{folder} cannot be written ({reason})", option)
            continue
        yield _check_room(about, folder, option)


def _check_room(about: str, folder: Path, option: str) -> Finding:
    usage = shutil.disk_usage(folder)
    found = f"{_gib(usage.free)} of {_gib(usage.total)} free at {folder}"
    if usage.free < _NO_DISK:
        return failure(about, found, f"make room, or {option}")
    if 1 - usage.free / usage.total > _RAY_STOPS_SPILLING:
        advice = f"over 95% full, where Ray stops spilling objects to disk: make room, or {option}"
        return warning(about, found, advice)
    advice = f"HMDB51 takes 12 GB as a cache, Kinetics-400 400 GB: make room, or {option}"
    return warn_if(usage.free < _LITTLE_DISK, about, found, advice)


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
