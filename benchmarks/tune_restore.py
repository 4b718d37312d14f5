"""Compares the state of Ray Tune after a SIGKILL with the trials that had started and reported.

    python benchmarks/tune_restore.py

A search of short trials is killed. Each trial writes a line to a file when it starts and before
each report; these are compared with the trials in the state from which Tune would restore.
docs/architecture.md says why a sweep does not resume in this way.
"""

import logging
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 45.0
TRIALS, EPOCHS = 200, 4


def search(folder: Path) -> None:
    """Runs the search; its trials write to the file `seen`."""
    import ray
    from ray import tune

    seen = folder / "seen"

    def trial(config: dict[str, float]) -> None:
        with seen.open("a") as file:
            print(f"start {config['x']}", file=file, flush=True)
            for epoch in range(1, EPOCHS + 1):
                time.sleep(0.25)
                print(f"epoch {config['x']} {epoch}", file=file, flush=True)
                tune.report({"epoch": epoch, "x": config["x"]})

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        trial,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(num_samples=TRIALS, reuse_actors=True),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    ).fit()


def main() -> None:
    """Kills the search some time after the first trial has started, and reads Tune's state."""
    from ray import tune

    logging.disable(logging.WARNING)  # trials that have not started have no results
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, __file__, name]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / "seen").exists():
            time.sleep(0.1)
        time.sleep(SECONDS)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        time.sleep(5)  # its workers end
        lines = (folder / "seen").read_text().splitlines()
        started = {line.split()[1] for line in lines if line.startswith("start")}
        print(f"before: {len(started)} trials, {len(lines) - len(started)} reports")
        known = tune.ExperimentAnalysis(f"{name}/tune").trials
        reports = sum(one.last_result.get("epoch", 0) for one in known)
        begun = sum(one.status != "PENDING" for one in known)
        print(f"in Tune's state: {begun} trials, {reports} reports")


if __name__ == "__main__":
    if sys.argv[1:]:
        search(Path(sys.argv[1]))
    else:
        main()
