"""Writes what the documentation and editors show of the code; run by `make docs`.

That is experiments/schema.json and parts of the pages in docs/. A part stands between two comments,
`begin NAME` and `end NAME`. tests/test_docs.py compares the pages with what this writes.
"""

import ast
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.experiment import reference, schema

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SCHEMA = ROOT / "experiments" / "schema.json"
OTHER_FILES = {
    "dca/kernels.cpp": "C++ kernels: the mixing in one pass over the stack; products for decoding.",
    "pipelines/reporting/page/page.html": "Template of the report's page.",
}
"""Files of the packages that are not Python and have no docstring."""


def modules() -> str:
    """A table of modules for each package, from the first sentences of their docstrings."""
    packages = sorted(
        path.parent for top in ("dca", "pipelines") for path in (ROOT / top).rglob("__init__.py")
    )
    return "\n\n".join(_package(folder) for folder in packages)


def training_example() -> str:
    """The example in the docstring of pipelines.training."""
    docstring = _docstring(ROOT / "pipelines" / "training" / "__init__.py")
    code = "\n".join(re.findall(r"^(?: {4}.*)?$", docstring, re.M)).strip("\n")
    return f"```python\n{textwrap.dedent(code)}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "configuration": reference,
    "modules": modules,
    "training_example": training_example,
}


def render(text: str) -> str:
    """A page with its generated parts as they should be."""
    for name, part in PARTS.items():
        pattern = rf"(<!-- begin {name}\b.*?-->\n).*?(<!-- end {name} -->)"
        if re.search(pattern, text, re.S):
            body = part()
            text = re.sub(pattern, lambda m, b=body: f"{m[1]}\n{b}\n\n{m[2]}", text, flags=re.S)
    return text


def _package(folder: Path) -> str:
    about = " ".join(_docstring(folder / "__init__.py").partition("\n\n")[0].split())
    rows = [f"| `{name}` | {text} |" for name, text in _files(folder)]
    title = f"### `{folder.relative_to(ROOT)}/`"
    parts = [title, about, "\n".join(["| module | content |", "|---|---|", *rows]) if rows else ""]
    return "\n\n".join(part for part in parts if part)


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file of a package with one line about it."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield path.name, _first_sentence(_docstring(path))
    for name, text in OTHER_FILES.items():
        if (ROOT / name).parent == folder:
            yield Path(name).name, text


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0].replace("|", "\\|")


def main() -> None:
    """Write the schema and all pages."""
    for path in (*PAGES, SCHEMA):
        before = path.read_text()
        after = render(before) if path in PAGES else f"{json.dumps(schema(), indent=2)}\n"
        if after != before:
            path.write_text(after)
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
