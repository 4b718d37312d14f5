"""The images contain their requirements and no secret, and do not run as root."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.checks.machine import OLDEST_DRIVERS
from stop_core.storage.private import without_password

ROOT = Path(__file__).resolve().parents[2]
FILES = ["Dockerfile", "deploy/mlflow/Dockerfile"]


def _instructions(name: str) -> list[list[str]]:
    """Returns [["FROM", "python:3.11"], ...], without comments and continuation marks."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line.strip()]


def _patterns(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line.removeprefix("**/").rstrip("/") for line in lines if line and line[0] != "#"}


@pytest.mark.parametrize("name", FILES)
def test_an_image_copies_existing_files_and_does_not_run_as_root(name: str) -> None:
    instructions = _instructions(name)
    for kind, rest in instructions:
        if kind == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), rest
    users = [rest for kind, rest in instructions if kind == "USER"]
    assert users
    assert users[-1] != "root"


@pytest.mark.parametrize("name", FILES)
def test_an_image_pins_its_versions(name: str) -> None:
    text = "\n".join(" ".join(parts) for parts in _instructions(name))
    (base,) = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    if base == "${BASE}":
        base = re.search(r"^ARG BASE=(\S+)", text, re.MULTILINE)[1]  # type: ignore[index]
    assert re.fullmatch(r"python:3\.1[1-9]-\S+", base)
    installs = re.findall(r"pip install.*", text)
    assert installs
    assert all("--constraint" in line and "--no-cache-dir" in line for line in installs)


def test_files_ignored_by_git_are_not_in_an_image() -> None:
    """For example the file with the passwords, and outputs."""
    ignored = _patterns(".dockerignore")
    assert ".env" in ignored
    for pattern in _patterns(".gitignore"):
        assert {pattern, Path(pattern).name} & ignored, pattern


def test_the_mlflow_server_listens_on_loopback_and_has_no_password_in_the_file() -> None:
    services = yaml.safe_load((ROOT / "deploy/mlflow/compose.yaml").read_text())["services"]
    published = {name: service.get("ports", []) for name, service in services.items()}
    assert published == {"postgres": [], "mlflow": ["${LISTEN:-127.0.0.1}:5000:5000"]}
    password = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert password.startswith("${POSTGRES_PASSWORD:?")  # without a value nothing starts
    environment = services["mlflow"]["environment"]
    example = (ROOT / "deploy/mlflow/env.example").read_text()
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    for name in ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        assert environment[name].startswith(f"${{{name}:?")
        assert re.search(rf"^{name}=$", example, re.MULTILINE)
    assert re.search(r"^POSTGRES_PASSWORD=$", example, re.MULTILINE)
    assert without_password(str(services)) == str(services)


def test_the_driver_in_the_documents_is_that_of_the_pinned_torch() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    torch = re.search(r"^torch==(\S+)", constraints, re.MULTILINE)[1]  # type: ignore[index]
    (cuda,) = set(re.findall(r"^nvidia-\S+-cu(\d+)==", constraints, re.MULTILINE))
    needed = f"{OLDEST_DRIVERS[cuda]} or newer"
    assert f"PyTorch {torch} is built for CUDA {cuda}." in (ROOT / "docs/index.md").read_text()
    for name in ("docs/index.md", "Dockerfile", "deploy/ray_gcp.yaml"):
        assert needed in (ROOT / name).read_text(), name
