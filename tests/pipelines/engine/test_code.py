import shutil
from pathlib import Path

import pytest

from pipelines.engine import code

FIT = ["pipelines.training.loop", "pipelines.stages.fit", "dca.residuals.standard"]
SEARCH = ["pipelines.search.run", "dca.residuals.standard"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, to be changed."""
    for name in code.PROJECT:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(code.ROOT / name, tmp_path / name, ignore=ignored)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


def changed(project: Path, file: str, old: str, new: str) -> dict[str, bool]:
    """Whether a change of a source changes the digests of a search and a fit."""
    before = [code.code_digest(modules) for modules in (SEARCH, FIT)]
    path = project / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = [code.code_digest(modules) for modules in (SEARCH, FIT)]
    path.write_text(text)
    return {name: a != b for name, a, b in zip(("search", "fit"), before, after, strict=True)}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pipelines/training/optimizer.py", '"""', '"""Other words. '),
        ("pipelines/training/schedule.py", "\nimport", "\n# a comment\nimport"),
        ("dca/residuals/standard.py", '"""', '"""Other words. '),
        ("dca/kernels.cpp", "#include", "// other words\n#include"),
        ("pipelines/search/study.py", '"""', '"""Other words. '),
        ("pipelines/console/text.py", "500", "400"),
        ("pipelines/tracking/store.py", "def ", "NUMBER = 1\n\n\ndef "),
        ("pipelines/search/progress.py", "\nfrom", "\nNUMBER = 1\nfrom"),
        ("dca/residuals/value_residual.py", "\nfrom", "\nNUMBER = 1\nfrom"),
    ],
)
def test_words_other_kinds_and_what_only_shows_or_stores_change_no_key(project, file, old, new):
    assert changed(project, file, old, new) == {"search": False, "fit": False}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pipelines/training/optimizer.py", "0.0", "0.1"),
        ("pipelines/training/schedule.py", "0.5", "0.25"),
        ("pipelines/data/batches.py", "lru_cache(maxsize=2)", "lru_cache(maxsize=3)"),
        ("dca/residuals/standard.py", "\nfrom", "\nNUMBER = 1\nfrom"),
        ("dca/kernels.cpp", "#include", "int number = 1;\n#include"),
        ("dca/mix_triton_kernels.py", "\nimport", "\nNUMBER = 1\nimport"),
    ],
)
def test_code_that_trains_changes_the_keys_of_search_and_fit(project, file, old, new):
    assert changed(project, file, old, new) == {"search": True, "fit": True}


def test_code_of_the_search_changes_the_key_of_the_search_alone(project):
    change = ("pipelines/search/study.py", "\nfrom", "\nNUMBER = 1\nfrom")
    assert changed(project, *change) == {"search": True, "fit": False}


def test_a_new_residual_kind_changes_no_other_kinds_key(project):
    before = code.code_digest(FIT)
    (project / "dca/residuals/new_kind.py").write_text("NUMBER = 1\n")
    assert code.code_digest(FIT) == before


def test_a_module_that_is_missing_is_an_error(project):
    with pytest.raises(ModuleNotFoundError, match=r"pipelines\.search\.gone"):
        code.code_digest(["pipelines.search.gone"])


def test_every_exclusion_names_something_and_has_a_reason():
    for name, reason in code.EXCLUDED.items():
        assert code.path_of(name).exists()
        assert len(reason.split()) > 2
