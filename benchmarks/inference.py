"""How busy the model's stage is when readers of a known speed feed it, through the real Ray Data.

    python benchmarks/inference.py --reading 0.4 --running 0.05 --readers 2 4 8 10

The stages sleep, so the CPUs and the GPU are logical ones. For each number of readers it prints the
share of time in which the model worked, in the second half of the parts, and the largest number of
parts that waited between the stages. Expected is readers x running / reading, at most 1.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from pipelines.inference.stages import Pools


class Reader:
    """Sleeps instead of decoding, and gives frames of the wanted size."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Returns the part with its frames."""
        time.sleep(self.work["reading"])
        frames = np.zeros(self.work["bytes"], np.uint8)
        return {**part, "frames": frames, "read": time.time()}


class Model:
    """Sleeps instead of running a model."""

    def __init__(self, work: dict[str, Any], gpu: bool) -> None:
        self.work = work

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Returns when the part was read, and the model began and ended."""
        began = time.time()
        time.sleep(self.work["running"])
        times = {"read": part["read"], "began": began, "ended": time.time()}
        return {"videos": 1, **{k: self.work[k] for k in ("reading", "running")}, **times}


def main() -> None:
    """Prints a row for each number of readers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reading", type=float, default=0.4, help="seconds of a part")
    parser.add_argument("--running", type=float, default=0.05, help="seconds of a part")
    parser.add_argument("--readers", type=int, nargs="+", default=[2, 4, 8, 10])
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=1, help="frames of a part")
    parser.add_argument("--store", type=float, default=200, help="MB of Ray's object store")
    options = parser.parse_args()
    import ray

    from pipelines.cluster.session import quiet_ray_data

    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            num_cpus=max(options.readers),
            num_gpus=1,
            object_store_memory=int(options.store * 1e6),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        quiet_ray_data()
        work = {"reading": options.reading, "running": options.running}
        work["bytes"] = int(options.megabytes * 1e6)
        print(f"{'readers':>7} {'expected':>8} {'busy':>6} {'waiting':>7}  note")
        for readers in options.readers:
            pools = Pools(readers, models=1, gpus_each=1)
            parts = [{"path": str(number)} for number in range(options.parts)]
            rows: list[dict[str, Any]] = []
            stream = pools.stream(parts, work, reader=Reader, model=Model)  # type: ignore[arg-type]
            rows.extend(stream)
            half = sorted(rows, key=lambda row: row["began"])[len(rows) // 2 :]
            span = half[-1]["ended"] - half[0]["began"]
            busy = sum(row["ended"] - row["began"] for row in half) / span
            changes = [(row["read"], 1) for row in rows] + [(row["began"], -1) for row in rows]
            waiting = np.cumsum([change for _, change in sorted(changes)]).max()
            expected = min(1.0, readers * options.running / options.reading)
            note = pools.limit(rows) or ""
            print(f"{readers:7} {expected:8.2f} {busy:6.2f} {waiting:7}  {note}", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
