"""Loading a frozen CLIP: any open_clip model, or a tiny one that ships with this package."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import open_clip
from torch import Tensor, nn

from stop_core.tiny.shipped import TINY_TOWERS
from stop_core.tiny.tower import TinyTokenizer, build_tiny_clip, vision_config
from stop_core.towers import UNFIT_ADVICE

_REMOTE = ("hf-hub:", "local-dir:")  # open_clip's prefixes for models that it does not list


@dataclass(frozen=True)
class TowerShape:
    """What can be said of a vision tower without building it."""

    image_size: int  # pixels
    patches: int  # of a frame
    blocks: int


@dataclass(frozen=True)
class FrozenClip:
    """A frozen CLIP and the tokenizer that belongs to it."""

    name: str
    model: nn.Module
    tokenize: Callable[[list[str]], Tensor]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns text embeddings [N, E], L2-normalised, on the model's device."""
        return self.encode_tokens(self.tokenize(list(texts)))

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """`encode_text` for texts that are token ids already; what is frozen gives no gradient."""
        tokens_NL = tokens_NL.to(next(self.model.parameters()).device)
        embeddings: Tensor = self.model.encode_text(tokens_NL, normalize=True)  # type: ignore[operator]
        return embeddings


def load_clip(name: str, pretrained: str | None = None) -> FrozenClip:
    """Loads the CLIP called `name` and freezes it.

    Args:
        name: "tiny", "tiny-64", or any model name that open_clip knows.
        pretrained: an open_clip tag, a local weights file, or None: random weights, except for
            the tiny ones, which then have the weights that ship with them.

    Raises:
        ValueError: if open_clip knows no such model or no such weights for it.
        OSError: if the weights cannot be read or fetched.
    """
    check_name(name, pretrained)
    if tiny := TINY_TOWERS.get(name):
        model: nn.Module = build_tiny_clip(pretrained=True, tower=tiny)
        return FrozenClip(name, model.requires_grad_(False).eval(), TinyTokenizer())
    tower_shape(name)  # refuses an unfit tower before it is built
    try:
        model = open_clip.create_model(name, pretrained=pretrained)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as problem:
        # open_clip and its hub client raise a dozen kinds; each means the same to the user.
        what = "the model" if pretrained is None else f"the weights {pretrained!r} of the model"
        raise OSError(
            f"{what} {name} could not be loaded ({type(problem).__name__}: {problem}); without a "
            "network, give the path of a weights file that you have downloaded"
        ) from problem
    return FrozenClip(name, model.requires_grad_(False).eval(), tokenize)


def tower_shape(name: str) -> TowerShape | None:
    """Returns the shape of the vision tower called `name`, from its configuration alone.

    None for a model outside of open_clip's list ("hf-hub:...", "local-dir:...").

    Raises:
        ValueError: if there is no such tower, or it is not a vision transformer.
    """
    if tiny := TINY_TOWERS.get(name):
        vision = vision_config(tiny)
    elif name.startswith(_REMOTE):
        return None
    else:
        check_name(name, None)
        vision = (open_clip.get_model_config(name) or {}).get("vision_cfg", {})
    if "timm_model_name" in vision or not isinstance(vision.get("layers"), int):
        raise ValueError(f"{name} does not have open_clip's own vision transformer; {UNFIT_ADVICE}")
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok":
        raise ValueError(f"{name} does not pool its frames with a CLS token; {UNFIT_ADVICE}")
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    if not isinstance(size, int) or not isinstance(patch, int):
        raise ValueError(f"{name} takes oblong images or patches: {size}, {patch}; {UNFIT_ADVICE}")
    return TowerShape(size, (size // patch) ** 2, int(vision["layers"]))


def weights_fingerprint(name: str, pretrained: str | None) -> str:
    """Eight hex digits that change with the bytes of local weights; empty where there are none."""
    file = tiny.weights if (tiny := TINY_TOWERS.get(name)) else Path(pretrained or "")
    if not file.is_file():
        return ""
    found = file.stat()
    return _fingerprint(file.resolve(), found.st_size, found.st_mtime_ns)


@lru_cache
def _fingerprint(file: Path, size: int, mtime_ns: int) -> str:
    """Reads a file once for the dozens of trainings of a table, unless it has changed since."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:8]


def check_name(name: str, pretrained: str | None) -> None:
    """Refuses a model or weights that open_clip does not know, before anything is fetched.

    Raises:
        ValueError: with the names that come close, or the weights that there are.
    """
    if name.startswith(_REMOTE):
        return
    if name in TINY_TOWERS and pretrained is not None:
        raise ValueError(f"the tower {name} has its own weights; leave `pretrained` empty")
    known = [*TINY_TOWERS, *open_clip.list_models()]
    if name not in known:
        lowered = {model.lower(): model for model in known}
        matches = difflib.get_close_matches(name.lower(), lowered, n=3)
        close = [lowered[match] for match in matches]
        hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
        raise ValueError(f"there is no tower called {name!r}; {hint}")
    if pretrained is None or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained.lower() not in {tag.lower() for tag in tags}:
        raise ValueError(
            f"{pretrained!r} is neither a file nor weights that open_clip has for {name}; "
            f"choose a file or one of: {', '.join(tags) or 'none for this model'}"
        )
