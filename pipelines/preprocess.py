"""Turns a video dataset into a frame cache: decoded once, then read at memory speed.

The same command resumes after an interruption. It returns at once if the cache is complete.
"""

if __name__ == "__main__":  # python pipelines/preprocess.py
    __import__("stop").run_file(__file__)

import shlex

from stop_core.cache import Manifest
from stop_core.cache.job import read_failures
from stop_core.clip.registry import TOWERS
from stop_core.storage.escaping import in_line
from stop_core.storage.paths import StoragePath
from stop_core.tiny.shipped import TINY

from .cli.console import add_result, print_result
from .preprocessing.make_cache import PreprocessConfig, check, failure_counts, make_cache

_SHOWN_FAILURES = 5
CLIP_SIZE = 224  # input size of the common CLIP towers, in pixels


def summary(config: PreprocessConfig, manifest: Manifest) -> str:
    """Returns the final summary: cached clips, failures, and the next command."""
    cache = config.cache_path
    following = _next_command(config, cache)
    add_result(
        cache=cache,
        dataset=manifest.dataset,
        fold=manifest.fold,
        counts=manifest.counts,
        failures=manifest.failures,
        frames=manifest.config.frames,
        size=manifest.config.size,
        data_hash=manifest.data_hash,
        next=following,
    )
    classes = f"{len(manifest.class_names)} classes"
    kind = "with captions" if manifest.task == "retrieval" else classes
    counts = ", ".join(f"{count} {split}" for split, count in manifest.counts.items())
    lines = [
        f"cached    {sum(manifest.counts.values())} clips of {manifest.dataset} ({counts}), "
        f"{kind}, {manifest.config.frames} frames of {manifest.config.size} px"
    ]
    if manifest.failures:
        failures = read_failures(cache)
        lines.append(
            f"failed    {manifest.failures} clips ({failure_counts(failures)}): see "
            f"{cache / 'failures.parquet'}"
        )
        shown = (f"{one.source_path}: {one.error}" for one in failures[:_SHOWN_FAILURES])
        lines += [f"          {in_line(text)}" for text in shown]
        if len(failures) > _SHOWN_FAILURES:
            lines.append(f"          and {len(failures) - _SHOWN_FAILURES} more")
    lines.append(f"cache     {cache}  (data hash {manifest.data_hash[:12]})")
    if following:
        lines.append(f"next      {following}")
    return "\n".join(lines)


def _next_command(config: PreprocessConfig, cache: StoragePath) -> str:
    """Returns a training command for the cache; empty if no known tower takes its frame size."""
    _, size = config.shape
    towers = {tower.shape.image_size: f" --tower {name}" for name, tower in TOWERS.items()}
    towers[CLIP_SIZE] = " --tower ViT-B-32-quickgelu --pretrained openai"
    if size not in towers:
        return ""
    recipe = ""
    if config.entry.generate is not None:
        recipe = " --config motion"
        # The recipe names a tower for the frame size of a cache that was made without options.
        towers[TINY.image_size] = ""
    where = shlex.join(["--cache", str(cache)])
    return f"stop train{recipe} {where}{towers[size]}"


def main(config: PreprocessConfig) -> None:
    """Makes the cache and prints its summary; with --check, only counts the clips."""
    print_result(check(config) if config.check else summary(config, make_cache(config)))
