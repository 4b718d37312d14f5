"""Runs a recipe from the videos to the table: check, preprocess, train, test, compare."""

if __name__ == "__main__":  # python pipelines/reproduce.py
    __import__("stop").run_file(__file__)

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from stop_core.clip.registry import TOWERS
from stop_core.datasets.list_checks import published_counts
from stop_core.datasets.registry import division
from stop_core.datasets.validation_split import FRACTION
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.storage.atomic import write_whole
from stop_core.storage.skeleton import skeleton_of

from .cli.commands import commands
from .cli.console import RunError, is_quiet, is_verbose, print_result, warn
from .cli.experiment_fields import closest
from .cli.folders import SWEEPS, default_output, named_file
from .cli.options import parse, spell_out
from .cluster.resources import ResourceOptions
from .preprocessing.make_cache import PreprocessConfig, listed_clips
from .training.estimate import PEAKS, estimate, listed_shape

RECIPES = SWEEPS / "recipes"
_TOWER = "_vit_b32"  # of a recipe that is named without a tower
# Settings of the method that CLIP without training needs too.
_EVALUATED = (
    *("tower", "pretrained", "templates", "frames", "random_crop", "precision"),
    *("classes", "base_seed", "base_classes"),
)


@dataclass(frozen=True)
class ReproduceConfig:
    """Run a recipe: check the videos, make the caches, train, test, and print the table.

    The recipe comes first: the name of a file in sweeps/recipes, such as msrvtt_vit_b16, or a
    .yaml file. Without a tower, the name is that of ViT-B/32: hmdb51 is hmdb51_vit_b32. Every
    option of the recipe can be overridden. Each step is a command that is printed before it runs;
    after an interruption, run the same command to resume. See docs/reproduce.md.

    Examples:
      stop reproduce hmdb51 --help      (with the defaults of this recipe)
      stop reproduce hmdb51 --dry-run
      stop reproduce hmdb51 --data-root data/hmdb51
      stop reproduce msrvtt_vit_b16 --data-root msrvtt --pretrained ViT-B-16.pt
    """

    recipe: Annotated[str, tyro.conf.Positional] = ""
    """Name or file of the recipe."""
    data_root: str | None = None
    """Folder of the dataset as its archives unpack; a dry run does not need it."""
    folds: tuple[int, ...] = ()
    """Numbers of the folds (default: all folds of the dataset)."""
    seeds: int = 3
    """Number of trainings per fold, with the seeds 0, 1, ..."""
    dry_run: bool = False
    """Print the settings, the commands, and the steps, time, memory and disk space that they take;
    of the commands, run only the check of the videos, if there is a --data-root."""
    allow_missing: bool = False
    """Continue although videos are missing. The result is then measured on other clips."""
    output: Path = field(default_factory=default_output)
    """Folder of caches, runs, tables and the MLflow store."""
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    resources: ResourceOptions = field(default_factory=ResourceOptions)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if self.experiment.seed:
            raise ValueError(f"seed is {self.experiment.seed}; give the number of them, --seeds")

    @staticmethod
    def default_file(arguments: Sequence[str]) -> Path | None:
        """Returns the recipe that the first argument names; None for the help about all."""
        if {"-h", "--help"} & set(arguments[:1]):
            return None
        return recipe_file(arguments[0] if arguments else "")


@dataclass(frozen=True)
class CommandLine:
    """A command of this project and its arguments."""

    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"stop {self.name} {shlex.join(self.words)}"

    def run(self) -> None:
        """Runs the command in this process."""
        options, main = commands()[self.name].load()
        main(parse(options, [*self.words, *_verbosity()]))


def main(config: ReproduceConfig) -> None:
    """Runs the steps of a recipe, or prints them."""
    plan = Plan(config)
    check_weights(config.experiment, download=not config.dry_run)  # before hours of decoding
    if config.dry_run:
        print_result("\n".join(plan.settings()))
    else:
        plan.write_table()
    for step in plan.checks:
        print_result(f"$ {step}")
        if plan.made.data_root is None:
            continue
        try:
            step.run()
        except RunError as problem:
            if not (config.allow_missing or config.dry_run):
                raise RunError(f"{problem}; add --allow-missing to leave them out") from None
            warn(f"warning: {problem}")
    for step in plan.steps:
        print_result(f"$ {step}")
        if not config.dry_run:
            step.run()
    if config.dry_run:
        print_result("\n".join(plan.costs()))


def check_weights(experiment: ExperimentConfig, *, download: bool) -> None:
    """Refuses a tower or weights that do not exist; downloads those of a tag if asked to."""
    from stop_core.clip.pretrained import fetch, find_source
    from stop_core.model.methods import check_tower

    check_tower(experiment)
    if download and experiment.tower not in TOWERS:
        tag = find_source(experiment.tower, experiment.pretrained).tag
        if tag is not None:
            fetch(experiment.tower, tag)


class Plan:
    """The steps of a recipe, its settings and its costs."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config
        self.recipe = recipe_file(config.recipe)
        self.given = parse(ReproduceConfig, [str(self.recipe), *_verbosity()]).experiment
        is_ours = self.recipe.parent == RECIPES
        make = ["--config", self.recipe.stem if is_ours else str(self.recipe)]
        make += ["--output", str(config.output)]
        if config.experiment.tower != self.given.tower:  # it may take frames of another size
            make += ["--size", str(listed_shape(config.experiment.tower).image_size)]
        made = parse(PreprocessConfig, [*make, *_verbosity()])
        self.made = replace(made, data_root=config.data_root)
        if not config.dry_run:
            self.made.data_path  # noqa: B018 - raises if it is not given
        if made.entry.generate is None:
            make += ["--data-root", config.data_root or "DATA_ROOT"]
        self.folds = config.folds or tuple(range(1, made.entry.folds + 1))
        checks, caches = [], []
        for fold in self.folds:
            words = [*make, "--fold", str(replace(made, fold=fold).fold)]  # or a ValueError
            if made.entry.generate is None:
                checks.append(CommandLine("preprocess", (*words, "--check")))
            caches.append(CommandLine("preprocess", (*words, "--cache", self._cache(fold))))
        self.table = config.output / "reproduce" / f"{self.recipe.stem}.yaml"
        published = SWEEPS / "published" / f"{self.recipe.stem}.csv"
        table = [
            *("--table", str(self.table)),
            *("--cache", ",".join(map(self._cache, self.folds))),
            *("--seeds", str(config.seeds), "--output", str(config.output)),
            *(("--published", str(published)) if published.is_file() else ()),
            *shlex.split(" ".join(spell_out(config.resources))),
        ]
        self.checks, self.steps = checks, [*caches, CommandLine("benchmark", tuple(table))]

    def write_table(self) -> None:
        """Writes the rows of the table: CLIP without training, and the method of the recipe."""
        method, usual = self.config.experiment.method, ExperimentConfig().parameters()
        settings = {
            name: value
            for name, value in self.config.experiment.parameters().items()
            if name != "seed" and (name not in usual or value != usual[name])
        }
        zero_shot = {name: settings[name] for name in _EVALUATED if name in settings}
        rows = {"zero-shot CLIP": zero_shot | {"method": "zero-shot"}}
        rows["STOP" if method == "stop" else method] = settings | {"method": method}
        self.table.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.table, yaml.safe_dump({"rows": rows}, sort_keys=False))

    def settings(self) -> Iterator[str]:
        """Yields the lines of the recipe, and the settings that were overridden."""
        yield from self.recipe.read_text(encoding="utf-8").rstrip().splitlines()
        given = self.given.parameters()
        for name, value in self.config.experiment.parameters().items():
            if value != given.get(name):
                yield f"{name}: {value}  # overridden here, was {given.get(name)}"
        yield ""

    def costs(self) -> Iterator[str]:
        """Yields the number of clips and the estimated costs, of the first fold and of all."""
        experiment, (frames, size) = self.config.experiment, self.made.shape
        clips, captions = self._count_clips()
        if not clips["train"]:
            yield "\nThe number of clips is not known before there are videos below --data-root."
            return
        micro_batch = self.config.resources.micro_batch
        one = estimate(experiment, micro_batch, frames, clips, captions)
        count = len(self.folds) * (self.config.seeds if experiment.is_trained else 1)
        disk = len(self.folds) * sum(clips.values()) * frames * size * size * 3
        known, length = self.made.data_root is not None, experiment.training
        few = not known and length.captions == "every" and length.steps is None
        subset = replace(experiment.protocol, full_training=False) != ProtocolConfig()
        bound = "at least " if few else "at most " if subset else ""
        splits = ", ".join(f"{clips[split]:,} {split}" for split in ("train", "val", "test"))
        yield f"\nclips    {splits}, {'as listed' if known else 'as published'}"
        yield f"steps    {bound}{one.steps:,} per training"
        at_once = f"{micro_batch or experiment.batch_size} clips at a time"
        yield f"memory   about {one.memory / 2**30:.1f} GiB of a GPU, {at_once}"
        yield f"disk     at most {disk / 1e9:,.1f} GB, {len(self.folds)} x {frames} frames per clip"
        for gpu in PEAKS:
            hours = one.hours(gpu)
            all_of_them = f"{count * hours:.1f} h for {count} trainings"
            yield f"time     {bound}about {hours:.1f} h on one {gpu}, {all_of_them}"
        yield "Time and memory are computed, not measured (pipelines/training/estimate.py)."

    def _cache(self, fold: int) -> str:
        frames, size = self.made.shape
        name = f"{division(self.made.dataset, fold, '-fold')}-{frames}x{size}"
        return str(self.config.output / "cache" / name)

    def _count_clips(self) -> tuple[Counter[str], int]:
        """Returns the clips of the first fold by split, and the captions of its training clips."""
        made = replace(self.made, fold=self.folds[0])
        if self.config.data_root is not None:
            with skeleton_of(made.data_path) as root:
                clips = listed_clips(made, root)[0].clips
            full = self.config.experiment.protocol.full_training
            trained = ("train", "val") if full else ("train",)
            captions = sum(len(clip.captions) for clip in clips if clip.split in trained)
            return Counter(clip.split for clip in clips), captions
        counts = Counter(published_counts(made.dataset, made.fold))
        val = counts["val"] or round(FRACTION * counts["train + val"])
        train = counts["train"] or counts["train + val"] - val
        captions = train if made.entry.task == "retrieval" else 0  # one a clip at least
        return Counter(train=train, val=val, test=counts["test"]), captions


def recipe_file(given: str) -> Path:
    """Returns the file of a recipe by its name, with or without a tower, or by its path."""
    for name in (given, f"{given}{_TOWER}"):
        file = named_file(Path(name), "recipes")
        if file.suffix == ".yaml" and file.is_file():
            return file
    if not given or given.startswith("-"):
        raise ValueError("the recipe comes first, for example: stop reproduce hmdb51 --dry-run")
    known = {path.stem.removesuffix(_TOWER) for path in RECIPES.glob("*.yaml")}
    raise ValueError(f"there is no recipe {given!r}; {closest(given, known)}")


def _verbosity() -> list[str]:
    """Returns the option that keeps the level of the messages in a command of this process."""
    return ["--quiet"] if is_quiet() else ["--verbose"] if is_verbose() else []
