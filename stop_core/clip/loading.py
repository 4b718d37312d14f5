"""Loads a frozen CLIP: any of open_clip, or one of `TOWERS` with weights of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, cast

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from stop_core.clip.pretrained import (
    FOLDER,
    HUB,
    RANDOM,
    ClipSource,
    fetch,
    find_source,
    model_config,
)
from stop_core.clip.registry import TOWERS, TowerShape
from stop_core.clip.tower import UNFIT_ADVICE
from stop_core.clip.weights import hub_file, read_weights
from stop_core.storage.documents import shown_text


@dataclass(frozen=True)
class FrozenClip:
    """A frozen CLIP and its tokenizer."""

    name: str
    model: nn.Module
    tokenize: Callable[[list[str]], Tensor]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Returns text embeddings [N, E], L2-normalised, on the model's device."""
        return self.encode_tokens(self.tokenize(list(texts)))

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the embeddings [N, E] of token ids [N, L]; a frozen tower gives no gradient."""
        tokens_NL = tokens_NL.to(next(self.model.parameters()).device)
        embeddings: Tensor = self.model.encode_text(tokens_NL, normalize=True)  # type: ignore[operator]
        return embeddings


def load_clip(
    name: str,
    pretrained: str | None = None,
    accept: Callable[[str, nn.Module], None] = lambda name, model: None,
) -> FrozenClip:
    """Loads the CLIP called `name` and freezes it.

    Args:
        name: one of `TOWERS`, for example "tiny", or any model name that open_clip knows.
        pretrained: see `stop_core.clip.pretrained`; None for one of `TOWERS`.
        accept: called with the name and the model before the tokenizer is loaded; raises to refuse.

    Raises:
        ValueError: if there is no such tower or no such weights, or a weights file does not
            determine its activation and preprocessing.
        OSError: if the weights cannot be read or downloaded.
    """
    check_name(name, pretrained)
    if tower := TOWERS.get(name):
        model, tokenize = tower.load(pretrained != RANDOM)
        accept(name, model)
        return FrozenClip(name, model.requires_grad_(False).eval(), tokenize)
    source = find_source(name, pretrained)
    _shape_of(name, source.config)
    weights = fetch(name, source.tag) if source.tag else source.file
    model = _build(source)
    if weights:
        read = read_weights(weights)
        if read.is_openai and not source.settings.quick_gelu:
            raise ValueError(
                f"the weights {weights} have the format of OpenAI's, whose models use QuickGELU, "
                f"and --tower {name} --pretrained {pretrained} says GELU; give quickgelu={weights}"
            )
        read.copy_into(model, name)
    accept(name, model)
    return FrozenClip(name, model.requires_grad_(False).eval(), _tokenizer(name, source.config))


@dataclass(frozen=True)
class SharedClip(FrozenClip):
    """A frozen CLIP that caches the embeddings of each batch of texts."""

    embedded: dict[bytes, Tensor] = field(default_factory=dict)

    def encode_tokens(self, tokens_NL: Tensor) -> Tensor:
        """Returns the embeddings [N, E] of token ids [N, L], computed once."""
        tokens_NL = tokens_NL.cpu().contiguous()
        key = tokens_NL.numpy().tobytes()
        if key not in self.embedded:
            with torch.no_grad():
                self.embedded[key] = super().encode_tokens(tokens_NL)
        return self.embedded[key]


class ClipCache:
    """Loads a CLIP once and shares it with the following trainings; holds one CLIP at a time.

    A training must not depend on earlier trainings of its process. So a cache hit sets PyTorch's
    random state to that after loading, and another seed loads again, since a tower without
    pretrained weights is random. A pickled copy is empty.
    """

    def __init__(self) -> None:
        self._key: tuple[str, str | None, int] | None = None
        self._cached: tuple[SharedClip, Tensor] | None = None

    def load(self, name: str, pretrained: str | None) -> FrozenClip:
        """Returns the result of `load_clip`; its weights must not be changed."""
        key = (name, pretrained, torch.initial_seed())
        if self._cached is None or self._key != key:
            self._cached = None  # memory for two large towers is not required
            clip = load_clip(name, pretrained)
            shared = SharedClip(clip.name, clip.model, clip.tokenize)
            self._key, self._cached = key, (shared, torch.get_rng_state())
        shared, state = self._cached
        torch.set_rng_state(state)
        return shared

    def __reduce__(self) -> tuple[type["ClipCache"], tuple[()]]:
        return ClipCache, ()


def unsaid_activation(name: str, model: nn.Module) -> str:
    """Returns "quickgelu" if the model has QuickGELU and its name says GELU, else ""."""
    listed = open_clip.get_model_config(name) if name in open_clip.list_models() else {}
    has = any(isinstance(module, QuickGELU) for module in model.modules())
    return "quickgelu" if has and not listed.get("quick_gelu") else ""


def tower_shape(name: str) -> TowerShape | None:
    """Returns the shape of a listed tower, else None; ValueError if unknown or not supported."""
    if tower := TOWERS.get(name):
        return tower.shape
    return None if name.startswith((HUB, FOLDER)) else _shape_of(name, model_config(name))


def check_name(name: str, pretrained: str | None) -> None:
    """Raises, as `find_source`, for what cannot be used, before a download or decoding starts."""
    if name in TOWERS:
        if pretrained not in (None, RANDOM):
            raise ValueError(f"the tower {name} has its own weights; leave --pretrained out")
        return
    tower_shape(name)
    if not name.startswith(HUB):
        find_source(name, pretrained)


def _shape_of(name: str, config: dict[str, Any]) -> TowerShape:
    vision, text = config["vision_cfg"], config["text_cfg"]
    unfit = ""
    if vision.get("timm_model_name"):
        pools = vision.get("timm_pool") == "map"
        unfit = f"has timm's tower {vision['timm_model_name']}, not open_clip's own ViT"
        unfit += ", and pools its frames by attention without a CLS token" if pools else ""
    elif not isinstance(vision.get("layers"), int):
        unfit = "has a ResNet, not a vision transformer"
    elif vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok":
        unfit = "does not pool its frames with a CLS token"
    if "multimodal_cfg" in config:
        raise ValueError(f"{name} has a text decoder, which is not supported; {UNFIT_ADVICE}")
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    if not isinstance(size, int) or not (unfit or isinstance(patch, int)):
        raise ValueError(
            f"{name} takes images or patches that are not square: {size}, {patch}; {UNFIT_ADVICE}"
        )
    if text.keys() & {"hf_model_name", "hf_tokenizer_name"} and find_spec("transformers") is None:
        raise ValueError(
            f"{name} reads texts with the package transformers, which is not installed; run pip "
            f"install transformers, or {UNFIT_ADVICE}"
        )
    if unfit:
        return TowerShape(size, 0, 0, 0, unfit)
    return TowerShape(size, (size // patch) ** 2, int(vision["layers"]), vision.get("width", 768))


def _build(source: ClipSource) -> nn.Module:
    """Returns the model with random weights and the settings of its source."""
    # Not by open_clip's `create_model`, which reads the activation from the tower's name only.
    config = {**source.config, "quick_gelu": source.settings.quick_gelu}
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    # Otherwise the text tower downloads the language model that its training started from.
    config["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
    model: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    size = cast(Any, model.visual).image_size
    how = source.settings
    plain = PreprocessCfg(size, "RGB", how.mean, how.std, how.interpolation, how.resize_mode)
    set_model_preprocess_cfg(model, asdict(plain))
    return model


def _tokenizer(name: str, config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    text = config["text_cfg"]
    vocabulary = text.get("hf_tokenizer_name")
    tokenizer: Callable[[list[str]], Tensor]
    if vocabulary and not name.startswith(FOLDER):  # fails fast without a network
        hub_file(
            vocabulary,
            "tokenizer_config.json",
            wanted=f"the tokenizer of the tower {name}",
            advice="put it into the cache of the Hugging Face Hub, or choose another --tower",
        )
    try:
        if vocabulary:
            tokenizer = open_clip.get_tokenizer(name)
        else:
            options = text.get("tokenizer_kwargs") or {}
            length = text.get("context_length", 77)
            tokenizer = open_clip.SimpleTokenizer(context_length=length, **options)
    except Exception as problem:  # transformers and its hub raise a dozen types
        raise OSError(
            f"the tokenizer {vocabulary or ''} of the tower {name} could not be loaded "
            f"({type(problem).__name__}: {shown_text(problem)}); load it into the cache of the "
            "Hugging Face Hub, or choose another --tower"
        ) from problem
    return tokenizer
