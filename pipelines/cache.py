"""Inspects, verifies, exports and plots a frame cache."""

if __name__ == "__main__":  # python pipelines/cache.py
    __import__("stop").run_file(__file__)

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from stop_core.cache import FrameCache, Manifest
from stop_core.cache.export import Codec, Part, PartFormat, export
from stop_core.cache.integrity import verify
from stop_core.cache.summary import summarise
from stop_core.datasets.registry import division
from stop_core.explain.contact_sheet import draw_clips
from stop_core.storage.atomic import appearing
from stop_core.storage.escaping import in_line
from stop_core.storage.paths import storage_path

from .cli.console import RunError, console, print_result
from .cli.options import at_least_one


@dataclass(frozen=True)
class _OnCache:
    cache: Annotated[str, tyro.conf.Positional]
    """Folder of a finished cache, or its s3:// or gs:// URI."""


@dataclass(frozen=True)
class InfoCommand(_OnCache):
    """Print the contents of a cache: clips by split and class, size on disk, failures by reason."""

    def run(self) -> None:
        """Prints the summary."""
        summary = summarise(storage_path(self.cache))
        manifest, config = summary.manifest, summary.manifest.config
        splits = tuple(manifest.counts)
        data_bytes = sum(shard.file_bytes for shard in manifest.shards)
        shown = f"{config.frames} frames of {config.size} px, "
        shown += "square" if config.crop == "center" else "whole (short side)"
        lines = [
            f"dataset      {division(manifest.dataset, manifest.fold)}",
            f"clips        {_counted(Counter(manifest.counts))}",
            f"frames       {shown}, compression {config.compression}, sampling {config.sampling}",
            f"size         {data_bytes / 1e6:,.1f} MB in {len(manifest.shards)} shards",
            f"decoders     {_counted(summary.decoders)}",
            f"data hash    {manifest.data_hash[:12]}",
        ]
        if any(summary.captions.values()):
            lines.append(f"captions     {_counted(summary.captions)}")
        if manifest.failures:
            lines.append(f"failed       {manifest.failures}: see {self.cache}/failures.parquet")
            failures = summary.failures.most_common()
            lines += [f"    {count:6} {in_line(reason)}" for reason, count in failures]
        print_result("\n".join(lines))
        if summary.classes:
            table = Table("class", *splits, box=None)
            for column in table.columns[1:]:
                column.justify = "right"
            for name, counts in summary.classes.items():
                table.add_row(name, *(str(counts[split]) for split in splits))
            console().print(table)


@dataclass(frozen=True)
class VerifyCommand(_OnCache):
    """Compare every file of a cache with its hash; exit code 1 if a file is damaged."""

    def run(self) -> None:
        """Prints every damaged file; raises RunError with the command that repairs the cache."""
        path = storage_path(self.cache)
        checked = list(verify(path))
        problems = list(filter(None, checked))
        for problem in problems:
            print_result(problem)
        if problems:
            raise RunError(
                f"{len(problems)} of {len(checked)} files of {self.cache} are damaged: delete them "
                "and manifest.json, and make them again with "
                f"`{Manifest.load(path).config.command(self.cache)}`"
            )
        print_result(f"{self.cache}: all {len(checked)} files are as they were made")


@dataclass(frozen=True)
class ExportCommand(_OnCache):
    """Write clips of a cache for other programs, atomically, to a new folder."""

    to: Path
    """The folder to make."""
    format: PartFormat = "parquet"
    """parquet: all columns, one file per shard. png: one folder per clip, one file per frame."""
    compression: Codec = "zstd"
    """Compression of the Parquet files."""
    splits: tuple[str, ...] = ()
    """Only these splits (default: all)."""
    classes: tuple[str, ...] = ()
    """Only these classes (default: all)."""
    limit: int | None = None
    """Export only the first LIMIT clips of each split (default: all)."""

    def __post_init__(self) -> None:
        at_least_one(limit=self.limit)

    def run(self) -> None:
        """Exports the clips and prints their number."""
        part = Part(self.splits, self.classes, self.limit)
        count = export(storage_path(self.cache), part, self.to, self.format, self.compression)
        print_result(f"exported {count} clips to {self.to}")


@dataclass(frozen=True)
class SheetCommand(_OnCache):
    """Draw a contact sheet: some clips, spread evenly over a split, with some frames of each."""

    to: Path = Path("sheet.png")
    """The image file to write."""
    split: str = "train"
    """The split to draw."""
    clips: int = 12
    """Largest number of clips."""
    frames: int = 8
    """Largest number of frames per clip."""

    def __post_init__(self) -> None:
        at_least_one(clips=self.clips, frames=self.frames)

    def run(self) -> None:
        """Writes the picture."""
        clips = FrameCache(self.cache).split(self.split)
        if not len(clips):
            raise RunError(f"the split {self.split} of {self.cache} has no clips to draw")
        sheet = draw_clips(f"{self.split} of {self.cache}", clips, self.clips, self.frames)
        with appearing(self.to) as staging:
            sheet.save(staging, format="PNG")
        print_result(f"drew {min(len(clips), self.clips)} of {len(clips)} clips to {self.to}")


_Command = (
    Annotated[InfoCommand, tyro.conf.subcommand("info")]
    | Annotated[VerifyCommand, tyro.conf.subcommand("verify")]
    | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[SheetCommand, tyro.conf.subcommand("sheet")]
)


@dataclass(frozen=True)
class CacheToolConfig:
    """Inspect, verify or export a frame cache."""

    command: _Command


def _counted(counts: Counter[str]) -> str:
    parts = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{sum(counts.values())} ({parts})"


def main(config: CacheToolConfig) -> None:
    """Runs the chosen action on the cache."""
    config.command.run()
