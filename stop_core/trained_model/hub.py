"""Trained models on the Hugging Face Hub: `hf://USER/NAME`, or `hf://USER/NAME@REVISION`.

A repository has the files of a model's folder, by the same names. Only these are downloaded, into
the cache of `huggingface_hub`. It gets the checks of any model's folder when it is loaded.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub.hf_api import RepoFile

from stop_core.clip.weights import ask_hub
from stop_core.storage.documents import MOST_JSON, shown, shown_text
from stop_core.storage.paths import HUB
from stop_core.trained_model.files import CARD, FILES, PROMPTS, read_record

_T = TypeVar("_T")
_PART = r"\w[\w.-]*"
_ADDRESS = re.compile(rf"{HUB}({_PART}/{_PART})(?:@({_PART}(?:/{_PART})*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NEEDED = [name for name in FILES if name != CARD]
MOST_TENSORS = 1 << 34
"""Bytes of the trained tensors of a model that is downloaded: `clip4clip` stores whole towers."""


def hub_model(address: str, *, download: bool = True) -> tuple[str, Path]:
    """Returns the address of a model with its commit, and the folder with its files.

    The default revision is the branch main. A commit that was downloaded before needs no network;
    `download=False` accepts no other.

    Raises:
        ValueError: if it is no address, or its files are not those of a model or too large.
        OSError: if the hub does not answer, has no such model, or refuses access to it.
    """
    repository, revision = _parts(address)
    if _COMMIT.fullmatch(revision) and (folder := _cached(repository, revision)):
        return address, folder
    if not download:
        raise ValueError(
            f"the model {address} is not on this machine; if you trust it, give --checkpoint "
            f"{address}, which downloads it"
        )
    api = huggingface_hub.HfApi()
    ask = partial(api.model_info, repository, revision=revision, expand=["sha"])
    commit = str(_asked(lambda: ask_hub(lambda seconds: ask(timeout=seconds)), address).sha)
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"the hub names no commit of {address}, but {shown(commit)}")
    found = _asked(lambda: api.get_paths_info(repository, list(FILES), revision=commit), address)
    sizes = {one.path: one.size for one in found if isinstance(one, RepoFile)}
    if missing := [name for name in _NEEDED if name not in sizes]:
        raise ValueError(
            f"{address} is not a model of `stop push`: it has no {' and no '.join(missing)}"
        )
    names = [name for name in FILES if name in sizes]
    for name in names:
        most = MOST_TENSORS if name == PROMPTS else MOST_JSON
        if sizes[name] > most:
            raise ValueError(
                f"{name} of {address} is too large: {sizes[name]:,} bytes, and the limit is "
                f"{most:,}; nothing was downloaded"
            )
    download_file = partial(api.hf_hub_download, repository, revision=commit)
    for name in names:
        _asked(partial(download_file, name), address)
    downloaded = _cached(repository, commit)
    assert downloaded is not None
    return f"{HUB}{repository}@{commit}", downloaded


def push_model(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads a model's folder in one commit; returns its address with that commit.

    The repository is created if there is none. Files that are there already are not sent again.

    Raises:
        ValueError: if the name of the repository is wrong, a file of the model is damaged, or a
            private repository is wanted and the existing one is public.
        OSError: if the hub does not answer or refuses the upload.
    """
    address = f"{HUB}{repository}"
    _parts(address)
    record = read_record(folder)
    api = huggingface_hub.HfApi()
    _asked(lambda: api.create_repo(repository, private=private, exist_ok=True), address)
    if private and not _asked(lambda: api.model_info(repository).private, address):
        raise ValueError(f"{address} is public; choose another name, or leave out --private")
    names = [name for name in FILES if (folder / name).is_file()]
    files = [huggingface_hub.CommitOperationAdd(name, folder / name) for name in names]
    title = f"Model {record.provenance.run or record.config.method}"
    commit = _asked(lambda: api.create_commit(repository, files, commit_message=title), address)
    return f"{address}@{commit.oid}"


def _parts(address: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(address)
    if found is None or ".." in address:
        raise ValueError(
            f"{shown(address)} does not name a model of the Hugging Face Hub: write {HUB}USER/NAME "
            f"or {HUB}USER/NAME@REVISION"
        )
    return found[1], found[2] or "main"


def _cached(repository: str, commit: str) -> Path | None:
    """Returns the folder of a downloaded commit; None if a file is missing in it."""
    paths = [
        huggingface_hub.try_to_load_from_cache(repository, name, revision=commit)
        for name in _NEEDED
    ]
    whole = all(isinstance(path, str) for path in paths)
    return Path(str(paths[0])).parent if whole else None


def _asked(request: Callable[[], _T], address: str) -> _T:
    """Returns the answer to a request; raises OSError with one sentence if there is none."""
    try:
        return request()
    except Exception as problem:  # of the hub, of HTTP or of the disk
        raise OSError(
            f"{address} cannot be reached on the Hugging Face Hub "
            f"({shown_text(problem).rstrip('.')}); check its name, and the network; for a private "
            "repository or an upload, run `hf auth login` first"
        ) from problem
