"""`make chaos`: kills in all parts, and one report at the end.

    python tests/pipelines/chaos_all.py --kills 100 --seed 1

Each part is a separate script with the same options. It compares its results with those of an
uninterrupted run, and exits with 1 if they differ. The last one, for root, has no random kills:
it loses nodes, the head and the store.
"""

import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.tools import signals_interrupt

PARTS = {"preprocess": "chaos.py", "train": "chaos_train.py", "sweep": "chaos_sweep.py"}


@dataclass(frozen=True)
class AllChaos:
    """Kill processes of all parts at random moments, and compare the results."""

    kills: int = 100
    """Total number of kills; each part has an equal share."""
    seed: int | None = None
    """Seed of the victims and times (default: a random one, which is printed)."""


@dataclass(frozen=True)
class Part:
    """Result of one part."""

    name: str
    kills: int
    exit_code: int
    seconds: float

    def line(self) -> str:
        """Returns a row of the report."""
        end = "the same" if self.exit_code == 0 else f"OTHERWISE (exit code {self.exit_code})"
        return f"{self.name:<12}{self.kills:>6}{self.seconds / 60:>9.1f}  {end}"


def main(options: AllChaos) -> None:
    """Runs the parts one by one; exit code 1 if the result of one differs."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    shares = [len(range(n, options.kills, len(PARTS))) for n in range(len(PARTS))]
    commands = {
        name: [script, "--kills", str(kills), "--seed", str(seed)]
        for (name, script), kills in zip(PARTS.items(), shares, strict=True)
    }
    if os.geteuid() == 0:
        commands["nodes"] = ["chaos_nodes.py"]
    parts = [
        _run(name, [sys.executable, str(HERE / script), *words])
        for name, (script, *words) in commands.items()
    ]
    print(f"\n{'part':<12}{'kills':>6}{'minutes':>9}  ended, seed {seed}")
    for part in parts:
        print(part.line())
    print(f"{'in all':<12}{sum(part.kills for part in parts):>6}")
    sys.exit(any(part.exit_code for part in parts))


def _run(name: str, command: list[str]) -> Part:
    """Runs one script, shows its output, and counts its kills by the output."""
    print(f"\n== {name}", flush=True)
    started, told = time.monotonic(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                told += line
        except KeyboardInterrupt:
            process.terminate()  # it ends the processes that it started
            raise
    found = re.findall(r"^in all +(\d+)|^(\d+) kills", told, re.MULTILINE)
    done = int("".join(found[-1])) if found else 0
    return Part(name, done, process.returncode, time.monotonic() - started)


if __name__ == "__main__":
    with signals_interrupt():
        main(tyro.cli(AllChaos))
