"""The cost of listing a large dataset before the first clip is decoded, on a disk and on a bucket.

    python benchmarks/listing.py                     # 220,000 files in 400 folders
    python benchmarks/listing.py --bucket True

Counted are the requests (of a disk: `scandir` and `stat`; of a bucket: pages of up to a thousand
names), and how many are under way at once in the mean: each lasts `latency` seconds here, as on a
network. The bucket is a server in a separate process that makes up the names: it knows only how
to list them.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stop_core.cache.shards import plan_shards, usual_clips_per_shard
from stop_core.datasets import Clip, missing_clips
from stop_core.datasets.video_files import VideoFiles
from stop_core.storage.paths import RemotePath
from stop_core.storage.skeleton import skeleton_of

_PAGE = 1000


@dataclass(frozen=True)
class ListingBenchmark:
    """Count the requests of listing a dataset, and the processor's seconds."""

    files: int = 220_000
    """Number of videos."""
    folders: int = 400
    """Number of folders that they are in."""
    latency: float = 0.005
    """Seconds that each request takes."""
    bucket: bool = False
    """List a bucket instead of a disk."""


def names(options: ListingBenchmark) -> list[str]:
    """Returns the paths of the videos, sorted."""
    each = -(-options.files // options.folders)
    paths = (f"videos/{i // each:04d}/clip{i:07d}.mp4" for i in range(options.files))
    return sorted(paths)


def main(options: ListingBenchmark) -> None:
    """Prints a line for each step of the listing."""
    print(options)
    with tempfile.TemporaryDirectory() as folder:
        (_print_bucket if options.bucket else _print_disk)(options, Path(folder))


def _print_disk(options: ListingBenchmark, root: Path) -> None:
    paths = names(options)
    for parent in {path.rpartition("/")[0] for path in paths}:
        (root / parent).mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.close(os.open(root / path, os.O_CREAT))
    clips = [Clip(path, path, "train", 0, "a", path) for path in paths]
    plans = plan_shards(clips, usual_clips_per_shard(len(clips), 2_000_000))
    calls: Counter[str] = Counter()

    def slow(name: str) -> Any:
        call = getattr(os, name)

        def counted(*arguments: Any, **options_: Any) -> Any:
            calls[name] += 1
            time.sleep(options.latency)
            return call(*arguments, **options_)

        return mock.patch.object(os, name, counted)

    with slow("scandir"), slow("stat"):
        _print("list the videos", calls, lambda: VideoFiles(root))
        _print("find the missing ones", calls, lambda: missing_clips(root, clips))
        sources = plans[0].sources
        _print("sizes and times of one shard", calls, lambda: sources(root))


def _print(name: str, calls: Counter[str], do: Callable[[], Any]) -> None:
    calls.clear()
    begin, cpu = time.perf_counter(), time.process_time()
    do()
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    counted = ", ".join(f"{count} {call}" for call, count in sorted(calls.items()))
    print(f"{name}: {counted}, {cpu:.2f} s of processor, {wall:.1f} s by the clock")


def _print_bucket(options: ListingBenchmark, folder: Path) -> None:
    with _bucket(options) as (address, counts):
        os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a"}
        query = f"endpoint_override={address}&scheme=http&region=us-east-1"
        root = RemotePath("s3", "bucket/data", query)
        calls: Counter[str] = Counter()

        def outline() -> None:
            with skeleton_of(root) as local:
                calls.update(counts())
                assert len(VideoFiles(local).paths) == options.files

        _print("make the outline of the bucket", calls, outline)


@contextmanager
def _bucket(options: ListingBenchmark) -> Iterator[tuple[str, Callable[[], dict[str, int]]]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(options, there), daemon=True)
    process.start()
    address = here.recv()

    def counts() -> dict[str, int]:
        here.send("counts")
        return dict(here.recv())

    try:
        yield address, counts
    finally:
        process.kill()
        process.join()


def _serve(options: ListingBenchmark, pipe: Connection) -> None:
    """Answers ListObjectsV2 for the made names; sends its address, then counts when asked."""
    keys = [f"data/{path}" for path in names(options)]
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(options.latency)
            query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
            counts["pages of a tree" if not query.get("delimiter") else "pages of a folder"] += 1
            body = _page(keys, query).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            counts["HEAD"] += 1
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(f"127.0.0.1:{server.server_port}")
    while pipe.recv():
        pipe.send(dict(counts))


def _page(keys: list[str], query: dict[str, str]) -> str:
    """Returns the XML of one page."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = min(_PAGE, int(query.get("max-keys", _PAGE)))
    place = bisect_left(keys, query.get("continuation-token", prefix))
    contents, prefixes = list[str](), list[str]()
    while place < len(keys) and keys[place].startswith(prefix):
        if len(contents) + len(prefixes) == most:
            break
        rest = keys[place][len(prefix) :]
        if delimiter and delimiter in rest:
            common = prefix + rest.partition(delimiter)[0] + delimiter
            prefixes.append(f"<CommonPrefixes><Prefix>{common}</Prefix></CommonPrefixes>")
            place = bisect_left(keys, common + chr(0x10FFFF))
        else:
            contents.append(
                f"<Contents><Key>{keys[place]}</Key><Size>1000</Size><ETag>x</ETag>"
                "<LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>"
            )
            place += 1
    more = place < len(keys) and keys[place].startswith(prefix)
    token = f"<NextContinuationToken>{keys[place]}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>bucket</Name>'
        f"<Prefix>{prefix}</Prefix><KeyCount>{len(contents) + len(prefixes)}</KeyCount>"
        f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        f"{''.join(contents)}{''.join(prefixes)}</ListBucketResult>"
    )


if __name__ == "__main__":
    main(tyro.cli(ListingBenchmark, config=(tyro.conf.FlagConversionOff,)))
