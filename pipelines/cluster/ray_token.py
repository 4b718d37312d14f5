"""Ray's authentication token, readable by its owner only: with it one can run code as the owner."""

import logging
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from ..cli.console import RunError

_LOG = logging.getLogger(__name__)


def token_file() -> Path:
    """Returns the file of Ray's token, which Ray reads unless RAY_AUTH_TOKEN is set."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _usual_folder() / "auth_token")


def _usual_folder() -> Path:
    return Path.home() / ".ray"


def keep_token_private(create: bool) -> None:
    """Makes the file of Ray's token private; creates one if there is none and `create` is set.

    Call it before Ray starts: Ray would write the file readable for all. Raises RunError if another
    user owns the file or its folder, or it is a link.
    """
    disabled = os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    if disabled or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_file()
    try:
        if create and not os.path.lexists(path):
            _create_token(path)
        if path.parent == _usual_folder():  # another folder may be shared
            # Who can write to the folder can replace the token by a known one.
            _remove_rights(path.parent, os.O_DIRECTORY, 0o022)
        mode = _remove_rights(path, os.O_NOFOLLOW, 0o077)
    except FileNotFoundError:
        return  # Ray reports a missing token if its cluster needs one
    except OSError as problem:
        raise RunError(
            f"the token of Ray, {path}, cannot be kept from other users "
            f"({problem.strerror or problem}): remove it and run the same command again to get a "
            "new one; all machines of a cluster need the same token"
        ) from problem
    if mode:
        _LOG.warning(
            "warning: other users could read %s (mode %04o) and run code as you; it is private "
            "now. If you do not trust them all, remove it: the next command creates a new one "
            "(copy it to the machines of your cluster)",
            path,
            mode,
        )


def _create_token(path: Path) -> None:
    """Writes a new token atomically; keeps one that another process has just written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".auth_token.") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


def _remove_rights(path: Path, flag: int, forbidden: int) -> int:
    """Removes the `forbidden` rights; returns the mode before if it had any of them, else 0."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flag)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid():
            raise PermissionError(f"{path} belongs to another user")
        mode = stat.S_IMODE(status.st_mode)
        if not mode & forbidden:
            return 0
        os.fchmod(descriptor, mode & ~forbidden)
        return mode
    finally:
        os.close(descriptor)
