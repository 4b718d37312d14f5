"""A chaos script leaves no process running, whatever ends it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Scripts that print that they have started, and wait, replace `ray` and a driver.
SCRIPT = """
import subprocess, sys
from pathlib import Path
from tests.pipelines import ray_nodes
from tests.tools import killed_at_the_end, signals_interrupt

folder = Path(sys.argv[1])
ray_nodes.BIN = folder
with signals_interrupt(), ray_nodes.ray_nodes(folder, nodes=2):
    driver = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (folder / "driver.pid").write_text(str(driver.pid))
    with killed_at_the_end(driver):
        print("all have started", flush=True)
        driver.wait()
"""
FAKE_RAY = """#!/bin/sh
sleep 600 &
echo $! > "$(dirname "$0")/$$.pid"
echo Ray runtime started
wait
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_nodes_and_the_driver(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "ray").write_text(FAKE_RAY)
    (tmp_path / "ray").chmod(0o755)
    ignore = f"trap '' {number.name.removeprefix('SIG')}" if number == signal.SIGINT else ":"
    command = ["/bin/sh", "-c", f'{ignore}; exec "$0" "$@"', sys.executable, "-c", SCRIPT]
    with subprocess.Popen(
        [*command, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == b"all have started\n"
        script.send_signal(number)
        script.wait(60)
    started = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    assert len(started) == 4  # a head, two nodes and a driver
    deadline = time.monotonic() + 30
    while running := [pid for pid in started if _runs(pid)]:
        assert time.monotonic() < deadline, f"{running} still run"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
