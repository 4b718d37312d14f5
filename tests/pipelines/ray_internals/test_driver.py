"""The installed Ray has the names and settings that we use without its promise to keep them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from pipelines.cli.folders import default_output
from pipelines.cluster.session import _LOCAL_SETTINGS, _SETTINGS
from pipelines.ray_internals.driver import in_ray_job

_ASK = """
import ray.util
from pipelines.ray_internals.driver import listen_on_loopback
{}
print(listen_on_loopback())
"""


@pytest.mark.parametrize(
    ("other_release", "answer"),
    [("", "True"), ("ray.util.get_node_ip_address = lambda: '192.0.2.1'", "False")],
)
def test_address_of_a_local_ray_is_known_before_it_starts(other_release: str, answer: str) -> None:
    # In another process, as this one may have started Ray.
    done = subprocess.run(
        [sys.executable, "-c", _ASK.format(other_release)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == answer


def test_results_of_a_ray_job_are_not_in_its_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert not in_ray_job()
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert in_ray_job()
    assert default_output().is_absolute()


def test_ray_reads_the_settings_that_we_give_it() -> None:
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    ray = Path(found.origin).parent
    parts = ("_private", "_common", "air", "train", "tune", "util")
    text = "".join(p.read_text() for part in parts for p in (ray / part).rglob("*.py"))
    ours = {*_SETTINGS, "RAY_AIR_NEW_OUTPUT", "TUNE_FUNCTION_THREAD_TIMEOUT_S"}
    if "PreemptionWatcher" in text:  # not in Ray 2.55
        ours |= _LOCAL_SETTINGS.keys()
    assert ours - set(re.findall(r"\b(?:RAY|TUNE)_[A-Z_]+\b", text)) == set()
