"""The methods by name, each with its own options.

A method of another package registers itself (docs/your-own-method.md). This module does not import
torch: the driver reads the names before it starts a worker.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stop_core.settings.method_options import (
    AimOptions,
    DglOptions,
    LoraOptions,
    MapleOptions,
    PublishedOptions,
    SequenceOptions,
    StAdapterOptions,
    VopOptions,
)
from stop_core.settings.registry import Registry

_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Method:
    """A method: its model and its options."""

    name: str
    model: str
    """The class, as "module:Class": a `VideoModel`, imported when one is built."""
    summary: str
    """One line for the list of methods."""
    options: type[Any] = NoOptions
    """A frozen dataclass with the options that only this method has. Fields are bool, int, float,
    str or Literal of texts, and have defaults; it raises ValueError for a value out of range."""
    reads_text: bool = True
    """Whether it compares videos with texts. If not, it knows only the classes of its training."""
    trains: bool = True
    """Whether it trains weights, apart from context tokens."""
    prompts_text: bool = False
    """Whether its texts have learned tokens, so that they cannot have context tokens too."""

    def load(self) -> Any:
        """Imports and returns the class of the model."""
        module, _, name = self.model.partition(":")
        return getattr(import_module(module), name)

    def parse_options(self, words: Iterable[str]) -> Any:
        """Returns the options from words of the form `name=value`; ValueError if one is wrong."""
        hints = get_type_hints(self.options)
        values = {}
        for word in words:
            name, equals, text = word.partition("=")
            if not equals:
                raise ValueError(f"options has {word!r}; give NAME=VALUE, for example rank=4")
            if name not in hints:
                known = ", ".join(hints) or "none"
                raise ValueError(f"{name} is no option of the method {self.name}; it has {known}")
            values[name] = _parse(name, hints[name], text)
        return self.options(**values)


def option_types(methods: Iterable[Method] | None = None) -> dict[str, Any]:
    """Returns the type of every option of methods (default: all of them), by name."""
    every = METHODS.values() if methods is None else methods
    hints = (get_type_hints(method.options) for method in every)
    return {name: kind for own in hints for name, kind in own.items()}


def _check_options(method: Method, others: Iterable[Method]) -> None:
    asdict(method.options())  # raises TypeError without defaults
    own, known = option_types([method]), option_types(others)
    for name in own.keys() & known.keys():
        if own[name] != known[name]:
            raise ValueError(f"its option {name} has another type in another method; rename it")


METHODS: Registry[Method] = Registry(Method, "stop_video.methods", _check_options)
for _method in (
    Method("stop", "stop_core.model.stop:StopModel", "STOP (Liu et al., CVPR 2025)"),
    Method(
        "zero-shot",
        "stop_core.model.baselines:ZeroShot",
        "frozen CLIP, frame embeddings averaged (Radford et al., ICML 2021)",
        trains=False,
    ),
    Method(
        "clip4clip",
        "stop_core.model.tuned:Clip4Clip",
        "both towers fine-tuned, frame embeddings averaged (Luo et al., Neurocomputing 2022)",
    ),
    Method(
        "clip4clip-seqtransf",
        "stop_core.model.tuned:SequenceTransformer",
        "CLIP4Clip with a transformer over the frames (Luo et al., Neurocomputing 2022)",
        SequenceOptions,
    ),
    Method(
        "vifi-clip",
        "stop_core.model.tuned:VifiClip",
        "both towers fine-tuned (ViFi-CLIP, Rasheed et al., CVPR 2023)",
    ),
    Method(
        "lora",
        "stop_core.model.tuned:LoraClip",
        "updates of low rank in the attention (LoRA, Hu et al., ICLR 2022)",
        LoraOptions,
    ),
    Method(
        "st-adapter",
        "stop_core.model.adapters:StAdapter",
        "convolutional adapters between the blocks (Pan et al., NeurIPS 2022)",
        StAdapterOptions,
    ),
    Method(
        "aim",
        "stop_core.model.adapters:Aim",
        "adapters and attention over time in the blocks (AIM, Yang et al., ICLR 2023)",
        AimOptions,
    ),
    Method(
        "linear-probe",
        "stop_core.model.baselines:LinearProbe",
        "a linear classifier on frozen frame embeddings (Radford et al., ICML 2021)",
        reads_text=False,
    ),
    Method(
        "vpt-shallow",
        "stop_core.model.baselines:ShallowPrompts",
        "static prompts at the first block (VPT, Jia et al., ECCV 2022)",
    ),
    Method(
        "vpt-deep",
        "stop_core.model.baselines:StaticPrompts",
        "static prompts at every block (VPT, Jia et al., ECCV 2022)",
    ),
    Method(
        "maple",
        "stop_core.model.coupled:Maple",
        "coupled deep prompts in both towers (MaPLe, Khattak et al., CVPR 2023)",
        MapleOptions,
        prompts_text=True,
    ),
    Method(
        "vop",
        "stop_core.model.coupled:Vop",
        "deep prompts by frame position or context, and in texts (VoP, Huang et al., CVPR 2023)",
        VopOptions,
        prompts_text=True,
    ),
    Method(
        "dgl",
        "stop_core.model.coupled:Dgl",
        "global and frame prompts, coupled with text prompts (DGL, Yang et al., AAAI 2024)",
        DglOptions,
        prompts_text=True,
    ),
    Method(
        "stop-published",
        "stop_core.model.published:StopPublished",
        "the published code of STOP (zhoujiahuan1991/CVPR2025-STOP)",
        PublishedOptions,
        prompts_text=True,
    ),
    Method("stop-static", "stop_core.model.ablations:StaticStop", "STOP with constant prompts"),
    Method(
        "stop-temporal-vpt",
        "stop_core.model.ablations:TemporalWithStatic",
        "STOP's temporal prompts with the static ones of vpt-deep",
    ),
):
    METHODS.register(_method)


def as_words(options: Any) -> tuple[str, ...]:
    """Returns all options as `name=value`: the inverse of `Method.parse_options`."""
    return tuple(f"{name}={value}" for name, value in asdict(options).items())


def _parse(name: str, kind: Any, text: str) -> Any:
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {text!r}")
    try:
        return _TRUTH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as problem:
        raise ValueError(f"{name} must be {kind.__name__}, got {text!r}") from problem
