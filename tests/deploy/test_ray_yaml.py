"""The files for `ray up` are valid, and give every machine the token."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]
FILES = ["ray_cluster.yaml", "deploy/ray_aws.yaml", "deploy/ray_gcp.yaml"]


@pytest.fixture(params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / request.param).read_text())
    return config


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    # The remaining nodes are workers; a file without any would wait for ever.
    assert sum(kind["min_workers"] for kind in prepared["available_node_types"].values()) > 0


def test_every_machine_starts_ray_with_the_token_and_a_private_dashboard(
    cluster: dict[str, Any],
) -> None:
    (mounted,) = cluster["file_mounts"]
    assert mounted.endswith(".ray/auth_token")
    for role in ("head", "worker"):
        (start,) = [c for c in cluster[f"{role}_start_ray_commands"] if " ray start " in c]
        assert "RAY_AUTH_MODE=token" in start
    (head,) = [c for c in cluster["head_start_ray_commands"] if " ray start " in c]
    assert "--dashboard-host=127.0.0.1" in head


def test_ray_uses_a_private_folder_on_shared_machines() -> None:
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    for role in ("head", "worker"):
        start = config[f"{role}_start_ray_commands"][-1]
        assert " --temp-dir=$(mktemp --directory /tmp/ray-XXXXXX)/ray" in start


def test_the_clouds_allow_only_ssh_from_the_users_addresses() -> None:
    config = yaml.safe_load((ROOT / "deploy/ray_aws.yaml").read_text())
    (rule,) = config["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert all(not one["CidrIp"].endswith("/0") for one in rule["IpRanges"])


def test_workers_can_reach_the_bucket_and_the_head_its_workers() -> None:
    aws = yaml.safe_load((ROOT / "deploy/ray_aws.yaml").read_text())
    for name, kind in aws["available_node_types"].items():
        assert ("IamInstanceProfile" in kind["node_config"]) == (name != "head")
    assert "ssh_private_key" in yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["auth"]


def test_a_job_does_not_pack_generated_files() -> None:
    ignored = set((ROOT / ".rayignore").read_text().split())
    assert {".git/", ".venv/", "outputs/", "site/", "deploy/mlflow/.env"} <= ignored
