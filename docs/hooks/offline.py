"""A page that loads anything from elsewhere is an error: the site is read without a network."""

import logging
import re

# Of the tags that load at once; a link in the text may lead anywhere.
_LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"')
_log = logging.getLogger("mkdocs.hooks.offline")


def on_post_page(output: str, *, page: object, **_: object) -> str:
    """Called by MkDocs with the HTML of every page; a warning ends a strict build."""
    for address in _LOADED.findall(output):
        _log.warning("the page %s loads %s; put a copy of it below docs/", page, address)
    return output
