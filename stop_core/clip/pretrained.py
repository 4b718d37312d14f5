"""Resolves a tower's name and `pretrained` to a CLIP, without a network.

`pretrained` is one of

    TAG             weights that open_clip lists, with the settings that it lists for them
    FILE            a local weights file
    FOLDER          as on the Hugging Face Hub: open_clip_model.safetensors, open_clip_config.json
    TAG=FILE        a file with the settings of a tag
    gelu=FILE       a file of a model with this activation and the preprocessing of OpenAI's CLIP
    quickgelu=FILE  likewise
    random          untrained

A CLIP with another activation or preprocessing than in its training runs without an error and is
less accurate. So both are read from the weights; a file without them is refused.
"""

import difflib
import hashlib
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import get_pretrained_cfg, is_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from stop_core.clip.registry import TOWERS
from stop_core.clip.weights import hub_file, read_weights
from stop_core.settings.experiment import UNLISTED
from stop_core.storage.atomic import hash_file
from stop_core.storage.documents import parse_json, read_text, shown_text

RANDOM = "random"
OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Names of the weights in a repository of the Hugging Face Hub."""
HUB, FOLDER = UNLISTED
# Other options in a folder's configuration could name code (trust_remote_code) or another file.
_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}
_ACTIVATIONS = {"gelu": False, "quickgelu": True}
_QUICK = "-quickgelu"


@dataclass(frozen=True)
class Settings:
    """Activation and preprocessing that the weights of a CLIP were trained with."""

    quick_gelu: bool
    """QuickGELU, x * sigmoid(1.702 x), instead of GELU."""
    mean: tuple[float, ...]
    """Per channel (red, green, blue), from 0 to 1."""
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    """"shortest": the shorter side is resized, and the centre is cropped."""

    @classmethod
    def of(cls, preprocessing: dict[str, Any], quick_gelu: bool) -> "Settings":
        """Reads open_clip's preprocessing configuration; the defaults are OpenAI's."""
        values = merge_preprocess_dict(PreprocessCfg(), preprocessing)
        mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
        return cls(quick_gelu, mean, std, values["interpolation"], values["resize_mode"])


@dataclass(frozen=True)
class ClipSource:
    """A CLIP that is not built yet."""

    config: dict[str, Any]
    """open_clip's configuration of the architecture."""
    settings: Settings
    tag: str | None = None
    """Tag of weights to download, or"""
    file: Path | None = None
    """a local weights file. If both are None, the weights are random."""


def find_source(name: str, pretrained: str | None) -> ClipSource:
    """Returns the CLIP of a tower's name and `pretrained`. Only "hf-hub:" needs the network.

    Raises ValueError if there is no such tower or no such weights, if a file does not determine its
    settings, or if they need another resizing than that of the frame cache.
    """
    find = _unlisted if name.startswith((HUB, FOLDER)) else _listed
    source = find(name, pretrained)
    modes = (source.settings.interpolation, source.settings.resize_mode)
    if modes != ("bicubic", "shortest"):
        raise ValueError(
            f"the weights {pretrained or ''} of {name} were trained on images resized with "
            f"interpolation {modes[0]!r} and resize mode {modes[1]!r}, and frames are resized here "
            "with 'bicubic' and 'shortest'; choose other weights, or another tower: OpenAI's and "
            "LAION's ViTs and EVA02 were trained so, SigLIP and PE were not"
        )
    return source


def fetch(name: str, tag: str) -> Path:
    """Returns the weights file of an open_clip tag, which is downloaded at first use."""
    repository, _, file = get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")
    return hub_file(
        repository,
        *((file,) if file else WEIGHTS),
        wanted=f"the weights {tag!r} of the model {name}",
        advice=f"give --pretrained FILE, as {tag}=FILE",
    )


def model_config(name: str) -> dict[str, Any]:
    """Returns open_clip's configuration of an architecture; raises ValueError if unknown."""
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is not None:
        return config
    lowered = {model.lower(): model for model in (*TOWERS, *open_clip.list_models())}
    matches = difflib.get_close_matches(name.lower(), lowered, n=3)
    close = [lowered[match] for match in matches]
    hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
    raise ValueError(f"there is no tower called {name!r}; {hint}")


def absolute(name: str, pretrained: str | None) -> tuple[str, str | None]:
    """Returns both with absolute paths, for a process in another working directory."""
    if name.startswith(FOLDER):
        name = f"{FOLDER}{Path(name.removeprefix(FOLDER)).absolute()}"
    if pretrained is None or is_pretrained_cfg(name, pretrained):
        return name, pretrained
    stated, path = _split(pretrained)
    if path.exists():
        # Links are not resolved: in the hub's cache the names are links to files called by hash.
        pretrained = f"{stated}={path.absolute()}" if stated else str(path.absolute())
    return name, pretrained


def weights_fingerprint(name: str, pretrained: str | None) -> str:
    """Returns the part of a CLIP's identity that `name` and `pretrained` leave out; often "".

    Eight hex digits that depend on the bytes of local weights, and "quickgelu" if the tag or file
    has this activation and the name has not.
    """
    if tower := TOWERS.get(name):
        return _digest(tower.weights)[:8]
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
    added = tag and _tag_settings(name, tag).quick_gelu and not _name_settings(name).quick_gelu
    return digest[:8] + ("quickgelu" if added else "")


def _listed(name: str, pretrained: str | None) -> ClipSource:
    config = model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"the tower {name} would have random weights: give --pretrained "
            f"{tags[0] if tags else 'FILE'}, another tag of open_clip or a file, or --pretrained "
            f"{RANDOM} to train without pretrained weights"
        )
    if pretrained == RANDOM:
        return ClipSource(config, _name_settings(name))
    if is_pretrained_cfg(name, pretrained):
        return ClipSource(config, _tag_settings(name, pretrained), tag=pretrained)
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
        known = _tag_settings(name, tag)
    if stated is None:
        said = known or _only_settings(name, path)
    elif is_tag:
        said = _tag_settings(name, stated)
    else:
        said = replace(known or _name_settings(name), quick_gelu=_ACTIVATIONS[stated])
    named = _name_settings(name)
    for other, source in ((known, "the file"), (named if named.quick_gelu else None, "the tower")):
        if other is not None and other.quick_gelu != said.quick_gelu:
            kinds = ("GELU", "QuickGELU")
            raise ValueError(
                f"--tower {name} --pretrained {pretrained} says {kinds[said.quick_gelu]}, and "
                f"{source} is of a model with {kinds[other.quick_gelu]}; leave one of them out"
            )
    return ClipSource(config, said, file=path)


def _unlisted(name: str, pretrained: str | None) -> ClipSource:
    if pretrained not in (None, RANDOM):
        raise ValueError(f"the tower {name} has its own weights; leave --pretrained out")
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
    else:
        from_hub = partial(
            hub_file,
            name.removeprefix(HUB),
            wanted=f"the tower {name}",
            advice=f"give --tower {FOLDER}FOLDER; it needs {OPEN_CLIP_CONFIG} and {WEIGHTS[0]}",
        )
        folder = from_hub(OPEN_CLIP_CONFIG).parent
        if pretrained is None:
            from_hub(*WEIGHTS)
    config, settings = _read_folder(folder)
    return ClipSource(config, settings, file=None if pretrained else _weights_in(folder))


def _read_folder(folder: Path) -> tuple[dict[str, Any], Settings]:
    """Returns architecture and settings of a folder in the layout of the Hugging Face Hub."""
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
        raise ValueError(
            f"{path} is no configuration of open_clip ({shown_text(problem)}); copy it again"
        ) from problem
    if options:
        raise ValueError(
            f"{path} sets {', '.join(sorted(map(str, options)))} in tokenizer_kwargs, and only "
            f"{', '.join(sorted(_TOKENIZER_OPTIONS))} are accepted from a file; remove it if the "
            "tokenizer does not need it"
        )
    if given not in (None, size, [size, size]):
        raise ValueError(
            f"{path} prepares images of {given} pixels for a tower that takes {size}; choose "
            "another folder"
        )
    return config, settings


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise OSError(f"the folder {folder} has no weights called {' or '.join(WEIGHTS)}")


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's configuration without its activation, with the defaults filled in."""
    plain = {k: v for k, v in config.items() if k != "quick_gelu"}
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        values = asdict(kind(**plain.pop(part)))
        plain |= {f"{part}.{key}": value for key, value in values.items()}
    return plain


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
    """Splits TAG=FILE into both; the tag is None for a plain path."""
    stated, separator, rest = pretrained.partition("=")
    if separator and not Path(pretrained).exists():
        return stated, Path(rest).expanduser()
    return None, Path(pretrained).expanduser()


def _name_settings(name: str) -> Settings:
    return Settings.of({}, bool(model_config(name).get("quick_gelu")))


def _tag_settings(name: str, tag: str) -> Settings:
    # Tags state QuickGELU, but not always its absence: for roberta-ViT-B-32 only the architecture
    # states it.
    name = name.removesuffix(_QUICK)
    values = get_pretrained_cfg(name, tag)
    return Settings.of(values, values.get("quick_gelu", False) or _name_settings(name).quick_gelu)


def _tag_of(name: str, path: Path) -> str | None:
    """Returns the tag of a file whose hash is in open_clip's list of URLs."""
    name = name.removesuffix(_QUICK)
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    for tag in tags:
        *_, folder, file = ("/" + get_pretrained_cfg(name, tag)["url"]).split("/")
        # OpenAI's URLs have all 64 digits, those of open_clip's releases the first eight.
        for known in (folder, file.rpartition("-")[2].partition(".")[0]):
            if len(known) in (8, 64) and _digest(path).startswith(known):
                return tag
    return None


def _only_settings(name: str, path: Path) -> Settings:
    """Returns the settings of a plain file; raises ValueError if the tower allows several."""
    if _is_openai(path.resolve(), *_state(path)):
        return replace(_name_settings(name), quick_gelu=True)
    tags = open_clip.list_pretrained_tags_by_model(name)
    possible = {_tag_settings(name, tag) for tag in tags} or {_name_settings(name)}
    ways = [f"--pretrained {tag}={path} if the file is that of {tag}" for tag in tags[:1]]
    if name + _QUICK in open_clip.list_models():
        possible |= {replace(_name_settings(name), quick_gelu=quick) for quick in (True, False)}
        ways[:0] = [f"--tower {name}{_QUICK} for QuickGELU", f"--pretrained gelu={path} for GELU"]
    if len(possible) > 1:
        raise ValueError(
            f"the file {path} does not say how it was trained, and {name} has weights of several "
            f"kinds (activation, preprocessing): give {', or '.join(ways)}"
        )
    return possible.pop()


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    return _sha256(path.resolve(), *_state(path))


@lru_cache  # the dozens of trainings of a table read an unchanged file once
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return hash_file(path)


@lru_cache
def _is_openai(path: Path, size: int, mtime_ns: int) -> bool:
    return read_weights(path).is_openai
