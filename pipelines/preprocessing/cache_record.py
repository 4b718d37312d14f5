"""The MLflow run of a frame cache: owed from before the cache is made, until the store has it."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stop_core.cache import Manifest
from stop_core.datasets.registry import division
from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import parse_json, read_text
from stop_core.storage.paths import StoragePath


class CacheRecord:
    """What MLflow is to be told of a cache.

    Args:
        output: where the store is, if it is no server.
        cache: the folder of the cache.
    """

    def __init__(self, output: Path, cache: StoragePath) -> None:
        self.output = output
        name = hashlib.sha256(str(cache.resolve()).encode()).hexdigest()[:16]
        self._owed = output / "unrecorded" / f"{name}.json"

    @property
    def is_owed(self) -> bool:
        """Whether a cache was made, and its run is not complete."""
        return self._owed.is_file()

    def begin(self, dataset: str) -> None:
        """Makes sure of the store, and that a kill from here on leaves the record owed.

        Raises:
            RunError: if the store cannot be used.
        """
        from ..tracking.store import open_experiment

        open_experiment(self.output, dataset)
        self._note({"key": uuid.uuid4().hex})

    def made(self, seconds: float) -> None:
        """Takes down how long it took."""
        self._note({**parse_json(read_text(self._owed)), "seconds": seconds})

    def tell(self, manifest: Manifest, params: Mapping[str, Any]) -> Exception | None:
        """Tells MLflow of the cache; returns what it failed with, and is then still owed."""
        try:
            self._tell(manifest, params, parse_json(read_text(self._owed)))
        except Exception as problem:  # SQLAlchemy's, requests' and MLflow's own kinds
            return problem
        self._owed.unlink(missing_ok=True)
        return None

    def _tell(self, manifest: Manifest, params: Mapping[str, Any], noted: dict[str, Any]) -> None:
        from ..tracking.direct_run import TrackedRun
        from ..tracking.store import KEY, open_experiment

        experiment = open_experiment(self.output, manifest.dataset)
        name = f"preprocess {division(manifest.dataset, manifest.fold)}"
        tags = {"kind": "preprocess", "dataset": manifest.dataset, "data_hash": manifest.data_hash}
        # By its key, the run of an attempt that was killed is found again.
        tags[KEY] = noted["key"]
        tracked = TrackedRun.start(self.output, experiment, name, tags=tags)
        tracked.log_params(params)
        values = {f"clips/{split}": float(count) for split, count in manifest.counts.items()}
        values["clips/failed"] = float(manifest.failures)
        if "seconds" in noted:  # otherwise a kill came before they were taken down
            values["preprocess/seconds"] = noted["seconds"]
        tracked.log_metrics(values)
        tracked.log_json(manifest.to_dict(), "manifest.json")
        tracked.finish()

    def _note(self, values: dict[str, Any]) -> None:
        self._owed.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._owed, json.dumps(values))
