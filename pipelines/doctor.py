"""Checks an installation and suggests fixes."""

if __name__ == "__main__":  # python pipelines/doctor.py
    __import__("stop").run_file(__file__)

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from .checks.finding import MARKS, Finding, examined
from .cli.console import EXIT_FAILURE, add_result, print_result
from .cli.folders import default_output


@dataclass(frozen=True)
class DoctorConfig:
    """Check Python, torch, GPUs, decoders, Ray, MLflow, disks and memory; suggest fixes.

    Needs no network. The exit code is 1 if something will not work. Something that works, but not
    well, is a warning.
    """

    cache: str | None = None
    """Frame cache to check, a folder or its s3:// or gs:// URI."""
    output: Path = field(default_factory=default_output)
    """Folder for results, and for the MLflow store if there is no server."""
    ray: bool = True
    """Start Ray, or connect to its cluster, which takes about ten seconds."""


def findings(config: DoctorConfig) -> Iterator[Finding]:
    """Runs the checks; yields each finding."""
    from .checks import machine, services, videos

    yield from examined("python", machine.check_python)
    yield from examined("torch", machine.check_torch)
    yield from examined("memory", machine.check_memory)
    yield from examined("disks", partial(machine.check_disks, config.output))
    yield from examined("privacy", partial(machine.check_privacy, config.output))
    yield from examined("decoders", videos.check_decoders)
    yield from examined("open_clip", videos.check_open_clip)
    yield from examined("mlflow store", partial(services.check_mlflow, config.output))
    if config.ray:
        yield from examined("ray", services.check_ray)
    if config.cache is not None:
        yield from examined("cache", partial(videos.check_cache, config.cache))


def main(config: DoctorConfig) -> None:
    """Prints the findings; exits with 1 if one is a failure."""
    found = []
    for finding in findings(config):
        found.append(finding)
        print_result(describe_finding(finding))
    failures = sum(finding.status == "failure" for finding in found)
    warnings = sum(finding.status == "warning" for finding in found)
    add_result(healthy=failures == 0, findings=[asdict(finding) for finding in found])
    if failures or warnings:
        print_result(f"\n{failures} failures, {warnings} warnings in {len(found)} checks")
    else:
        print_result(f"\n{len(found)} checks passed")
    if failures:
        sys.exit(EXIT_FAILURE)


def describe_finding(finding: Finding) -> str:
    """Returns a finding as one line, and its advice as a second one."""
    line = f"{MARKS[finding.status]:<5} {finding.about:<17} {finding.found}"
    return line + (f"\n{'':<6}-> {finding.advice}" if finding.advice else "")
