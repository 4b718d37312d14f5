"""Checks an installation, and says of everything that it finds what to do about it.

stop doctor
stop doctor --cache outputs/cache/hmdb51 --json
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.command_line import FAILURE, parse, run
from pipelines.findings import MARKS, Finding, examined
from pipelines.output import default_output
from pipelines.progress import print_result


@dataclass(frozen=True)
class Doctor:
    """Check Python, torch, GPUs, decoders, Ray, MLflow, disk and memory; say what to do.

    Needs no network. Ends with exit code 1 if something will not work; what works, but not as it
    could, is a warning and no failure.
    """

    cache: str | None = None
    """A frame cache to check as well, a folder or its s3:// or gs:// URI."""
    output: Path = field(default_factory=default_output)
    """Where results, and the MLflow store without a server, would go."""
    ray: bool = True
    """False does not start Ray, which takes some ten seconds."""
    json: bool = False
    """Print the findings as JSON."""


def findings(config: Doctor) -> Iterator[Finding]:
    """All that is found, as it is found."""
    from pipelines import check_machine, check_services, check_videos

    yield from examined("python", check_machine.check_python)
    yield from examined("torch", check_machine.check_torch)
    yield from examined("memory", check_machine.check_memory)
    yield from examined("disks", partial(check_machine.check_disks, config.output))
    yield from examined("privacy", partial(check_machine.check_privacy, config.output))
    yield from examined("decoders", check_videos.check_decoders)
    yield from examined("open_clip", check_videos.check_open_clip)
    yield from examined("mlflow store", partial(check_services.check_mlflow, config.output))
    if config.ray:
        yield from examined("ray", check_services.check_ray)
    if config.cache is not None:
        yield from examined("cache", partial(check_videos.check_cache, config.cache))


def main(config: Doctor) -> int:
    """Prints the findings; returns the exit code."""
    found = []
    for finding in findings(config):
        found.append(finding)
        if not config.json:
            print_result(describe(finding))
    failures = sum(finding.status == "failure" for finding in found)
    warnings = sum(finding.status == "warning" for finding in found)
    if config.json:
        values = {"healthy": failures == 0, "findings": [asdict(finding) for finding in found]}
        print_result(json.dumps(values, indent=2))
    elif failures or warnings:
        print_result(f"\n{failures} failures, {warnings} warnings among {len(found)} findings")
    else:
        print_result(f"\nall {len(found)} findings are well")
    return FAILURE if failures else 0


def describe(finding: Finding) -> str:
    """A finding in a line, and what to do in another."""
    line = f"{MARKS[finding.status]:<5} {finding.about:<17} {finding.found}"
    return line + (f"\n{'':<6}-> {finding.advice}" if finding.advice else "")


if __name__ == "__main__":
    options = parse(Doctor)
    run(lambda: sys.exit(main(options)))
