"""Tells what videos show: the most probable labels of each, by a trained model or by CLIP.

    stop predict clip.mp4 --checkpoint outputs/runs/NAME
    stop predict videos/ --checkpoint outputs/runs/NAME --to predictions.parquet
    stop predict clip.mp4 --tower ViT-B-32-quickgelu --pretrained openai --labels running jumping

The same command goes on after an interruption; what is done is not done again.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if not __package__:  # run as a file: PEP 366
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "pipelines"

import tyro

from stop_core.storage.escaping import in_line

from .cli.console import print_result, say
from .cli.errors import RunError
from .cli.options import run_command
from .cli.output import default_output
from .cli.video_options import DecodeOptions, WorkerOptions
from .inference.model_choice import ModelChoice

if TYPE_CHECKING:
    from stop_core.trained_model.model import TrainedModel

PredictionFormat = Literal["table", "jsonl", "parquet"]
_ENDINGS: dict[str, PredictionFormat] = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class PredictConfig:
    """Tell the most probable labels of videos, by a trained model or by CLIP as it is.

    Frames are chosen and resized as for the cache that the model was trained on. A video that
    cannot be decoded is a row with the reason, and stops nothing. After a kill, the same command
    goes on with what is left.

    Examples:
      stop predict clip.mp4 --checkpoint outputs/runs/NAME
      stop predict videos/ --checkpoint outputs/runs/NAME --to predictions.parquet
      stop predict clip.mp4 --tower ViT-B-32-quickgelu --pretrained openai \\
          --labels "riding a bike" jumping
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Video files and folders of them; either may be at s3:// or gs://."""
    model: ModelChoice = field(default_factory=ModelChoice)
    top: int = 5
    """Labels of each video, the most probable ones."""
    to: Path | None = None
    """File to write the rows to, .jsonl or .parquet (default: print them)."""
    format: PredictionFormat | None = None
    """How they are printed or written (default: by the file's ending; printed, a table)."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    output: Path = field(default_factory=default_output)
    """Folder for what is done so far, and of the MLflow store."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")
        if self.to is not None and self.format is None and self.to.suffix not in _ENDINGS:
            raise ValueError(
                f"--to {self.to} ends neither in .jsonl nor in .parquet; give --format"
            )
        if self.to is None and self.format == "parquet":
            raise ValueError("--format parquet needs --to, the file to write")
        if self.to is not None and self.format == "table":
            raise ValueError("a table is printed and not written: give --to a .jsonl or .parquet")

    @property
    def form(self) -> PredictionFormat:
        """The format, that of the file's ending where none is given."""
        return self.format or ("table" if self.to is None else _ENDINGS[self.to.suffix])


def main(config: PredictConfig) -> list[dict[str, Any]]:
    """Predicts, and prints or writes the rows."""
    from stop_core.trained_model.identity import answer_identity

    from .inference.job import VideoJob
    from .inference.video_list import list_videos
    from .inference.worker import Work

    videos = list_videos(config.videos)
    choice = config.model.found(config.output)
    # What is wrong with it is told before any worker starts; here may be no GPU.
    trained = replace(choice, gpu=False).load()
    if not trained.labels:
        raise RunError(
            "this model was trained on captions and has no classes: name some with --labels, or "
            "use it with `stop index` and `stop search`"
        )
    top = min(config.top, len(trained.labels))
    work = Work(choice, "labels", top, config.decoding.decode_timeout)
    folder = config.output / "predictions" / f"{answer_identity(trained)}-top{top}"
    job = VideoJob(folder, work)
    done = job.run(videos, config.workers, retry_failed=config.decoding.retry_failed)
    rows = [_row(one) for one in done.to_pylist()]
    _tell(rows, config, trained)
    return rows


def _row(done: dict[str, Any]) -> dict[str, Any]:
    """What the user is given of a video."""
    labels, values = done["labels"] or [], done["probabilities"] or []
    return {
        "video": done["video"],
        "label": labels[0] if labels else None,
        "probability": values[0] if values else None,
        "labels": labels,
        "probabilities": values,
        "error": done["error"],
    }


def _tell(rows: Sequence[dict[str, Any]], config: PredictConfig, trained: "TrainedModel") -> None:
    failed = [row for row in rows if row["error"] is not None]
    if config.to is not None:
        _write(rows, config.to, config.form, trained)
        print_result(f"wrote {len(rows)} rows to {config.to}")
    elif config.form == "jsonl":
        for row in rows:
            print_result(json.dumps(row, ensure_ascii=False))
    else:
        _print_table(rows, config.videos)
    if failed:
        reasons = Counter(row["error"] for row in failed).most_common(3)
        told = "; ".join(f"{in_line(reason)}: {count}" for reason, count in reasons)
        say(f"{len(failed)} of {len(rows)} videos failed ({told})")
    if len(failed) == len(rows):
        raise RunError("no video could be decoded: see the reasons above")


def _write(
    rows: Sequence[dict[str, Any]], path: Path, form: PredictionFormat, trained: "TrainedModel"
) -> None:
    from stop_core.storage.atomic import appearing

    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        if form == "parquet":
            _write_parquet(rows, staging, trained)
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            staging.write_text(text, encoding="utf-8")


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path, trained: "TrainedModel") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stop_core.trained_model.identity import answer_identity

    schema = pa.schema(
        [
            pa.field("video", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("probability", pa.float64()),
            pa.field("labels", pa.list_(pa.string())),
            pa.field("probabilities", pa.list_(pa.float64())),
            pa.field("error", pa.string()),
        ],
        metadata={
            "stop.model": answer_identity(trained),
            "stop.run": trained.provenance.run,
            "stop.method": trained.config.method,
            "stop.tower": trained.config.tower,
        },
    )
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def _print_table(rows: Sequence[dict[str, Any]], given: Sequence[str]) -> None:
    """A line a label, under the name of its video."""
    from .inference.video_list import short_names

    names = [in_line(name) for name in short_names([row["video"] for row in rows], given)]
    width = max(map(len, names))
    for name, row in zip(names, rows, strict=True):
        if row["error"] is not None:
            print_result(f"{name:<{width}}  failed  {in_line(row['error'])}")
        pairs = zip(row["labels"], row["probabilities"], strict=True)
        for rank, (label, probability) in enumerate(pairs):
            print_result(
                f"{name if rank == 0 else '':<{width}}  {probability:6.1%}  {in_line(label)}"
            )


if __name__ == "__main__":
    run_command(PredictConfig, main)
