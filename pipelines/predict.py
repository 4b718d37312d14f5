"""Predicts the most probable labels of videos, with a trained model or with CLIP."""

if __name__ == "__main__":  # python pipelines/predict.py
    __import__("stop").run_file(__file__)

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_line

from .cli.console import RunError, add_result, print_result, reporting, warn
from .cli.folders import default_output
from .cli.options import OutputFolder, at_least_one
from .cli.video_options import DecodeOptions, WorkerOptions
from .inference.model_choice import ModelChoice
from .inference.video_list import list_videos, short_names

PredictionFormat = Literal["table", "jsonl", "parquet"]
_ENDINGS: dict[str, PredictionFormat] = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class PredictConfig:
    """Predict the most probable labels of videos, with a trained model or with CLIP.

    Frames are sampled and resized as for the cache that the model was trained on. A video that
    cannot be decoded is a row with the reason, and does not affect the others. After an
    interruption, the same command resumes.

    Examples:
      stop predict clip.mp4 --checkpoint outputs/runs/NAME
      stop predict videos/ --checkpoint outputs/runs/NAME --to predictions.parquet
      stop predict clip.mp4 --tower ViT-B-32-quickgelu --pretrained openai \\
          --labels "riding a bike" jumping
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Video files and folders of them, local or at s3:// or gs://."""
    model: ModelChoice = field(default_factory=ModelChoice)
    top: int = 5
    """Number of labels of each video, the most probable ones."""
    to: Path | None = None
    """File for the rows, .jsonl or .parquet (default: print them)."""
    format: PredictionFormat | None = None
    """Format of the rows (default: by the ending of --to; without --to, a table)."""
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    output: OutputFolder = field(default_factory=default_output)
    """Folder of the finished parts, the training runs and the MLflow store."""

    def __post_init__(self) -> None:
        at_least_one(top=self.top)
        if self.to is not None and self.format is None and self.to.suffix not in _ENDINGS:
            raise ValueError(f"--to {self.to} ends neither in .jsonl nor in .parquet; add --format")
        if self.to is None and self.format == "parquet":
            raise ValueError("--format parquet needs --to, the file to write")
        if self.to is not None and self.format == "table":
            raise ValueError("a table is only printed: give --to a .jsonl or .parquet file")

    @property
    def form(self) -> PredictionFormat:
        """--format, or the format of the ending of --to."""
        return self.format or ("table" if self.to is None else _ENDINGS[self.to.suffix])


def main(config: PredictConfig) -> list[dict[str, Any]]:
    """Predicts, and prints or writes the rows."""
    from stop_core.trained_model.model import answer_identity

    from .inference.job import VideoJob
    from .inference.stages import Work

    videos = list_videos(config.videos)
    choice = config.model.found(config.output)
    # Loaded here to report errors before any worker starts, and on the CPU for its facts.
    with reporting(lambda: "loading the model"):
        trained = choice.load()
    if not trained.labels:
        raise RunError(
            "this model was trained on captions and has no classes: give some with --labels, or "
            "use it with `stop index` and `stop search`"
        )
    top = min(config.top, len(trained.labels))
    work = Work(choice, trained.preprocessing, "labels", top, config.decoding.decode_timeout)
    identity = answer_identity(trained)
    folder = config.output / "predictions" / f"{identity}-top{top}"
    done = VideoJob(folder, work).run(
        videos, config.workers, retry_failed=config.decoding.retry_failed
    )
    rows = [
        {
            "video": row["video"],
            "label": next(iter(row["labels"] or ()), None),
            "probability": next(iter(row["probabilities"] or ()), None),
            **{name: row[name] or [] for name in ("labels", "probabilities")},
            "error": row["error"],
        }
        for row in done.to_pylist()
    ]
    add_result(rows=rows, file=config.to, model=identity, run=trained.provenance.run)
    if config.to is not None:
        origin = {"model": identity, "run": trained.provenance.run}
        origin |= {"method": trained.config.method, "tower": trained.config.tower, **choice.of_hub}
        _write(rows, config.to, config.form, origin)
        print_result(f"wrote {len(rows)} rows to {config.to}")
    elif config.form == "jsonl":
        print_result(_json_lines(rows))
    else:
        _print_table(rows, config.videos)
    if failed := [row for row in rows if row["error"] is not None]:
        reasons = Counter(row["error"] for row in failed).most_common(3)
        listed = "; ".join(f"{in_line(reason)}: {count}" for reason, count in reasons)
        warn(f"{len(failed)} of {len(rows)} videos failed ({listed})")
        if len(failed) == len(rows):
            raise RunError("no video could be decoded: see the reasons above")
    return rows


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def _write(
    rows: list[dict[str, Any]], path: Path, form: PredictionFormat, origin: dict[str, str]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as staging:
        if form == "jsonl":
            staging.write_text(_json_lines(rows) + "\n", encoding="utf-8")
            return
        schema = pa.schema(
            [
                pa.field("video", pa.string(), nullable=False),
                pa.field("label", pa.string()),
                pa.field("probability", pa.float64()),
                pa.field("labels", pa.list_(pa.string())),
                pa.field("probabilities", pa.list_(pa.float64())),
                pa.field("error", pa.string()),
            ],
            metadata={f"stop.{name}": value for name, value in origin.items()},
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), staging)


def _print_table(rows: Sequence[dict[str, Any]], given: Sequence[str]) -> None:
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
