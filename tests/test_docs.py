"""README.md and docs/: commands work as shown, examples run, names and links exist."""

import ast
import importlib
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest
from ruamel.yaml import YAML

from pipelines.data import corpora
from pipelines.experiment import load
from tests.pages import OF_A_SWEEP, PAGES, ROOT, blocks, commands, page
from tests.pipelines.commands import Folder
from tests.pipelines.forked import Command
from tests.pipelines.local_tune import LocalTune
from tests.pipelines.packages import isolated_forked, timed_forked

SOURCES = sorted(p for top in ("dca", "pipelines") for p in (ROOT / top).rglob("*.py"))
pytestmark = pytest.mark.docs
LANGUAGES = {"bash", "text", "python", "yaml"}
OUTSIDE = {
    *("curl", "docker", "kubectl", "pip", "git", "sed", "tar"),
    *("chmod", "mkdir", "mv", "openssl", "scp", "ssh"),
    *("source", "export", "umask", "printf"),
}
"""Programs of a shell, and those that the page in question asks for."""
INSTALLED_BY_THE_PAGE = {"tensorboard", "optuna-dashboard"}
FOLDERS = "dca|pipelines|tests|benchmarks|experiments|notebooks|docs"
TESTED_ELSEWHERE = (
    *("@corpus(", "@residual(", "EQUATIONS[", "ADDED[", "import TrainingRun, train"),
    *OF_A_SWEEP,
)
"""Examples that tests of data, registration, training as a library and reports run."""
MAX_README_LINES, MAX_PICTURE_BYTES = 199, 150_000


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def generator() -> ModuleType:
    """docs/generate.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def tracked() -> list[str]:
    """The files of this project, without those that git ignores."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    return [name for name in names if (ROOT / name).exists()]


def test_the_readme_is_one_page_with_one_picture():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert (ROOT / picture).stat().st_size < MAX_PICTURE_BYTES


def test_every_chapter_is_in_the_readmes_table():
    listed = re.findall(r"^\| \[.*?\]\(docs/(\w+)\.md\) \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_the_links_of_a_page_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_the_names_of_a_page_exist(path):
    assert list(missing_names(path.read_text(), path.parent)) == []


def test_the_names_in_docstrings_and_comments_exist():
    missing = {shown(path): names for path in SOURCES if (names := missing_in_comments(path))}
    assert missing == {}


def missing_in_comments(path: Path) -> list[str]:
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    kinds = (tokenize.STRING, tokenize.COMMENT)
    text = "\n".join(token.string for token in tokens if token.type in kinds)
    return list(missing_names(text, path.parent))


@cache
def names_of_files() -> set[str]:
    return {Path(name).name for name in tracked()}


def missing_names(text: str, folder: Path) -> Iterator[str]:
    """Files, folders and modules of this project that a text names and that are not there."""
    files = names_of_files()
    for name in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w)", text):
        if not (ROOT / name).exists() and not (folder / name).exists():
            yield name
    for name in re.findall(r"(?<![\w/.-])(\w+\.(?:py|cpp|ipynb))\b", text):
        if name not in files:
            yield name
    for name in re.findall(r"(?<![\w./])pipelines(?:\.[a-zA-Z_]\w*)+", text):
        if not (name.endswith(".py") or is_defined(name)):
            yield name


@cache
def is_defined(name: str) -> bool:
    """Whether a dotted name is a package, a module, or defined at the top of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        rest = parts[length:]
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                pattern = rf"^(?:class |def |async def )?{rest[0]}\b" if rest else ""
                return not rest or bool(re.search(pattern, file.read_text(), re.M))
        if place.is_dir():
            return not rest
    return False


def test_every_promise_names_a_test_that_exists():
    """A function in a file of that name."""
    named = re.findall(r"`(\w+\.py)::(\w+)`", page("promises"))
    assert len(named) > 50
    for file, function in named:
        sources = [path.read_text() for path in (ROOT / "tests").rglob(file)]
        assert any(f"\ndef {function}(" in source for source in sources), f"{file}::{function}"


def test_a_promise_without_the_name_of_another_tier_has_a_test_of_make_test():
    away = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        texts = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        of_file = [text for text in texts if text.startswith("pytestmark")]
        for test in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            own = [ast.unparse(mark) for mark in test.decorator_list]
            own = [mark for mark in own if "(" not in mark]  # not those of some parameters
            if re.search(r"mark\.(extended|faults|cluster)\b", " ".join([*of_file, *own])):
                away.add(f"{path.name}::{test.name}")
    for row in page("promises").splitlines():
        tests = set(re.findall(r"`(\w+\.py::\w+)`", row))
        assert "(*" in row or not tests or not tests <= away, row


def test_the_generated_parts_are_those_of_the_code():
    generate = generator()
    marked = "".join(path.read_text() for path in generate.PAGES)
    for name in generate.PARTS:
        assert marked.count(f"<!-- begin {name}") == marked.count(f"<!-- end {name} -->") == 1
    stale = [p.name for p in generate.PAGES if generate.render(p.read_text()) != p.read_text()]
    assert stale == [], "run `make docs`"


def test_the_modules_table_has_every_file_of_the_packages():
    text = page("architecture")
    for name in tracked():
        top, _, rest = name.partition("/")
        if top in ("dca", "pipelines") and not name.endswith("__init__.py"):
            assert f"| `{Path(rest).name}` |" in text, name
    for name in {str(Path(name).parent) for name in tracked() if name.startswith("experiments/")}:
        assert f"`{name}/`" in text, name
    parts = [n for n in tracked() if re.match(r"experiments/(?!cluster)\w+/.*\.yaml$", n)]
    assert [name for name in parts if f"| `{name}` |" not in page("configuration")] == []


def test_every_option_is_documented():
    text = "".join(path.read_text() for path in PAGES)
    folder = ROOT / "pipelines"
    files = [*folder.glob("*.py"), *folder.glob("*/__main__.py"), folder / "console" / "options.py"]
    for file in files:
        options = re.findall(r'add_argument\(\s*"(--[\w-]+)"', file.read_text())
        assert [option for option in options if option not in text] == [], file.name


def shell_commands() -> list[tuple[str, str]]:
    """Every command that a page or a screen on it shows, with the page."""
    found = []
    for path in PAGES:
        text = path.read_text()
        lines = [shlex.join(words) for block in blocks(text, "bash") for words in commands(block)]
        for block in blocks(text, "text"):  # the last lines of a screen
            lines += re.findall(r"^(?:next)? +((?:python|mlflow) .*)$", block, re.M)
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        inline = re.findall(r"`((?:python (?:-m )?pipelines|make |mlflow )[^`]*)`", prose)
        lines += [line for line in inline if "..." not in line]
        found += [(shown(path), line) for line in dict.fromkeys(lines)]
    return found


@pytest.mark.parametrize(("where", "line"), shell_commands())
def test_a_command_that_is_shown_is_valid(where, line):
    for part in split_at(without_variables(line), "--"):
        check(part)


def without_variables(line: str) -> list[str]:
    """The words of a command without the variables set before it."""
    return list(itertools.dropwhile(re.compile(r"\w+=").match, shlex.split(line)))


def split_at(words: Sequence[str], separator: str) -> Iterator[list[str]]:
    """A command, and the one that it hands on after `--`."""
    if separator in words:
        place = list(words).index(separator)
        yield [*words[:place], separator, *words[place + 1 :]]
        yield list(words[place + 1 :])
    elif words:
        yield list(words)


def check(words: list[str]) -> None:
    program, *arguments = words
    for name in arguments:
        if re.match(rf"({FOLDERS})/", name):
            assert (ROOT / name).exists(), name
    if program == "python":
        check_python(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(arguments) <= set(targets)
    elif program == "mlflow":
        from mlflow.cli import cli

        check_click(cli, arguments)
    elif program == "ray":
        from ray.scripts.scripts import cli as ray_cli

        check_click(ray_cli, arguments)
    else:
        assert program in OUTSIDE | INSTALLED_BY_THE_PAGE


def check_python(arguments: list[str]) -> None:
    """A script or a module of ours with options that it takes, on an experiment that is valid."""
    if arguments[0] == "-c":
        compile(arguments[1], "the page", "exec")
        return
    if arguments[0] == "-m":
        module, *rest = arguments[1:]
        assert importlib.util.find_spec(module)
        if module == "pytest":
            return
        script = ROOT / f"{module.replace('.', '/')}.py"
        script = script if script.exists() else script.with_suffix("") / "__main__.py"
    else:
        script, rest = ROOT / arguments[0], arguments[1:]
    text = script.read_text()
    if script.parent != ROOT / "pipelines":
        options = [word for word in rest if word.startswith("--")]
        assert [option for option in options if f'"{option}"' not in text] == []
        return
    command = importlib.import_module(f"pipelines.{script.stem}")
    if not hasattr(command, "_parse"):
        assert not any(word.startswith("--") for word in rest)
        return
    parsed = command._parse(rest)
    changes = getattr(parsed, "arguments", [])
    if script.stem in ("sweep", "train") and not getattr(parsed, "from_version", None):
        inside = [str(ROOT / c) if "=" not in c else c for c in changes]
        load(inside, smoke=parsed.smoke, grids=script.stem == "sweep")


def check_click(group: click.Command, arguments: list[str]) -> None:
    name = ""
    while isinstance(group, click.Group):
        name, *arguments = arguments
        found = group.get_command(click.Context(group), name)
        assert found is not None, name
        group = found
    group.make_context(name, arguments)


def test_the_programs_are_there_once_the_environment_is_activated():
    programs = {words[0] for _, line in shell_commands() if (words := without_variables(line))}
    needed = programs - OUTSIDE - INSTALLED_BY_THE_PAGE - {"make"}
    folder = str(Path(sys.executable).parent)
    assert {program for program in needed if not shutil.which(program, path=folder)} == set()


def test_the_set_up_is_the_same_everywhere():
    for name in ("README.md", "docs/tutorial.md", "CONTRIBUTING.md"):
        first = blocks((ROOT / name).read_text(), "bash")[0]
        assert list(commands(first)) == [["make", "install"], ["source", ".venv/bin/activate"]]


def test_every_block_has_a_language():
    for path in PAGES:
        assert set(re.findall(r"^```(\w*)\n.*?^```$", path.read_text(), re.M | re.S)) <= LANGUAGES


def environment() -> dict[str, str]:
    """That of a shell with the environment activated."""
    plain = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return {**plain, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{plain['PATH']}"}


STUDY = "experiments/residuals.yaml"
"""Its command takes a minute; tests/pipelines/test_whole_study.py runs a study."""


@pytest.mark.extended
def test_the_tutorials_commands_run(tmp_path, monkeypatch):
    """In their order, without Ray."""
    path = tmp_path / "tutorial"
    path.mkdir()
    for name in ("pipelines", "experiments"):
        (path / name).symlink_to(ROOT / name)
    folder, ran = Folder(path), 0
    library = tmp_path / "stdlib"
    library.mkdir()
    for source in Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py"):
        shutil.copy(source, library)  # a tenth of the text, which each command reads
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda _: str(library))
    LocalTune(tmp_path, monkeypatch)
    isolated_forked(monkeypatch)
    timed_forked(monkeypatch)
    for block in blocks(page("tutorial"), "bash"):
        for program, script, *arguments in commands(block):
            if program != "python" or STUDY in arguments:
                continue
            code, out, err = folder.run(Path(script).name, *arguments)
            assert code == 0, f"{script} {shlex.join(arguments)}\n{err}"
            assert "Traceback" not in out + err, script
            ran += 1
    assert ran >= 10
    assert (path / "runs" / "reports" / "quickstart-smoke" / "report.html").is_file()


SNIPPETS = [
    (shown(path), code)
    for path in PAGES
    for code in blocks(path.read_text(), "python")
    if not any(mark in code for mark in TESTED_ELSEWHERE)
]


@pytest.mark.parametrize(("where", "code"), SNIPPETS, ids=[where for where, _ in SNIPPETS])
def test_the_python_examples_run(where, code, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(code)
    process = Command(script, [], tmp_path, environment())
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out


@pytest.mark.parametrize(
    "text", [block for path in PAGES for block in blocks(path.read_text(), "yaml")]
)
def test_the_yaml_examples_are_valid(text, tmp_path):
    for path in (ROOT / "experiments").iterdir():
        (tmp_path / path.name).symlink_to(path)
    if "extends:" not in text:
        text = f"extends: quickstart.yaml\nexperiment: mine\n{text}"
    (tmp_path / "mine.yaml").write_text(text)
    assert load([str(tmp_path / "mine.yaml")]).experiment


def test_the_citation_and_the_licence_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "MIT"
    assert citation["authors"] == project["authors"]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()
    for file in project["license-files"]:
        assert "the DCA-GPT contributors" in (ROOT / file).read_text()
