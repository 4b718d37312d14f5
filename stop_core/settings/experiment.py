"""Everything that decides the outcome of a training, in one value with a hash."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from stop_core.settings.class_templates import DEFAULT, check_templates, find_templates
from stop_core.settings.stop import StopConfig
from stop_core.storage.documents import build, shown

Method = Literal[
    "stop",
    "zero-shot",
    "clip4clip",
    "linear-probe",
    "vpt-shallow",
    "vpt-deep",
    "stop-static",
    "stop-temporal-vpt",
]
METHODS: tuple[Method, ...] = get_args(Method)
UNLISTED = ("hf-hub:", "local-dir:")
"""open_clip's prefixes for towers that it does not list."""
# Settings that came later. At these values they are no part of the hash, so that what was trained
# without them is still found.
_LATER: dict[str, Any] = {"frames": None, "segment_jitter": False, "random_crop": False}


@dataclass(frozen=True)
class ExperimentConfig:
    """A method, its tower and how it is trained.

    Where it runs (workers, devices, folders) is not part of it: it must not change the result.

    Raises:
        ValueError: if a field is out of its range; the message names the field.
    """

    method: Method = "stop"
    """stop; zero-shot, linear-probe, vpt-shallow, vpt-deep and clip4clip (both towers fine-tuned)
    are baselines; stop-static is STOP with constants, stop-temporal-vpt its temporal half beside
    the prompts of vpt-deep."""
    tower: str = "tiny"
    """Any open_clip ViT, for example ViT-B-32-quickgelu; tiny (frames of 32 pixels, 16 patches) and
    tiny-64 (64 pixels, 64 patches) ship with us."""
    pretrained: str | None = None
    """An open_clip tag such as openai, a local weights file (or TAG=FILE, where the file does not
    say how it was trained), a folder of the Hugging Face Hub, or random (default: the weights that
    the tiny towers ship with)."""
    stop: StopConfig = field(default_factory=StopConfig)
    static_prompts: int = 8
    """Prompts a block of the methods with vpt in their names; vpt-shallow has one block of them."""
    templates: tuple[str, ...] = (DEFAULT,)
    """Sentences with {} for the class, several for an ensemble; or default, ensemble or another set
    of the dataset in stop_core/datasets/templates.yaml; or a .yaml file with a list of them."""
    context_tokens: int = 0
    """Learned tokens in front of every text (CoOp); 0: none, and the texts are embedded once."""
    frames: int | None = None
    """Frames of a clip that the model is shown: the middles of so many equal segments of those in
    the cache; empty: all of them."""
    segment_jitter: bool = False
    """Training shows a random frame of every segment (TSN), another in each epoch; for a cache of
    more than `frames` frames."""
    random_crop: bool = False
    """Training shows a random square of a clip, another in each epoch, evaluation the centre; for
    a cache of frames larger than the tower takes."""
    epochs: int = 10
    """Passes over the training clips."""
    batch_size: int = 32
    """Clips a step, over all workers together."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW."""
    spatial_rate: float = 0.5
    """Rate of the spatial prompting layers as a share of `learning_rate`."""
    weight_decay: float = 0.01
    """Of AdamW, on all trainable tensors."""
    warmup_steps: int = 30
    """Steps of linear warm-up, before the cosine decay to zero."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down to it."""
    ema: float = 0.0
    """Decay of a moving average of the prompts, which is then what is evaluated; 0: none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the model runs under bfloat16 autocast; weights, losses and selections stay fp32."""
    seed: int = 0
    """Of the initial weights, the order of the clips and dropout."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision!r}")
        _check("ema", self.ema, 0 <= self.ema < 1, "must be at least 0, below 1")
        nothing = self.stop.n_s == 0 and self.stop.eta == 0
        if nothing and self.method in ("stop", "stop-static"):
            raise ValueError(
                "n_s = 0 and eta = 0 leave no prompt to train; set one of them, or use the method "
                "zero-shot"
            )
        check_templates(self.templates)
        if self.method == "linear-probe" and self.context_tokens > 0:
            raise ValueError(
                "context_tokens has no use for linear-probe, which reads no text; set it to 0, or "
                "use the method zero-shot to train context tokens alone"
            )
        if self.frames is not None:
            _check("frames", self.frames, self.frames >= 1, "must be at least 1")
        if self.segment_jitter and self.frames is None:
            raise ValueError(
                "segment_jitter needs frames, fewer than the cache has: where every frame is "
                "shown there is none to choose"
            )
        for name in ("context_tokens", "epochs", "warmup_steps", "seed", "weight_decay"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "must not be negative")
        for name in ("batch_size", "static_prompts"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "must be at least 1")
        for name in ("static_prompts", "context_tokens"):
            _check(name, getattr(self, name), getattr(self, name) <= 4096, "must be at most 4096")
        for name in ("learning_rate", "spatial_rate", "clip_norm"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "must be positive")

    @property
    def is_trained(self) -> bool:
        """Whether the method has anything to train, so that its result depends on the seed."""
        return self.method != "zero-shot" or self.context_tokens > 0

    def for_dataset(self, dataset: str) -> "ExperimentConfig":
        """The same with the templates' own sentences in the place of a name for them.

        Only then does the hash tell one set of sentences from another.

        Raises:
            ValueError: if there are no templates of that name.
            OSError: if they are in a file that cannot be read.
        """
        return replace(self, templates=find_templates(self.templates, dataset))

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this configuration, whatever its seed."""
        values = asdict(replace(self, seed=0))
        values = {k: v for k, v in values.items() if k not in _LATER or v != _LATER[k]}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def parameters(self) -> dict[str, Any]:
        """All fields by their own names, those of `stop` beside the others."""
        values = asdict(self)
        return {**values.pop("stop"), **values}

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """Reads back what `parameters` gave, through YAML or JSON or not.

        Raises:
            ValueError: if a name is unknown, or a value is of the wrong kind or out of its range.
        """
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"settings are `name: value` lines, got {shown(values)}")
        inner = {one.name for one in fields(StopConfig)}
        outer = {one.name for one in fields(cls)} - {"stop"}
        if unknown := sorted(values.keys() - inner - outer):
            raise ValueError(f"there is no setting called {', '.join(unknown)}")
        stop = {name: value for name, value in values.items() if name in inner}
        others = {name: value for name, value in values.items() if name in outer}
        if isinstance(sentences := others.get("templates"), list):
            others["templates"] = tuple(sentences)
        try:
            config = cls(stop=StopConfig(**stop), **others)
        except TypeError as problem:
            raise ValueError(f"a setting is of the wrong kind: {problem}") from problem
        build(cls, asdict(config))  # the type of every field
        return config


def refuse_unlisted_tower(tower: str | None, origin: str) -> None:
    """Refuses a tower that open_clip takes from a repository or a folder, named by a file.

    Such a tower brings settings of its own and asks the network. A file may come from anyone, so
    only the user names one.

    Raises:
        ValueError: with the option to type.
    """
    if tower is not None and tower.startswith(UNLISTED):
        raise ValueError(
            f"{origin} names the tower {tower}, which open_clip does not list; if you trust it, "
            f"type it yourself: --tower {tower}"
        )


def _check(name: str, value: float, holds: bool, demand: str) -> None:
    if not holds or value != value or value == float("inf"):
        raise ValueError(f"{name} {demand} and be finite, got {value}")
