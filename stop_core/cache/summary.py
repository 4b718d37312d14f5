"""Counts the contents of a finished cache."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from stop_core.cache.fetching import LocalShards
from stop_core.cache.job import read_failures
from stop_core.cache.manifest import Manifest
from stop_core.cache.mapping import read_columns
from stop_core.cache.shards import Failure
from stop_core.storage.paths import StoragePath


@dataclass(frozen=True)
class Summary:
    """Counts over the rows and failures of a cache."""

    manifest: Manifest
    classes: dict[str, Counter[str]]
    """Clips by class name, then by split."""
    captions: Counter[str]
    """Captions by split."""
    decoders: Counter[str]
    """Clips by decoder."""
    failures: Counter[str]
    """Failed clips by reason."""


def summarise(cache: StoragePath) -> Summary:
    """Counts the contents of a finished cache; raises as `Manifest.load`."""
    manifest = Manifest.load(cache)
    classes: dict[str, Counter[str]] = {name: Counter() for name in manifest.class_names}
    captions: Counter[str] = Counter()
    decoders: Counter[str] = Counter()
    for entry, path in LocalShards(cache, manifest).each(manifest.shards):
        names, sentences, served = read_columns(
            path, entry.rows, "class_name", "captions", "decoder"
        )
        for name in filter(None, names):  # clips with captions have no class
            classes.setdefault(name, Counter())[entry.split] += 1
        captions[entry.split] += sum(map(len, sentences))
        decoders.update(served)
    return Summary(manifest, classes, captions, decoders, count_reasons(read_failures(cache)))


def count_reasons(failures: Iterable[Failure]) -> Counter[str]:
    """Counts failures by their reason."""
    # The part before the colon is the reason; numbers of the file follow it.
    return Counter(
        failure.error.partition(":")[0] if failure.stage == "decode" else failure.error
        for failure in failures
    )
