"""Which CLIP a tower's name and `pretrained` stand for, found without a network.

`pretrained` is one of

    TAG             weights that open_clip lists, with the settings that it lists for them
    FILE            a weights file on this machine
    FOLDER          as on the Hugging Face Hub: open_clip_model.safetensors, open_clip_config.json
    TAG=FILE        a file with the settings of a tag
    gelu=FILE       a file of a model with this activation, and the preprocessing of OpenAI's CLIP
    quickgelu=FILE  likewise
    random          untrained

A CLIP that runs with another activation or preprocessing than it was trained with still gives
numbers, and they are worse. So both follow the weights, and a file that leaves them open is
refused.
"""

import difflib
import hashlib
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import get_pretrained_cfg, is_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from stop_core.clip.hub import hub_file
from stop_core.clip.weights import read_weights
from stop_core.settings.experiment import UNLISTED
from stop_core.storage.documents import parse_json, read_text
from stop_core.tiny.shipped import TINY_TOWERS

RANDOM = "random"
OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Names of the weights in a repository of the Hugging Face Hub."""
HUB, FOLDER = UNLISTED
# Others of a folder's configuration could name code (trust_remote_code) or another file.
_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
_ACTIVATIONS = {"gelu": False, "quickgelu": True}
_QUICK = "-quickgelu"


@dataclass(frozen=True)
class Settings:
    """What belongs to the weights of a CLIP besides its architecture."""

    quick_gelu: bool
    """QuickGELU, x * sigmoid(1.702 x), instead of GELU."""
    mean: tuple[float, ...]
    """Of red, green and blue, from 0 to 1."""
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    """shortest: the short side is resized, and the centre is cropped."""

    @classmethod
    def of(cls, preprocessing: dict[str, Any], quick_gelu: bool) -> "Settings":
        """Reads open_clip's configuration of a preprocessing; the defaults are OpenAI's."""
        values = merge_preprocess_dict(PreprocessCfg(), preprocessing)
        mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
        return cls(quick_gelu, mean, std, values["interpolation"], values["resize_mode"])


@dataclass(frozen=True)
class ClipSource:
    """A CLIP that is not built yet."""

    config: dict[str, Any]
    """The architecture, as open_clip configures a model."""
    settings: Settings
    tag: str | None = None
    """Weights to fetch."""
    file: Path | None = None
    """Weights on this machine. Neither: random ones."""


def find_source(name: str, pretrained: str | None) -> ClipSource:
    """Returns the CLIP that a tower's name and `pretrained` stand for. Only "hf-hub:" is fetched.

    Raises:
        ValueError: if there is no such tower or no such weights, if a file leaves its settings
            open, or if the frame cache resizes pictures in another way.
        OSError: if a file cannot be read.
    """
    if name.startswith((HUB, FOLDER)):
        source = _unlisted(name, pretrained)
    else:
        source = _listed(name, pretrained)
    modes = (source.settings.interpolation, source.settings.resize_mode)
    if modes != ("bicubic", "shortest"):
        raise ValueError(
            f"the weights {pretrained or ''} of {name} were trained on pictures resized with "
            f"interpolation {modes[0]!r} and resize mode {modes[1]!r}, and frames are resized here "
            "with 'bicubic' and 'shortest'; choose other weights"
        )
    return source


def fetch(name: str, tag: str) -> Path:
    """Returns the file of weights that open_clip lists, which is downloaded at first use.

    Raises:
        OSError: if it is neither here nor to be had; the message says what to type instead.
    """
    repository, _, file = get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")
    files = (file,) if file else WEIGHTS
    try:
        return hub_file(repository, *files)
    except OSError as problem:
        raise OSError(
            f"the weights {tag!r} of the model {name} are not on this machine and could not be "
            f"loaded ({problem}); download https://huggingface.co/{repository}/resolve/main/"
            f"{files[0]} elsewhere and give --pretrained FILE, as {tag}=FILE"
        ) from problem


def model_config(name: str) -> dict[str, Any]:
    """Returns open_clip's configuration of the architecture called `name`.

    Raises:
        ValueError: if it lists none; the message has the names that come close.
    """
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is not None:
        return config
    lowered = {model.lower(): model for model in (*TINY_TOWERS, *open_clip.list_models())}
    matches = difflib.get_close_matches(name.lower(), lowered, n=3)
    close = [lowered[match] for match in matches]
    hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
    raise ValueError(f"there is no tower called {name!r}; {hint}")


def absolute(name: str, pretrained: str | None) -> tuple[str, str | None]:
    """Returns both with the paths in them made absolute, for a process in another folder."""
    if name.startswith(FOLDER):
        name = f"{FOLDER}{Path(name.removeprefix(FOLDER)).absolute()}"
    if pretrained is None or is_pretrained_cfg(name, pretrained):
        return name, pretrained
    stated, path = _split(pretrained)
    if path.exists():
        # Links stay: in the cache of the hub they have the names, and the files are called by hash.
        pretrained = f"{stated}={path.absolute()}" if stated else str(path.absolute())
    return name, pretrained


def weights_fingerprint(name: str, pretrained: str | None) -> str:
    """Returns what decides a result and is in neither `name` nor `pretrained`; often nothing.

    Eight hex digits that change with the bytes of local weights, and the activation that a tag or
    a known file brings where the name says another.
    """
    if tiny := TINY_TOWERS.get(name):
        return _digest(tiny.weights)[:8]
    tag, path = None, Path(name.removeprefix(FOLDER) if name.startswith(FOLDER) else "")
    if pretrained and is_pretrained_cfg(name, pretrained):
        tag = pretrained
    elif pretrained and not name.startswith(FOLDER):
        path = _split(pretrained)[1]
    if path == Path() or not path.exists():
        digest = ""
    elif path.is_dir():
        both = _digest(_weights_in(path)) + _digest(path / OPEN_CLIP_CONFIG)
        digest = hashlib.sha256(both.encode()).hexdigest()
    else:
        digest, tag = _digest(path), _tag_of(name, path)
    brought = tag and _of_tag(name, tag).quick_gelu and not _of_name(name).quick_gelu
    return digest[:8] + ("quickgelu" if brought else "")


def _listed(name: str, pretrained: str | None) -> ClipSource:
    config = model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"the tower {name} would have random weights: give --pretrained "
            f"{tags[0] if tags else 'FILE'}, another tag of open_clip or a file, or --pretrained "
            f"{RANDOM} if that is what you want"
        )
    if pretrained == RANDOM:
        return ClipSource(config, _of_name(name))
    if is_pretrained_cfg(name, pretrained):
        return ClipSource(config, _of_tag(name, pretrained), tag=pretrained)
    stated, path = _split(pretrained)
    is_tag = stated is not None and is_pretrained_cfg(name, stated)
    if not path.exists() or not (is_tag or stated in (None, *_ACTIVATIONS)):
        raise ValueError(
            f"{pretrained!r} is neither a file nor weights that open_clip has for {name}; "
            f"choose a file or one of: {', '.join(tags) or 'none for this model'}"
        )
    known: Settings | None = None
    if path.is_dir() or (path.name in WEIGHTS and (path.parent / OPEN_CLIP_CONFIG).is_file()):
        folder = path if path.is_dir() else path.parent
        found, known = _read_folder(folder)
        _refuse_other_architecture(name, config, found, folder)
        path = path if path.is_file() else _weights_in(folder)
    elif tag := _tag_of(name, path):
        known = _of_tag(name, tag)
    if stated is None:
        said = known or _only(name, path)
    elif is_tag:
        said = _of_tag(name, stated)
    else:
        said = replace(known or _of_name(name), quick_gelu=_ACTIVATIONS[stated])
    _refuse_contradiction(name, pretrained, said, known)
    return ClipSource(config, said, file=path)


def _unlisted(name: str, pretrained: str | None) -> ClipSource:
    if pretrained not in (None, RANDOM):
        raise ValueError(f"the tower {name} brings its own weights; leave --pretrained out")
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
    else:
        repository = name.removeprefix(HUB)
        try:
            folder = hub_file(repository, OPEN_CLIP_CONFIG).parent
            if pretrained is None:
                hub_file(repository, *WEIGHTS)
        except OSError as problem:
            raise OSError(
                f"the tower {name} is not on this machine and could not be loaded ({problem}); "
                f"download {OPEN_CLIP_CONFIG} and {WEIGHTS[0]} of "
                f"https://huggingface.co/{repository} into a folder and give --tower {FOLDER}FOLDER"
            ) from problem
    config, settings = _read_folder(folder)
    return ClipSource(config, settings, file=None if pretrained else _weights_in(folder))


def _read_folder(folder: Path) -> tuple[dict[str, Any], Settings]:
    """Returns architecture and settings of a folder as the Hugging Face Hub has them."""
    path = folder / OPEN_CLIP_CONFIG
    try:
        content = parse_json(read_text(path))
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
        size, given = config["vision_cfg"].get("image_size", 224), preprocessing.get("size")
        settings = Settings.of(preprocessing, bool(config.get("quick_gelu")))
        _architecture(config)
        options = set(config["text_cfg"].get("tokenizer_kwargs") or {}) - _TOKENIZER_OPTIONS
    except FileNotFoundError as problem:
        raise OSError(
            f"the folder {folder} has no {OPEN_CLIP_CONFIG}; give a file of weights"
        ) from problem
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise ValueError(
            f"{path} is no configuration of open_clip ({reason}); copy the folder again"
        ) from problem
    if options:
        raise ValueError(
            f"{path} sets {', '.join(sorted(map(str, options)))} in tokenizer_kwargs, and only "
            f"{', '.join(sorted(_TOKENIZER_OPTIONS))} are accepted from a file; remove it if the "
            "tokenizer does not need it"
        )
    if given not in (None, size, [size, size]):
        raise ValueError(
            f"{path} prepares pictures of {given} pixels for a tower that takes {size}; choose "
            "another folder"
        )
    return config, settings


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise OSError(f"the folder {folder} has no weights called {' or '.join(WEIGHTS)}")


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """Returns all of a model's configuration but its activation, with the defaults filled in."""
    parts = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
    plain = {
        f"{part}.{key}": value
        for part, kind in parts.items()
        for key, value in asdict(kind(**config[part])).items()
    }
    return plain | {k: v for k, v in config.items() if k not in (*parts, "quick_gelu")}


def _refuse_other_architecture(
    name: str, config: dict[str, Any], found: dict[str, Any], folder: Path
) -> None:
    wanted, there = _architecture(config), _architecture(found)
    for key in sorted(wanted.keys() | there.keys()):
        if (wanted.get(key) or None) != (there.get(key) or None):
            raise ValueError(
                f"{folder / OPEN_CLIP_CONFIG} is not of a {name}: {key} is {there.get(key)} "
                f"there and {wanted.get(key)} in the tower; give the --tower that it belongs to, "
                f"or --tower {FOLDER}{folder} and no --pretrained"
            )


def _split(pretrained: str) -> tuple[str | None, Path]:
    """Takes TAG=FILE apart. What is in front is None where the whole is a path."""
    stated, separator, rest = pretrained.partition("=")
    if separator and not Path(pretrained).exists():
        return stated, Path(rest).expanduser()
    return None, Path(pretrained).expanduser()


def _of_name(name: str) -> Settings:
    return Settings.of({}, bool(model_config(name).get("quick_gelu")))


def _of_tag(name: str, tag: str) -> Settings:
    # A tag says where QuickGELU is wanted, not where it is unwanted: roberta-ViT-B-32 says it of
    # its architecture alone.
    name = name.removesuffix(_QUICK)
    values = get_pretrained_cfg(name, tag)
    return Settings.of(values, values.get("quick_gelu", False) or _of_name(name).quick_gelu)


def _tag_of(name: str, path: Path) -> str | None:
    """Returns the tag of a file that was downloaded from where open_clip's list has its hash."""
    name = name.removesuffix(_QUICK)
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    for tag in tags:
        *_, folder, file = ("/" + get_pretrained_cfg(name, tag)["url"]).split("/")
        # OpenAI's addresses have all 64 digits, those of open_clip's releases the first eight.
        for known in (folder, file.rpartition("-")[2].partition(".")[0]):
            if len(known) in (8, 64) and _digest(path).startswith(known):
                return tag
    return None


def _only(name: str, path: Path) -> Settings:
    """Returns the settings of a file that has none with it, if only one kind is possible.

    Raises:
        ValueError: otherwise; the message has the ways to say it.
    """
    if _is_openai(path.resolve(), *_state(path)):
        return replace(_of_name(name), quick_gelu=True)
    tags = open_clip.list_pretrained_tags_by_model(name)
    possible = {_of_tag(name, tag) for tag in tags} or {_of_name(name)}
    ways = [f"--pretrained {tag}={path} if it is that of the tag {tag}" for tag in tags[:1]]
    if name + _QUICK in open_clip.list_models():
        possible |= {replace(_of_name(name), quick_gelu=quick) for quick in (True, False)}
        ways[:0] = [f"--tower {name}{_QUICK} for QuickGELU", f"--pretrained gelu={path} for GELU"]
    if len(possible) > 1:
        raise ValueError(
            f"the file {path} does not say how it was trained, and {name} has weights of several "
            f"kinds (activation, preprocessing): give {', or '.join(ways)}"
        )
    return possible.pop()


def _refuse_contradiction(
    name: str, pretrained: str, said: Settings, known: Settings | None
) -> None:
    named = _of_name(name)
    for other, what in ((known, "the file"), (named if named.quick_gelu else None, "the tower")):
        if other is not None and other.quick_gelu != said.quick_gelu:
            kinds = ("GELU", "QuickGELU")
            raise ValueError(
                f"--tower {name} --pretrained {pretrained} says {kinds[said.quick_gelu]}, and "
                f"{what} is of a model with {kinds[other.quick_gelu]}; leave one of them out"
            )


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    return _sha256(path.resolve(), *_state(path))


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Reads a file once for the dozens of trainings of a table, unless it has changed since."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache
def _is_openai(path: Path, size: int, mtime_ns: int) -> bool:
    return read_weights(path).is_openai
