"""The commands of `stop`, one line each. Listing them imports none of them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One entry point: `stop NAME ...` is `python pipelines/FILE.py ...`."""

    name: str
    options: str
    """The dataclass in the module whose fields are the options."""
    help: str
    """One line."""

    def load(self) -> tuple[type[Any], Callable[[Any], object]]:
        """Imports the command's module; returns its class of options and its `main`."""
        module = import_module(f"..{self.name}", __package__)
        return getattr(module, self.options), module.main


GROUPS: dict[str, tuple[Command, ...]] = {
    "data": (
        Command(
            "preprocess",
            "PreprocessConfig",
            "Turn a video dataset into a frame cache.",
        ),
        Command("cache", "CacheToolConfig", "Look at a cache, check it, export it."),
    ),
    "training": (
        Command("train", "TrainConfig", "Train STOP, or a baseline."),
        Command("sweep", "SweepConfig", "Search for good settings."),
        Command(
            "benchmark",
            "BenchmarkConfig",
            "Compare methods over seeds, in a table.",
        ),
    ),
    "using a model": (
        Command(
            "predict",
            "PredictConfig",
            "Tell the most probable labels of videos.",
        ),
        Command("index", "IndexConfig", "Embed videos for searching."),
        Command(
            "search",
            "SearchConfig",
            "Find videos by text, or texts by a video.",
        ),
        Command(
            "explain",
            "ExplainConfig",
            "Draw what a trained STOP sees in a video.",
        ),
    ),
    "a trained model elsewhere": (
        Command(
            "export",
            "ExportConfig",
            "Make a program of a model, or one that MLflow serves.",
        ),
    ),
    "this installation": (
        Command("doctor", "DoctorConfig", "Check it, and say what to do."),
        Command(
            "completion",
            "CompletionConfig",
            "Print the completion of commands and options for a shell.",
        ),
    ),
}


def commands() -> dict[str, Command]:
    """All commands by name, in the order of the help."""
    return {command.name: command for group in GROUPS.values() for command in group}
