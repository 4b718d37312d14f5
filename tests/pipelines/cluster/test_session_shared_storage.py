"""A cluster whose machines do not share a folder is refused before it starts to work."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.ray_nodes import ROOT, ray_nodes

_DRIVER = """
import sys
from pathlib import Path
from pipelines.cli.console import RunError
from pipelines.cluster.session import start_ray
from pipelines.cluster.session import require_shared

start_ray()
for folders, records in (([sys.argv[1]], False), ([sys.argv[2], sys.argv[1]], False), ([], True)):
    try:
        require_shared(*map(Path, folders), records=records)
        print("accepted")
    except RunError as problem:
        print(problem)
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_machine_that_does_not_see_a_folder_is_named(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode:
        pytest.skip("this user cannot make namespaces")
    shared, hidden = tmp_path / "shared", tmp_path / "hidden"
    shared.mkdir()
    hidden.mkdir()
    with ray_nodes(tmp_path, hidden=hidden) as stage:
        done = subprocess.run(
            [sys.executable, "-c", _DRIVER, str(shared), str(hidden)],
            cwd=ROOT,
            env=stage.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    seen, unseen, sqlite = done.stdout.splitlines()
    assert seen == "accepted"
    assert unseen.startswith(f"node0 of the cluster cannot see {hidden}: ")
    assert "SQLite" in sqlite
    assert "MLFLOW_TRACKING_URI" in sqlite
    assert not list(tmp_path.glob("*/.shared-*"))
