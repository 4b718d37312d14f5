"""The cluster's files are what Ray takes them for."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


def test_ray_accepts_the_cluster_file() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    validate_config(prepare_config(config))


def test_a_job_does_not_pack_what_is_made_here() -> None:
    ignored = set((ROOT / ".rayignore").read_text().split())
    assert {".git/", ".venv/", "outputs/"} <= ignored
