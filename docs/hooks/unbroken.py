"""Some texts stay on one line: words of code, which a browser breaks at hyphens, and `1 ± 2`."""

import re

_CODE = re.compile(r"<code>([^<]+)</code>")
_WORD = re.compile(r"[^\s&;]{0,26}-[^\s&;]{1,26}")


def on_page_content(html: str, **_: object) -> str:
    """Called by MkDocs with the HTML of the text of every page."""
    html = html.replace(" ± ", "\u00a0±\u00a0")
    return _CODE.sub(lambda code: f"<code>{_WORD.sub(_whole, code[1])}</code>", html)


def _whole(word: re.Match[str]) -> str:
    return f'<span class="whole">{word[0]}</span>'
