"""The Kubernetes manifests are valid, and consistent with the rest of the project."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipelines.cli.options import parse
from pipelines.train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
KUBERNETES = "1.31"
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text())
RAY_FILES = ["raycluster.yaml", "rayjob.yaml"]


def _read_all(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def _read(name: str) -> dict[str, Any]:
    return _read_all(name)[0]


def _cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def _templates(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the pods of a manifest: the submitter's, the head's, the workers'."""
    if submitter := manifest["spec"].get("submitterPodTemplate"):
        yield submitter
    cluster = _cluster(manifest)
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def _validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_manifests_and_their_pods_are_valid(name: str) -> None:
    manifest = _read(name)
    jsonschema.validate(manifest, SCHEMA)
    for template in _templates(manifest):
        _validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template})


@pytest.mark.parametrize("name", ["storage.yaml", "network.yaml", "mlflow.yaml"])
def test_the_other_manifests_are_valid(name: str) -> None:
    for manifest in _read_all(name):
        _validate(manifest)


def test_a_wrong_field_name_is_detected() -> None:
    manifest = _read("raycluster.yaml")
    worker = manifest["spec"]["workerGroupSpecs"][0]
    worker["template"]["spec"]["containers"][0]["volumemounts"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        _validate({"apiVersion": "v1", "kind": "Pod", **worker["template"]})
    worker["replica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(manifest, SCHEMA)


@pytest.mark.parametrize("name", RAY_FILES)
def test_pods_need_the_token_and_have_a_network_policy(
    name: str,
) -> None:
    manifest, policy = _read(name), _read("network.yaml")
    assert _cluster(manifest)["authOptions"] == {"mode": "token"}
    for template in _templates(manifest):
        assert template["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]


# The restricted standard of Kubernetes 1.31: "Pod Security Standards" in its documentation.
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
_VOLUMES |= {"projected", "secret"}


def _against_the_restricted_standard(pod: dict[str, Any]) -> list[str]:
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        found += sorted(volume.keys() - {"name"} - _VOLUMES)
    kinds = ("containers", "initContainers", "ephemeralContainers")
    for container in (one for kind in kinds for one in pod.get(kind, [])):
        rights = pod.get("securityContext", {}) | container.get("securityContext", {})
        holds = {
            "privileged": not rights.get("privileged"),
            "allowPrivilegeEscalation": rights.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": rights.get("runAsNonRoot") is True,
            "runAsUser": rights.get("runAsUser") != 0,
            "drop": "ALL" in rights.get("capabilities", {}).get("drop", []),
            "add": set(rights.get("capabilities", {}).get("add", [])) <= {"NET_BIND_SERVICE"},
            "seccompProfile": rights.get("seccompProfile", {}).get("type")
            in ("RuntimeDefault", "Localhost"),
            "procMount": rights.get("procMount", "Default") == "Default",
            "seLinuxOptions": not {"user", "role"} & rights.get("seLinuxOptions", {}).keys(),
            "sysctls": not rights.get("sysctls"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [name for name, well in holds.items() if not well]
    return found


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every part of a manifest that has containers."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        value = list(value.values())
    for one in value if isinstance(value, list) else []:
        yield from _pods(one)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_all_pods_satisfy_the_restricted_standard(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        pods = list(_pods(manifest))
        for pod in pods:
            assert _against_the_restricted_standard(pod) == []
            assert pod["automountServiceAccountToken"] is False


def test_each_rule_of_the_restricted_standard_is_checked() -> None:
    well = next(_pods(_read("raycluster.yaml")))
    worse: list[tuple[str, dict[str, Any]]] = [
        ("hostNetwork", {"hostNetwork": True}),
        ("hostPath", {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}),
        ("seccompProfile", {"securityContext": {"runAsNonRoot": True}}),
        ("runAsNonRoot", {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
        ("drop", {"initContainers": [{"name": "x"}]}),
        ("allowPrivilegeEscalation", {"initContainers": [{"name": "x"}]}),
    ]
    for rule, change in worse:
        assert rule in _against_the_restricted_standard({**well, **change})


def test_no_manifest_contains_a_password() -> None:
    for path in FOLDER.glob("*.yaml"):
        for pod in _pods(_read_all(path.name)):
            variables = [v for container in pod["containers"] for v in container.get("env", [])]
            secret = [v for v in variables if v["name"].endswith(("PASSWORD", "TOKEN", "USERNAME"))]
            assert all("secretKeyRef" in v["valueFrom"] for v in secret)


@pytest.mark.parametrize("name", RAY_FILES)
def test_volumes_user_and_ray_version_equal_those_of_the_other_files(name: str) -> None:
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
    assert (config.resources.device, config.resources.workers) == ("auto", None)
    assert config.resources.on(2, 64, int(limits["cpu"])).cpus_per_worker <= int(limits["cpu"])
    assert {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]} == {
        "nvidia.com/gpu"
    }


def test_both_ray_manifests_describe_the_same_cluster() -> None:
    assert _read("raycluster.yaml")["spec"] == _read("rayjob.yaml")["spec"]["rayClusterSpec"]


def test_only_rays_pods_reach_the_mlflow_server_that_they_name() -> None:
    _, service, server = _read_all("mlflow.yaml")
    labels, (port,) = server["spec"]["template"]["metadata"]["labels"], service["spec"]["ports"]
    assert service["spec"]["selector"] == labels
    address = f"http://{service['metadata']['name']}:{port['port']}"
    environment = next(_pods(_read("raycluster.yaml")))["containers"][0]["env"]
    assert {"name": "MLFLOW_TRACKING_URI", "value": address} in environment
    (policy,) = [
        one
        for one in _read_all("network.yaml")
        if one["spec"]["podSelector"]["matchLabels"] == labels
    ]
    (rule,) = policy["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "stop"}}}]
    assert [one["port"] for one in rule["ports"]] == [port["port"]]
