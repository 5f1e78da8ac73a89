"""The documentation as tests read it: pages, sections, code blocks and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OF_A_SWEEP = ("load_model(", "load_results(")
"""What examples in Python call that need a finished sweep."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
STOPS = {"|", ">", ">>", "&&", ";"}
"""Words of a shell after which another command or a file follows."""


def page(name: str) -> str:
    """The text of a chapter, by its name in docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading, to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}\n(.*)", text, re.M | re.S)
    assert match, f"no heading {heading}"
    return re.split(rf"^#{{1,{len(match[1])}}} ", match[2], maxsplit=1, flags=re.M)[0]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return [body for name, body in FENCE.findall(text) if name == language]


def example(name: str, heading: str, language: str) -> str:
    """The first code block of a language below a heading of a chapter."""
    return blocks(section(page(name), heading), language)[0]


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a shell block; the parts of a pipe are two."""
    text = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", re.sub(r"\\\n\s*", " ", block))
    for line in text.splitlines():
        words: list[str] = []
        redirected = False
        for word in shlex.split(line, comments=True):
            if word in STOPS:
                if words:
                    yield words
                words, redirected = [], word.startswith(">")
            elif redirected:
                redirected = False
            else:
                words.append(word)
        if words:
            yield words
