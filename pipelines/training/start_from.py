"""Starting a training from a named checkpoint: going on with it, or forking from its weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stop_core.training.run_state import LAST_PROMPTS, ORIGIN, Origin, read_origin, read_progress


@dataclass(frozen=True)
class StartFrom:
    """A checkpoint to begin with, for a training that has none of its own yet."""

    checkpoint: Path
    fork: bool
    """Take the prompts alone, into a new training; otherwise go on with the same one."""

    @property
    def suffix(self) -> str:
        """What tells the name of a fork from that of a training from the start."""
        if not self.fork:
            return ""
        weights = (self.checkpoint / LAST_PROMPTS).read_bytes()
        return f"-fork{hashlib.sha256(weights).hexdigest()[:8]}"

    def check(self, origin: Origin) -> None:
        """Refuses to go on with another training than `origin`.

        Raises:
            ValueError: with all that differs.
        """
        if self.fork:
            return
        if found := read_origin(self.checkpoint).differences(origin):
            raise ValueError(
                f"--resume-from: {self.checkpoint} is of another training: {'; '.join(found)}. "
                "Give the same options, or --fork True to start a new training from its weights"
            )


def find_checkpoint(where: Path, output: Path) -> Path:
    """The checkpoint that `where` names: itself, or the latest of a run by its folder or name.

    Raises:
        FileNotFoundError: if there is none; the message names the runs that there are.
        ValueError: if none of them can be read; the message names the file.
    """
    from stop_core.training.checkpoint import check_whole

    for folder in (where, output / "runs" / where):
        found = [folder, *folder.glob("checkpoint_*"), *folder.glob("checkpoints/checkpoint_*")]
        whole, damage = [], None
        for path in found:
            if any((path / name).exists() for name in (ORIGIN, LAST_PROMPTS)):
                try:
                    check_whole(path)
                    whole.append(path.resolve())
                except ValueError as problem:
                    damage = problem
        if whole:
            return max(whole, key=lambda path: (read_progress(path).order, path.name))
        if damage:
            raise ValueError(
                f"--resume-from: {damage}: it is damaged, or was copied in part. Give another "
                "checkpoint, or leave --resume-from out and train from the start"
            ) from damage
    runs = sorted(path.name for path in (output / "runs").glob("*") if path.is_dir())
    hint = f"the runs below {output} are {', '.join(runs)}" if runs else f"{output} holds no run"
    raise FileNotFoundError(f"--resume-from: there is no checkpoint or run {where}; {hint}")
