"""The MLflow run of a frame cache, pending until the tracking store has accepted it."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

from stop_core.cache import Manifest
from stop_core.datasets.registry import division
from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import parse_json, read_text
from stop_core.storage.paths import StoragePath

from ..tracking.direct_run import TrackedRun
from ..tracking.store import KEY, open_experiment


class CacheRecord:
    """The pending MLflow record of a cache, a file below `output` that survives SIGKILL."""

    def __init__(self, output: StoragePath, cache: StoragePath) -> None:
        self.output = output
        name = hashlib.sha256(str(cache.resolve()).encode()).hexdigest()[:16]
        self._pending = output / "unrecorded" / f"{name}.json"

    @property
    def is_pending(self) -> bool:
        """Whether decoding began and the store has not accepted the record yet."""
        return self._pending.is_file()

    def begin(self, dataset: str) -> None:
        """Checks the store and marks the record as pending, before anything is decoded."""
        open_experiment(self.output, dataset)
        self._note({"key": uuid.uuid4().hex})

    def note_duration(self, seconds: float) -> None:
        """Adds the duration of decoding to the pending record."""
        self._note({**parse_json(read_text(self._pending)), "seconds": seconds})

    def send(self, manifest: Manifest, params: Mapping[str, Any]) -> Exception | None:
        """Records the cache in MLflow; returns the error if that fails, and stays pending."""
        dataset, name = manifest.dataset, f"preprocess {division(manifest.dataset, manifest.fold)}"
        values = {f"clips/{split}": float(count) for split, count in manifest.counts.items()}
        values["clips/failed"] = float(manifest.failures)
        try:
            noted = parse_json(read_text(self._pending))
            if "seconds" in noted:  # absent after an interruption before `note_duration`
                values["preprocess/seconds"] = noted["seconds"]
            tags = {"kind": "preprocess", "dataset": dataset, "data_hash": manifest.data_hash}
            # The key finds the run of an interrupted attempt, so that no second run is created.
            tags[KEY] = noted["key"]
            experiment = open_experiment(self.output, dataset)
            tracked = TrackedRun.start(self.output, experiment, name, tags=tags)
            tracked.log_params(params)
            tracked.log_metrics(values)
            tracked.log_json(manifest.to_dict(), "manifest.json")
            tracked.finish()
        except Exception as problem:  # SQLAlchemy's, requests' and MLflow's own kinds
            return problem
        self._pending.unlink(missing_ok=True)
        return None

    def _note(self, values: dict[str, Any]) -> None:
        self._pending.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._pending, json.dumps(values))
