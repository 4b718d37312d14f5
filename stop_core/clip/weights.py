"""Weights of a CLIP: files of the Hugging Face Hub, read without running code from them.

Formats: safetensors, a state dict saved by PyTorch, or a TorchScript archive such as OpenAI's
`.pt` files. `torch.jit.load` would run the archive's program; here only its tensors are read.
"""

import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from stop_core.storage.documents import shown_text

_T = TypeVar("_T")
_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_ROOT = re.compile(r"[^/]*/data\.pkl")
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
# More than any CLIP has (ViT-bigG: 2,000). An archive can nest a module in itself.
_MOST_MODULES = 50_000


@dataclass(frozen=True)
class Weights:
    """The tensors of a weights file, by open_clip's names."""

    path: Path
    tensors: dict[str, Tensor]
    is_openai: bool
    """Whether the file has the extra numbers of OpenAI's own files, whose models use QuickGELU."""

    def copy_into(self, model: nn.Module, name: str) -> None:
        """Copies the tensors into `model`, called `name`; raises OSError if one does not fit."""
        wanted, found = model.state_dict(), dict(self.tensors)
        # A scalar in some files, a list of one number in others.
        if {"logit_scale"} <= wanted.keys() & found.keys() and found["logit_scale"].numel() == 1:
            found["logit_scale"] = found["logit_scale"].reshape(wanted["logit_scale"].shape)
        # Text towers of transformers before 4.31 stored this constant.
        found.pop("text.transformer.embeddings.position_ids", None)
        differ = [
            f"{key} is {_shape(found.get(key))} there and {_shape(wanted.get(key))} in the tower"
            for key in sorted(wanted.keys() | found.keys())
            if _shape(found.get(key)) != _shape(wanted.get(key))
        ]
        if differ:
            others = f", and {len(differ) - 1} others differ" if differ[1:] else ""
            raise OSError(
                f"the weights {self.path} could not be loaded: they are not those of a {name} "
                f"({differ[0]}{others}); give the --tower of these weights"
            )
        model.load_state_dict(found)


def read_weights(path: Path) -> Weights:
    """Reads a weights file; raises OSError if it is damaged or contains anything but tensors."""
    try:
        state = _read(path)
    except Exception as problem:  # these readers raise a dozen types for a damaged file
        raise OSError(
            f"the weights {path} could not be loaded ({shown_text(problem)}); give a .safetensors "
            "file, a state dict saved by torch.save, or one of OpenAI's .pt files"
        ) from problem
    extras = [state.pop(name, None) for name in _EXTRAS]
    return Weights(path, state, any(extra is not None for extra in extras))


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        begins_with_json = stream.read(9)[8:] == b"{"
    entries: list[str] = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    if path.suffix == ".safetensors" or begins_with_json:
        state: Any = load_file(path)
    elif any(name.endswith("/constants.pkl") for name in entries):
        state = _read_torchscript(path)
    else:
        # Memory-mapped: the tensors are copied into a model, or only their names are read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(entries))
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise ValueError("it contains no state dict")
    if all(str(name).startswith("module.") for name in state):  # of DistributedDataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor) and name not in _EXTRAS:
            raise ValueError(f"{name!r} is a {type(value).__name__}, not a tensor")
    return dict(state)


def _read_torchscript(path: Path) -> dict[str, Any]:
    """Returns the tensors of a TorchScript archive and the numbers of its root module."""
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if _ROOT.fullmatch(name))
        with archive.open(pickled) as stream:
            root = _ArchiveUnpickler(stream, archive, pickled.removesuffix(".pkl")).load()
    found: dict[str, Any] = {name: vars(root)[name] for name in _EXTRAS if name in vars(root)}
    modules = [("", root)]
    for visited, (prefix, module) in enumerate(modules):
        if visited == _MOST_MODULES or prefix.count(".") > 20:
            raise ValueError("its modules are nested in themselves")
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                modules.append((f"{prefix}{name}.", value))
            # OpenAI's text blocks store the causal mask, a constant.
            elif isinstance(value, Tensor) and name != "attn_mask":
                found[prefix + name] = value
    return found


class _Module:
    """Placeholder for every class of an archive: attributes without code."""


# Python's unpickler: the one in C reserves memory for any memo index that a file states.
class _ArchiveUnpickler(pickle._Unpickler):
    """Reads modules as `_Module`, tensors and plain values; refuses everything else."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(
                size, stride, offset
            )
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # lists and dictionaries, never weights
            return lambda *_: None
        raise pickle.UnpicklingError(f"it contains a {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._folder}/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:  # it can expand far beyond its size
                raise pickle.UnpicklingError("it is compressed: unzip it and zip it with -0")
            if entry.file_size != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"its storage {key} does not have {count} numbers")
            content = bytearray(self._archive.read(entry))
            self._storages[key] = torch.frombuffer(content, dtype=dtype)
        return self._storages[key]


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


_TIMEOUT = 3.0  # seconds


def hub_file(repository: str, *names: str, wanted: str, advice: str) -> Path:
    """Returns the path of the first of `names` that a repository has: cached, else downloaded.

    Raises OSError if it has none of them, or the hub does not answer within a few seconds; the
    message has `wanted` (the purpose of the file) and `advice` (after a download by hand).
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    # Without a network the retries of a download take a minute and print ten lines, so a short
    # request is made first.
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    url, reason = huggingface_hub.hf_hub_url(repository, names[0]), ""
    try:
        with suppress(EntryNotFoundError):
            ask_hub(lambda seconds: huggingface_hub.get_hf_file_metadata(url, timeout=seconds))
    except Exception as problem:
        reason = shown_text(problem).rstrip(".")
    for name in () if reason else names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except EntryNotFoundError:
            reason = f"it has no {' and no '.join(names)}"
        except Exception as problem:  # of the hub, of HTTP or of the disk
            reason = f"{shown_text(problem).rstrip('.')}, for {name}"
            break
    raise OSError(
        f"{wanted} could not be loaded from the Hugging Face Hub ({reason}); download "
        f"https://huggingface.co/{repository}/resolve/main/{names[0]} elsewhere and {advice}"
    )


def ask_hub(request: Callable[[float], _T]) -> _T:
    """Returns the answer to a request, which is called with its timeout in seconds.

    Raises TimeoutError after that time: the name lookup of a request has no timeout of its own, so
    it runs in a thread. Also raises the errors of the request.
    """
    answers: Queue[_T | Exception] = Queue()

    def ask() -> None:
        try:
            answers.put(request(_TIMEOUT))
        except Exception as problem:
            answers.put(problem)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_TIMEOUT)
    except Empty:
        raise TimeoutError(f"the Hugging Face Hub does not answer within {_TIMEOUT:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
