"""The commands of `stop`. Listing them imports none of them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """An entry point: `stop NAME ...` is `python pipelines/NAME.py ...`."""

    name: str
    options: str
    """The dataclass in the module whose fields are the options."""
    help: str
    """One line."""

    @property
    def has_result(self) -> bool:
        """Whether it takes --json; docs/using.md lists the fields of its document."""
        return self.name in _WITH_RESULT

    def load(self) -> tuple[type[Any], Callable[[Any], object]]:
        """Imports the command's module; returns its class of options and its `main`."""
        module = import_module(f"..{self.name}", __package__)
        return getattr(module, self.options), module.main


GROUPS: dict[str, tuple[Command, ...]] = {
    "data": (
        Command("preprocess", "PreprocessConfig", "Turn a video dataset into a frame cache."),
        Command("cache", "CacheToolConfig", "Inspect, verify, export and plot a frame cache."),
    ),
    "training": (
        Command("train", "TrainConfig", "Train STOP or a baseline."),
        Command("sweep", "SweepConfig", "Search for hyperparameters."),
        Command("evaluate", "EvaluateConfig", "Evaluate a trained model on any frame cache."),
        Command("benchmark", "BenchmarkConfig", "Compare methods over several seeds in a table."),
        Command("reproduce", "ReproduceConfig", "Run a recipe from the videos to the table."),
        Command("ui", "UiConfig", "Open the runs and tables in MLflow."),
    ),
    "inference": (
        Command("predict", "PredictConfig", "Predict the labels of videos."),
        Command("index", "IndexConfig", "Embed videos for search."),
        Command("search", "SearchConfig", "Find videos by text, or texts by video."),
        Command("explain", "ExplainConfig", "Visualize the prompts of a trained STOP on a video."),
        Command("demo", "DemoConfig", "Open a page for your clips and labels, with explanations."),
        Command("errors", "ErrorsConfig", "Show the clips that a model gets wrong, by confusion."),
        Command("export", "ExportConfig", "Export a model as torch or ONNX program, or to MLflow."),
        Command("serve", "ServeConfig", "Serve a model over HTTP, in batches on several replicas."),
        Command("push", "PushConfig", "Upload a trained model to the Hugging Face Hub."),
    ),
    "installation": (
        Command("doctor", "DoctorConfig", "Check this installation and suggest fixes."),
        Command("completion", "CompletionConfig", "Print the completion script for a shell."),
    ),
}

_WITH_RESULT = {"preprocess", "train", "sweep", "evaluate", "benchmark"}
_WITH_RESULT |= {"predict", "search", "doctor"}


def commands() -> dict[str, Command]:
    """Returns all commands by name, in the order of the help."""
    return {command.name: command for group in GROUPS.values() for command in group}
