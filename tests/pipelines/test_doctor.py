"""Laws of `stop doctor`: a problem is named, with advice; otherwise the checks pass."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow.store.db.utils import _get_latest_schema_revision

from pipelines import doctor
from pipelines.checks import machine, services, videos
from pipelines.checks.finding import Finding, examined, failure, ok
from pipelines.cli.options import run
from pipelines.doctor import DoctorConfig, describe_finding, main
from tests.json_documents import documented


def _only(found: Iterator[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_decoders_and_the_process_return_the_frames_of_the_embedded_clip() -> None:
    found = {finding.about: finding for finding in videos.check_decoders()}
    assert found.keys() == {"decord", "PyAV", "decoding process"}
    assert {finding.status for finding in found.values()} == {"ok"}


def test_wrong_frames_are_a_failure() -> None:
    right = np.repeat(16 + 19 * np.arange(12), 64 * 64 * 3).reshape(12, 64, 64, 3)
    assert videos._judge("x", right, "", "").status == "ok"
    swapped = right[[1, 0, *range(2, 12)]]
    for wrong in (swapped, right[:-1], np.zeros_like(right)):
        assert videos._judge("x", wrong, "", "").status == "failure"


def test_one_working_decoder_makes_the_other_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = failure("decord", "No module named 'decord'", "pip install decord")
    monkeypatch.setattr(videos, "_check_decord", lambda: broken)
    monkeypatch.setattr(videos, "_check_process", lambda: ok("decoding process", ""))
    first, second, _ = videos.check_decoders()
    assert (first.status, second.status) == ("warning", "ok")
    assert "PyAV decodes" in first.advice


def test_unexpected_error_of_a_check_is_a_finding() -> None:
    def check() -> Iterator[Finding]:
        yield ok("x", "first")
        raise RuntimeError("operator torchvision::nms does not exist")

    first, second = examined("x", check)
    assert first.status == "ok"
    assert second.status == "failure"
    assert "torchvision::nms" in second.found


def test_missing_or_old_package_is_named() -> None:
    assert machine._unmet("no-such-package", ">=1") == "no-such-package is missing"
    assert ">=999 is required" in machine._unmet("numpy", ">=999")
    assert machine._unmet("numpy", ">=1") == ""


def test_folder_that_cannot_be_written_is_a_failure() -> None:
    found = {finding.about: finding for finding in machine.check_disks(Path("/proc/none"))}
    assert found["output folder"].status == "failure"
    assert found["temporary folder"].status != "failure"


def test_store_with_another_schema_or_without_permission_is_a_failure(
    tmp_path: Path,
) -> None:
    assert "first use" in _only(services.check_mlflow(tmp_path)).found
    assert not (tmp_path / "mlflow.db").exists(), "the check creates nothing"
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(
        file
    ) as connection:  # the tables that are checked; a whole store takes seconds
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute(
            "INSERT INTO alembic_version VALUES (?)", (_get_latest_schema_revision(),)
        )
    before = file.read_bytes()
    assert _only(services.check_mlflow(tmp_path)).status == "ok"
    assert file.read_bytes() == before, "the check changes nothing"

    with sqlite3.connect(file) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    old = _only(services.check_mlflow(tmp_path))
    assert old.status == "failure"
    assert "mlflow db upgrade" in old.advice
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    file.write_bytes(b"not a database, but long enough to be read as one" * 40)
    assert _only(services.check_mlflow(tmp_path)).status == "failure"


def test_server_that_does_not_answer_is_a_failure_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = _only(services.check_mlflow(tmp_path))
    assert found.status == "failure"
    assert "127.0.0.1:9" in found.found


def test_password_in_the_address_of_the_store_is_a_failure_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    found = _only(services.check_mlflow(tmp_path))
    assert found.status == "failure"
    assert "secret" not in describe_finding(found)
    assert "~/.mlflow/credentials" in found.advice


def _privacy(output: Path) -> dict[str, Finding]:
    return {finding.about: finding for finding in machine.check_privacy(output)}


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a home and temporary folder that others cannot read."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (".ray/auth_token", ".mlflow/credentials"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch(mode=0o600)
    assert {finding.status for finding in _privacy(tmp_path).values()} == {"ok"}
    return tmp_path


def test_each_risk_from_other_users_is_a_finding_with_a_command(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (closed / ".ray/auth_token").chmod(0o640)
    (closed / ".mlflow/credentials").unlink()
    (closed / ".mlflow/credentials").symlink_to(closed / ".ray/auth_token")
    (closed / f"stop-{os.getuid()}").chmod(0o755)
    found = _privacy(closed)
    assert found["ray token"].status == found["mlflow password"].status == "failure"
    assert f"chmod 600 {closed}/.ray/auth_token" in found["ray token"].advice
    assert found["private folder"].status == "warning"
    closed.chmod(0o777)
    found = _privacy(closed)
    assert f"chmod +t {closed}" in found["private folder"].advice
    assert f"chmod o-w {closed}" in found["output folder"].advice
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert next(f.status for f in machine.check_privacy(closed)) == "failure"


def test_cache_is_read_or_refused(captioned_cache: Path, tmp_path: Path) -> None:
    good = _only(videos.check_cache(str(captioned_cache)))
    assert good.status == "ok"
    assert "1 train, 1 val, 1 test" in good.found
    shard = next((captioned_cache / "data").glob("*.parquet"))
    os.truncate(shard, 100)
    assert _only(videos.check_cache(str(captioned_cache))).status == "failure"
    assert _only(videos.check_cache(str(tmp_path / "none"))).status == "failure"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failure", 1)])
def test_only_a_failure_changes_the_exit_code(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("disk", status, "found this", "do that")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "findings", lambda config: iter([finding]))
    with pytest.raises(SystemExit) as ended:
        run(lambda: main(DoctorConfig()), ["--json"])
    assert ended.value.code == code
    report = documented("doctor", capsys)
    assert report["healthy"] is (code == 0)
    assert report["findings"] == [
        {"about": "disk", "status": status, "found": "found this", "advice": "do that"}
    ]
    assert "found this" in describe_finding(finding)
    assert "-> do that" in describe_finding(finding)
