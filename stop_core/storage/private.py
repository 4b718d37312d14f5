"""Temporary files that no other user can read, and messages without passwords."""

import os
import re
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

# Up to the last @: SQLAlchemy takes passwords with slashes, and a password may have an @ itself.
_PASSWORD = re.compile(r"(?<=://)([^\s/?#:]*):\S*@")
_HTTP_TOKEN = re.compile(r"(?<=http://|ttps://)[^\s/?#@:]+@")
_SECRET_OPTION = re.compile(
    r"([?&][^\s=&]*(?:pass|pwd|secret|token|key|cred|odbc_connect)[^\s=&]*=)[^\s&#]+", re.IGNORECASE
)


def private_folder(below: str | None = None) -> Path:
    """Returns a folder that only this user can enter; default: in the temporary folder.

    Its name is `stop-UID`. If that is a link, belongs to another user or is open to others, a new
    folder with a random name is used, the same one during the whole process.
    """
    folder = Path(below or tempfile.gettempdir()) / f"stop-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return folder if is_private(folder.lstat()) else _new_folder(folder.parent)


def is_private(status: os.stat_result) -> bool:
    """Returns whether only this user can open a file or folder; False for a link."""
    own = status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
    return own and not status.st_mode & 0o077


@cache
def _new_folder(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="stop-", dir=parent))


def without_password(text: str) -> str:
    """Returns a URI, or a message with URIs in it, with *** in place of each possible secret."""
    shown = _HTTP_TOKEN.sub("***@", _PASSWORD.sub(r"\1:***@", text))
    return _SECRET_OPTION.sub(r"\1***", shown)


def first_line(problem: object) -> str:
    """Returns the first line of a long error, without passwords; its type if it has no message."""
    return without_password((str(problem).strip() or type(problem).__name__).splitlines()[0])
