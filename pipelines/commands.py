"""The commands of `stop`, one line each. Imports nothing, so that listing them takes no time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One entry point: `stop NAME ...` is `python pipelines/FILE.py ...`."""

    name: str
    module: str
    """What runs, as a program."""
    options: str
    """The dataclass in the module whose fields are the options."""
    help: str
    """One line."""


GROUPS: dict[str, tuple[Command, ...]] = {
    "data": (
        Command(
            "preprocess",
            "pipelines.preprocess",
            "PreprocessConfig",
            "Turn a video dataset into a frame cache.",
        ),
        Command("cache", "pipelines.cache", "CacheTool", "Look at a cache, check it, export it."),
    ),
    "training": (
        Command("train", "pipelines.train", "TrainConfig", "Train STOP, or a baseline."),
        Command("sweep", "pipelines.sweep", "SweepConfig", "Search for good settings."),
        Command(
            "benchmark",
            "pipelines.benchmark",
            "BenchmarkConfig",
            "Compare methods over seeds, in a table.",
        ),
    ),
    "using a model": (
        Command(
            "predict",
            "pipelines.predict",
            "PredictConfig",
            "Tell the most probable labels of videos.",
        ),
        Command("index", "pipelines.index", "IndexConfig", "Embed videos for searching."),
        Command(
            "search",
            "pipelines.search",
            "SearchConfig",
            "Find videos by text, or texts by a video.",
        ),
        Command(
            "explain",
            "pipelines.explain",
            "ExplainConfig",
            "Draw what a trained STOP sees in a video.",
        ),
    ),
    "a trained model elsewhere": (
        Command(
            "export",
            "pipelines.export",
            "ExportConfig",
            "Make a program of a model, or one that MLflow serves.",
        ),
    ),
    "this installation": (
        Command("doctor", "pipelines.doctor", "Doctor", "Check it, and say what to do."),
        Command(
            "completion",
            "pipelines.completion",
            "Completion",
            "Print the completion of commands and options for a shell.",
        ),
    ),
}


def commands() -> dict[str, Command]:
    """All commands by name, in the order of the help."""
    return {command.name: command for group in GROUPS.values() for command in group}
