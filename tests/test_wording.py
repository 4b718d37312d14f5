"""Counts of vague words per 10,000 words of docstrings and comments.

`python tests/test_wording.py` prints them.
"""

import ast
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {
    r"what": 15,
    r"told|tells?|telling": 2,
    r"go(?:es|ne|ing)? on|went on": 1,
    r"beside": 1,
    r"alone": 1,
    r"anew": 1,
    r"lies|lay|lying": 1,
    r"stands?|stood": 1,
}
SOURCES = ("stop_core", "pipelines", "tests", "benchmarks", "tools")


@cache
def texts(path: Path) -> list[str]:
    """Returns the docstrings of a file, of its attributes too, and its comments."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(body := getattr(node, "body", None), list):
            for one in body:
                if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                    found.append(str(one.value.value))
    with path.open("rb") as source:
        tokens = tokenize.tokenize(source.readline)
        return found + [one.string for one in tokens if one.type == tokenize.COMMENT]


@cache
def counts(folders: tuple[str, ...] = SOURCES) -> dict[str, float]:
    """Returns how often each pattern occurs per 10,000 words."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    text = " ".join(one for path in files if path != Path(__file__) for one in texts(path))
    words = len(re.findall(r"\w+", text))
    return {word: 1e4 * len(re.findall(rf"\b(?:{word})\b", text, re.I)) / words for word in LIMITS}


@pytest.mark.parametrize("word", LIMITS)
def test_a_word_of_no_meaning_is_rare(word: str) -> None:
    assert counts()[word] < LIMITS[word]


def test_a_docstring_begins_with_what_it_describes() -> None:
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*.py"):
            found = [text for text in texts(path) if re.match(r"\s*(Of|What)\b", text)]
            assert not found, path


if __name__ == "__main__":
    for pattern, count in counts().items():
        print(f"{pattern:<24} {count:5.1f} of at most {LIMITS[pattern]}")
