"""Files of the Hugging Face Hub: from its local cache without a network, else downloaded."""

import threading
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from stop_core.storage.documents import shown_text

_TIMEOUT = 3.0  # seconds


def hub_file(repository: str, *names: str, wanted: str, advice: str) -> Path:
    """Returns the path of the first of `names` that a repository has: cached, else downloaded.

    Raises OSError if it has none of them, or the hub does not answer within a few seconds; the
    message has `wanted` (the purpose of the file) and `advice` (after a download by hand).
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    # Without a network the retries of a download take a minute and print ten lines, so a short
    # request is made first.
    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    reason = _no_answer(repository, names[0])
    for name in () if reason else names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name))
        except EntryNotFoundError:
            reason = f"it has no {' and no '.join(names)}"
        except Exception as problem:  # of the hub, of HTTP or of the disk
            reason = f"{shown_text(problem).rstrip('.')}, for {name}"
            break
    raise OSError(
        f"{wanted} could not be loaded from the Hugging Face Hub ({reason}); download "
        f"https://huggingface.co/{repository}/resolve/main/{names[0]} elsewhere and {advice}"
    )


def _no_answer(repository: str, name: str) -> str:
    """Returns why the hub cannot be reached, after at most `_TIMEOUT` seconds; "" if it can.

    In a thread, since the name lookup of a request has no timeout.
    """
    reasons = [f"the Hugging Face Hub does not answer within {_TIMEOUT:g} s"]

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(repository, name)
            huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT)
        except EntryNotFoundError:
            pass
        except Exception as problem:
            reasons[0] = shown_text(problem).rstrip(".")
            return
        reasons.clear()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    return reasons[0] if reasons else ""
