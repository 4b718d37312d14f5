"""Shows the clips that a trained model gets wrong, by confusion, on one page."""

if __name__ == "__main__":  # python pipelines/errors.py
    __import__("stop").run_file(__file__)

from dataclasses import dataclass, field
from pathlib import Path

from stop_core.cache import FrameCache
from stop_core.cache.views import View
from stop_core.datasets import Split, class_words
from stop_core.storage.atomic import write_whole
from stop_core.storage.paths import RemotePath, StoragePath, local_file

from .cli.console import RunError, print_result
from .cli.folders import default_output
from .cli.options import OutputFolder, at_least_one
from .inference.model_choice import ModelChoice
from .preprocessing.find_cache import find_cache
from .training.result import TrainingResult
from .training.task import PREDICTIONS


@dataclass(frozen=True)
class ErrorsConfig:
    """Show the clips that a trained model gets wrong, as a page of HTML.

    The errors are grouped by true and predicted class. Every clip is shown with its probabilities
    and, for STOP, the patches and gaps that get prompts. The page is logged with the run in MLflow.

    Examples:
      stop errors --checkpoint outputs/runs/NAME
      stop errors --checkpoint NAME --cache outputs/cache/hmdb51 --split val
    """

    checkpoint: OutputFolder
    """Folder of a finished training: outputs/runs/NAME. Or the beginning of NAME, as for `stop
    predict`."""
    cache: str | None = None
    """The cache of the training: a folder, or an s3:// or gs:// URI (default: the embedded set)."""
    split: Split = "test"
    """Split whose errors are shown."""
    confusions: int = 12
    """Largest number of pairs of classes with pictures; those with most errors are first."""
    clips: int = 6
    """Largest number of clips of each."""
    tower: str | None = None
    """The model's tower, which is needed only for hf-hub:REPOSITORY and local-dir:FOLDER."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        at_least_one(confusions=self.confusions, clips=self.clips)


def main(config: ErrorsConfig) -> StoragePath:
    """Writes the page into the folder of the training, and returns its path."""
    import pandas as pd

    from stop_core.explain.errors import confusions, draw_confusion, errors_page

    from .tracking.queued_run import QueuedRun, deliver_at_end
    from .tracking.store import tracking_uri

    choice = ModelChoice(config.checkpoint, tower=config.tower).found(config.output)
    folder = choice.checkpoint
    assert isinstance(folder, Path | RemotePath)  # the type of the option
    result = TrainingResult.load(folder)
    if result is None:
        raise RunError(
            f"{folder} has no finished training, whose stored predictions are needed; give the "
            "folder that `stop train` printed"
        )
    cache = FrameCache(find_cache(config.cache, config.output))
    if cache.manifest.data_hash != result.data_hash:
        raise RunError(
            f"the training {result.name} was tested on other data (hash {result.data_hash}) than "
            f"the cache has ({cache.manifest.data_hash}); give the cache of the training with "
            "--cache"
        )
    if cache.manifest.task == "retrieval":
        raise RunError(f"{result.dataset} has captions and no classes that could be confused")
    with local_file(folder / PREDICTIONS) as file:
        rows = pd.read_parquet(file)
    rows = rows[rows["split"] == config.split]
    if rows.empty:
        raise RunError(
            f"the training {result.name} stored no predictions of its {config.split} split"
        )
    cache.verify({config.split})
    trained, clips = choice.load(), cache.split(config.split)
    found = confusions(rows, [class_words(name) for name in cache.manifest.class_names])
    view = View(trained.preprocessing.frames, trained.preprocessing.size)
    sheets = [
        draw_confusion(one, trained.model, trained.config, clips, view, config.clips)
        for one in found[: config.confusions]
    ]
    title = (
        f"Errors of {result.method} on {result.dataset}, seed {result.seed}, {config.split} split"
    )
    page = folder / f"errors_{config.split}.html"
    write_whole(page, errors_page(title, len(rows), found, sheets))
    tracked = QueuedRun(folder, tracking_uri(config.output))
    if result.run_id or tracked.run_id:
        tracked.log_file(page.name)
        deliver_at_end(tracked)
    print_result(f"{sum(len(one.rows) for one in found)} of {len(rows)} clips are wrong")
    print_result(f"page: {page}")
    return page
