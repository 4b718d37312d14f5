"""The messages quoted in docs/troubleshooting.md are those of the sources."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
OURS = ("pipelines", "sweeps", "stop_core")


def _sentences() -> list[str]:
    """Yields every string in the sources, with … in place of inserted values."""
    found = []
    for source in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    found += [(ROOT / "Makefile").read_text(), (ROOT / "deploy/slurm/stop.sbatch").read_text()]
    return found


def _quoted() -> list[str]:
    """Returns the quoted messages of the first column, except those of other programs."""
    first = [line.split(" | ")[0] for line in PAGE.read_text().splitlines() if line[:2] == "| "]
    ours = [cell for cell in first if not re.match(r"\| (Ray|MLflow|`ray)", cell)]
    quoted = [text for cell in ours for text in re.findall(r"`([^`]+)`", cell)]
    return [text for text in quoted if " " in text]


def test_a_quoted_message_is_in_the_sources() -> None:
    sentences = _sentences()
    quoted = _quoted()
    assert len(quoted) > 35
    patterns = {t: ".*".join(re.escape(piece) for piece in t.split("…")) for t in quoted}
    unsaid = [
        text
        for text, pattern in patterns.items()
        if not any(re.search(pattern, sentence, re.DOTALL) for sentence in sentences)
    ]
    assert not unsaid, "docs/troubleshooting.md quotes what no command says any more"
