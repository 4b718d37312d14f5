"""The Kubernetes manifests fit their schemas, and say the same as the rest of the project."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.command_line import parse
from pipelines.train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
KUBERNETES = "1.31"
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text())
RAY_FILES = ["raycluster.yaml", "rayjob.yaml"]


def _read(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return manifest


def _cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def _templates(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods of a manifest: the submitter's, the head's, the workers'."""
    if submitter := manifest["spec"].get("submitterPodTemplate"):
        yield submitter
    cluster = _cluster(manifest)
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def _validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_manifests_fit_kuberays_fields_and_their_pods_those_of_kubernetes(name: str) -> None:
    manifest = _read(name)
    jsonschema.validate(manifest, SCHEMA)
    for template in _templates(manifest):
        _validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template})


@pytest.mark.parametrize("name", ["storage.yaml", "network.yaml"])
def test_the_other_manifests_fit_kubernetes(name: str) -> None:
    _validate(_read(name))


def test_a_mistaken_name_is_found() -> None:
    manifest = _read("raycluster.yaml")
    worker = manifest["spec"]["workerGroupSpecs"][0]
    worker["template"]["spec"]["containers"][0]["volumemounts"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        _validate({"apiVersion": "v1", "kind": "Pod", **worker["template"]})
    worker["replica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(manifest, SCHEMA)


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_need_the_token_have_few_rights_and_are_covered_by_the_network_policy(
    name: str,
) -> None:
    manifest, policy = _read(name), _read("network.yaml")
    assert _cluster(manifest)["authOptions"] == {"mode": "token"}
    for template in _templates(manifest):
        assert template["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", RAY_FILES)
def test_claims_user_and_ray_version_are_those_of_the_other_files(name: str) -> None:
    manifest = _read(name)
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert _cluster(manifest)["rayVersion"] == pinned[1]
    claim = _read("storage.yaml")["metadata"]["name"]
    for template in _templates(manifest):
        user = template["spec"]["securityContext"]["runAsUser"]
        assert f"--uid {user} " in (ROOT / "Dockerfile").read_text()
        for volume in template["spec"].get("volumes", []):
            assert volume.get("persistentVolumeClaim", {"claimName": claim})["claimName"] == claim


def test_the_jobs_command_parses_and_fits_its_workers() -> None:
    manifest = _read("rayjob.yaml")
    python, script, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert (python, script) == ("python", "pipelines/train.py")
    config = parse(TrainConfig, arguments)
    (group,) = _cluster(manifest)["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    resources = config.resources
    assert resources.workers <= group["replicas"]
    assert resources.gpus_per_worker <= int(limits["nvidia.com/gpu"])
    assert resources.cpus_per_worker <= int(limits["cpu"])
