"""All settings that affect the result of a training, in one dataclass with a hash."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from stop_core.settings.class_templates import DEFAULT, check_templates, find_templates
from stop_core.settings.methods import METHODS, as_words, option_types
from stop_core.settings.protocol import ProtocolConfig
from stop_core.settings.stop import StopConfig
from stop_core.settings.training import TrainingOptions
from stop_core.storage.documents import build, shown

UNLISTED = ("hf-hub:", "local-dir:")
"""open_clip's prefixes for towers that it does not list."""
# Settings that were added later. With these values they are not part of the hash, so that earlier
# trainings are still found.
_LATER: dict[str, Any] = {
    "frames": None,
    "segment_jitter": False,
    "random_crop": False,
    "options": (),
    "global_tokens": 4,
    "choose": "learned",
}


@dataclass(frozen=True)
class ExperimentConfig:
    """A method, its tower and its training.

    Workers, devices and folders are not part of it: they must not affect the result. Raises
    ValueError if a field is out of its range.
    """

    method: Annotated[str, METHODS] = "stop"
    """STOP, a baseline, or a method of an installed package; docs/model.md describes them."""
    tower: str = "tiny"
    """Any open_clip ViT, for example ViT-B-32-quickgelu; tiny (frames of 32 pixels, 16 patches) and
    tiny-64 (64 pixels, 64 patches) are included in this package; or one of an installed package.
    Methods that need no blocks, such as zero-shot, take open_clip's other towers too."""
    pretrained: str | None = None
    """An open_clip tag such as openai, a local weights file (or TAG=FILE if the file does not name
    its training), a folder of the Hugging Face Hub, or random (default: the included weights of
    the tiny towers)."""
    epochs: int = 10
    """Passes over the training clips, or over their captions with `captions` every."""
    batch_size: int = 32
    """Clips per optimizer step, summed over all workers."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Seed of the initial weights, the draw of `shots`, the order of the clips, and dropout."""
    frames: int | None = None
    """Frames per clip: the middles of this many equal segments of the cached frames (default: all
    cached frames)."""
    templates: tuple[str, ...] = (DEFAULT,)
    """Sentences with {} for the class, several for an ensemble; or default, ensemble or another set
    of the dataset in stop_core/settings/templates.yaml; or a .yaml file with a list of them."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: run the model under bfloat16 autocast; weights, losses and selections stay fp32. auto:
    bf16 where the training runs on GPUs that have it, else fp32."""
    options: tuple[str, ...] = ()
    """Options that only this method has, as NAME=VALUE; docs/model.md lists them. In a file they
    are written like all others."""
    stop: StopConfig = field(default_factory=StopConfig)
    static_prompts: int = 8
    """Prompts per block, for the methods with vpt in their names; vpt-shallow prompts one block."""
    context_tokens: int = 0
    """Learned tokens before every text (CoOp); 0: none, and the texts are embedded once."""
    segment_jitter: bool = False
    """Train on a random frame of every segment (TSN), a different one in each epoch; for a cache
    with more than `frames` frames."""
    random_crop: bool = False
    """Train on a random square of each clip, a different one in each epoch, and evaluate the
    centre; for a cache with frames larger than the input of the tower."""
    spatial_rate: float = 0.5
    """Learning rate of the spatial prompting layers as a fraction of `learning_rate`."""
    weight_decay: float = 0.01
    """Weight decay of AdamW; `decay_biases` says on which tensors."""
    warmup_steps: int = 30
    """Steps of linear warm-up before the cosine decay to zero."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, used in evaluation; 0: none."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if twice := sorted(_own_types().keys() & option_types([METHODS[self.method]]).keys()):
            raise ValueError(
                f"the method {self.method} has the option {twice[0]}, which every method has; "
                "rename it in its package"
            )
        # All of them, so that an option at its default is the same experiment as none.
        object.__setattr__(self, "options", as_words(self.method_options))
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, got {self.precision!r}")
        _check("ema", self.ema, 0 <= self.ema < 1, "must be at least 0, below 1")
        nothing = self.stop.n_s == 0 and self.stop.eta == 0
        if nothing and self.method in ("stop", "stop-static"):
            raise ValueError(
                "n_s = 0 and eta = 0 leave no prompt to train; set one of them, or use the method "
                "zero-shot"
            )
        check_templates(self.templates)
        method = METHODS[self.method]
        if self.context_tokens > 0 and (method.prompts_text or not method.reads_text):
            why = "reads no text" if not method.reads_text else "has learned tokens in its texts"
            raise ValueError(
                f"context_tokens has no use for {self.method}, which {why}; set it to 0, or use "
                "the method zero-shot to train only context tokens"
            )
        if self.protocol.classes == "base" and not method.reads_text:
            raise ValueError(
                f"classes is base, but {self.method} reads no text, so it cannot recognise the "
                "novel classes; choose another method"
            )
        if self.frames is not None:
            _check("frames", self.frames, self.frames >= 1, "must be at least 1")
        if self.segment_jitter and self.frames is None:
            raise ValueError(
                "segment_jitter needs frames, set to fewer than the cache has: if all frames are "
                "used, there is none to choose"
            )
        for name in ("context_tokens", "epochs", "warmup_steps", "seed", "weight_decay"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "must not be negative")
        for name in ("batch_size", "static_prompts"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "must be at least 1")
        for name in ("static_prompts", "context_tokens"):
            _check(name, getattr(self, name), getattr(self, name) <= 4096, "must be at most 4096")
        for name in ("learning_rate", "spatial_rate", "clip_norm"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "must be positive")
        for name, other in (("steps", "epochs"), ("warmup", "warmup_steps")):
            chosen, usual = getattr(self.training, name), getattr(ExperimentConfig, other)
            if chosen is not None and getattr(self, other) != usual:
                raise ValueError(
                    f"{name} is {chosen} and {other} is {getattr(self, other)}, and both set the "
                    f"same length; leave one out, or set {other} to its default, {usual}"
                )

    @property
    def is_trained(self) -> bool:
        """Returns whether the method trains any weights, so that its result depends on the seed."""
        return METHODS[self.method].trains or self.context_tokens > 0

    @property
    def method_options(self) -> Any:
        """The options of the method, an object of its `Method.options`."""
        return METHODS[self.method].parse_options(self.options)

    def lengths(self, examples: int) -> tuple[int, int]:
        """Returns the steps of one epoch of `examples`, and those of the whole training."""
        epoch = math.ceil(examples / self.batch_size)
        steps = self.training.steps
        return epoch, epoch * self.epochs if steps is None else steps

    def for_dataset(self, dataset: str) -> "ExperimentConfig":
        """Returns a copy in which names of templates and of lists are replaced by their contents.

        Only then does the hash depend on the contents. Raises ValueError or OSError without any.
        """
        templates = find_templates(self.templates, dataset)
        return replace(self, templates=templates, protocol=self.protocol.with_lists())

    @property
    def hash(self) -> str:
        """Returns twelve hex digits that identify the settings, except the seed."""
        precision = "fp32" if self.precision == "auto" else self.precision  # as without a GPU
        values = asdict(replace(self, seed=0, precision=precision))
        later = dict(_LATER)
        for part, kind in PARTS.items():
            # Parts other than that of STOP were added later themselves.
            usual = _LATER if part == "stop" else asdict(kind())
            values[part] = {
                k: v for k, v in values[part].items() if k not in usual or v != usual[k]
            }
            later[part] = {}
        values = {k: v for k, v in values.items() if k not in later or v != later[k]}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def parameters(self) -> dict[str, Any]:
        """Returns all settings by name, in one mapping, with those of the parts and the method."""
        values = asdict(self)
        del values["options"]
        parts = [values.pop(name) for name in PARTS]
        inner = {name: value for part in parts for name, value in part.items()}
        return inner | values | asdict(self.method_options)

    @classmethod
    def from_names(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """Builds a config from all settings by name; ValueError or TypeError if one is wrong."""
        given, chosen = dict(values), {}
        for part, kind in PARTS.items():
            own = {one.name for one in fields(kind)} & given.keys()
            chosen[part] = kind(**{name: given.pop(name) for name in own})
        others = sorted(given.keys() - {one.name for one in fields(cls)})
        words = [f"{name}={given.pop(name)}" for name in others]
        given["options"] = (*given.get("options", ()), *words)
        return cls(**chosen, **given)

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """Builds a config from `parameters`, also read from YAML; ValueError if one is wrong."""
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"settings must be `name: value` lines, got {shown(values)}")
        if unknown := sorted(values.keys() - setting_types().keys()):
            raise ValueError(f"there is no setting called {', '.join(unknown)}")
        given = dict(values)
        for name in ("templates", "shots_list", "base_classes"):
            if isinstance(texts := given.get(name), list):
                given[name] = tuple(texts)
        try:
            config = cls.from_names(given)
        except TypeError as problem:
            raise ValueError(f"a setting has the wrong type: {problem}") from problem
        build(cls, asdict(config))  # checks the type of every field
        return config


PARTS: dict[str, type[Any]] = {
    "stop": StopConfig,
    "training": TrainingOptions,
    "protocol": ProtocolConfig,
}
"""The fields of `ExperimentConfig` that are settings themselves. By name, theirs are not nested."""


def setting_types() -> dict[str, Any]:
    """Returns the types of all settings by name: those of the parts and of all methods too."""
    return {**option_types(), **_own_types()}


@cache
def _own_types() -> dict[str, Any]:
    own = get_type_hints(ExperimentConfig)
    inner = {name: kind for part in PARTS.values() for name, kind in get_type_hints(part).items()}
    others = {name: kind for name, kind in own.items() if name not in (*PARTS, "options")}
    return {**inner, **others}


def refuse_unlisted_tower(tower: str | None, origin: str) -> None:
    """Raises ValueError for a tower from a repository or a folder, which only the user can name."""
    if tower is not None and tower.startswith(UNLISTED):
        raise ValueError(
            f"{origin} names the tower {tower}, which open_clip does not list; if you trust it, "
            f"type it yourself: --tower {tower}"
        )


def _check(name: str, value: float, holds: bool, demand: str) -> None:
    if not holds or value != value or value == float("inf"):
        raise ValueError(f"{name} {demand} and be finite, got {value}")
