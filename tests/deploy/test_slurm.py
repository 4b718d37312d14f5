"""The script for Slurm, run with substitutes for srun, scontrol, ray and python."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "stop.sbatch"

# Each writes its arguments to $LOG. srun runs the rest of its line here, ray stays until it is
# killed, as `ray start --block` does.
STAND_INS = {
    "srun": """
        echo "srun $*" >> "$LOG"
        while [[ $1 == --* ]]; do
            [[ $1 == --ntasks=* ]] && export TASKS=${1#--ntasks=}
            shift
        done
        exec "$@" """,
    "scontrol": """
        echo "scontrol $*" >> "$LOG"
        [[ $1 == show ]] && printf '%s\\n' $NODES || true""",
    "getent": """
        [[ $2 == unknown* ]] || echo "10.0.0.1 STREAM $2" """,
    "venv/bin/ray": """
        echo "ray $* token=${#RAY_AUTH_TOKEN}" >> "$LOG"
        [[ -z ${RAY_FAILS:-} ]] || exit 1
        for ((task = 0; task < TASKS; task++)); do echo $$ >> "$PIDS"; done
        exec sleep 60""",
    "venv/bin/python": """
        case $1 in
            -c) echo 0123456789abcdef ;;                # the token
            -) wc -l < "$PIDS" ;;                       # how many have joined
            *) echo "python $* at $RAY_ADDRESS" >> "$LOG"; exec bash -c "$WORK" ;;
        esac""",
}


@dataclass
class Slurm:
    """An allocation, and the commands called in it."""

    folder: Path
    environment: dict[str, str]

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(SCRIPT), *command],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def wait_for(self, call: str) -> None:
        deadline = time.monotonic() + 30
        while call not in self.calls:
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.02)

    def is_quiet(self) -> bool:
        """Returns whether all of its `ray start` end soon."""
        pids = {int(pid) for pid in (self.folder / "pids").read_text().split()}
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "PIDS": str(tmp_path / "pids"),
        "STOP_VENV": str(tmp_path / "bin" / "venv"),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_CPUS_PER_TASK": "8",
        "NODES": "n1 n2 n3",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "WORK": "exit 0",
    }
    return Slurm(tmp_path, environment)


def _shellcheck() -> str | None:
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck")


def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if (command := _shellcheck()) is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([command, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_other_machines_join_the_head_with_the_token(slurm: Slurm) -> None:
    _, problem = slurm.start("pipelines/train.py", "--seed", "1").communicate(timeout=30)
    # The two steps run side by side, so either may come first.
    workers, head = sorted(
        (call for call in slurm.calls if call.startswith("ray")), key=lambda call: "--head" in call
    )
    assert "--head --node-ip-address=10.0.0.1 --port=24242 --dashboard-host=127.0.0.1" in head
    assert "--block --num-cpus=8 --address=10.0.0.1:24242" in workers
    assert head.endswith("token=16")
    assert workers.endswith("token=16")
    ask, *steps = [call for call in slurm.calls if call.startswith("srun")]
    steps.sort(key=lambda call: "--exclude=n1" in call)
    assert "--nodelist=n3 getent ahostsv4 n1" in ask
    assert "--nodes=1 --ntasks=1 " in steps[0]
    assert "--nodelist=n1" in steps[0]
    assert "--nodes=2 --ntasks=2 " in steps[1]
    assert "--exclude=n1" in steps[1]
    assert slurm.calls[-1] == "python pipelines/train.py --seed 1 at 10.0.0.1:24242", problem


@pytest.mark.parametrize("code", [0, 3])
def test_the_job_has_the_exit_code_of_its_command_and_ends_ray(slurm: Slurm, code: int) -> None:
    job = slurm.start("pipelines/train.py", WORK=f"exit {code}")
    job.communicate(timeout=30)
    assert job.returncode == code
    assert slurm.is_quiet()


def test_a_job_near_its_time_limit_is_requeued_with_the_same_command(
    slurm: Slurm,
) -> None:
    command = ("pipelines/train.py", "--output", "/shared/two words")
    saves = (
        'trap "echo saved >> $LOG; exit 75" TERM; echo ready >> $LOG; while :; do sleep 0.1; done'
    )
    job = slurm.start(*command, WORK=saves)
    slurm.wait_for("ready")
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 0
    assert [one for one in slurm.calls if one in ("saved", "scontrol requeue 4242")] == [
        "saved",
        "scontrol requeue 4242",
    ]
    assert "requeueing job 4242" in out
    assert slurm.is_quiet()
    slurm.start(*command).communicate(timeout=30)  # as Slurm does, with the same arguments
    first, again = [call for call in slurm.calls if call.startswith("python")]
    assert first == again


def test_one_machine_needs_no_workers_and_no_server(slurm: Slurm) -> None:
    slurm.environment.pop("MLFLOW_TRACKING_URI")
    job = slurm.start("pipelines/train.py", NODES="n1")
    job.communicate(timeout=30)
    assert job.returncode == 0
    assert len([call for call in slurm.calls if call.startswith("ray")]) == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ((), {}, "no command"),
        (("a.py",), {"STOP_VENV": "/nowhere"}, "run make setup in the checkout"),
        (("a.py",), {"MLFLOW_TRACKING_URI": ""}, "set MLFLOW_TRACKING_URI to a server"),
        (("a.py",), {"NODES": "unknown1 n2"}, "n2 does not know the address of unknown1"),
        (("a.py",), {"RAY_FAILS": "1", "PIDS": "/dev/null"}, "Ray did not start"),
    ],
)
def test_an_impossible_job_is_refused_with_a_message(
    slurm: Slurm, arguments: tuple[str, ...], environment: dict[str, str], reason: str
) -> None:
    job = slurm.start(*arguments, **environment)
    _, told = job.communicate(timeout=30)
    assert job.returncode == 2, told
    assert [line for line in told.splitlines() if reason in line and "error: " in line], told
    assert not [call for call in slurm.calls if call.startswith("python")]
