import json
import pickle
import re
import sys
from pathlib import Path

import pytest

from dca import registry
from pipelines.console.errors import PipelineError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import measure_corpus, train_val_splits, write_splits
from pipelines.engine import code
from pipelines.engine.code import changed_module, code_digest, read_sources
from pipelines.engine.stage import Stage
from pipelines.experiment import Experiment, load
from pipelines.stages import evaluate, fit, sample, search, select, train
from pipelines.stages.corpus import CorpusStage
from tests.pipelines import forked

SEARCH = search.search_stage()
STAGES: list[Stage] = [
    SEARCH,
    *(module.STAGE for module in (select, fit, evaluate, sample, train)),
]
TRAINING = {"search", "fit", "train"}
"""Stages whose code trains. The key of select, which follows the search, may change with it."""
EXPERIMENT = load(["model.residual=standard", "search.space={}"])


def digests() -> dict[str, str]:
    return {stage.name: code.code_digest(stage.modules(EXPERIMENT)) for stage in STAGES}


def changed(project: Path, file: str, old: str, new: str) -> set[str]:
    """The stages whose digests a change of a source changes."""
    before, path = digests(), project / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = digests()
    return {name for name in before if before[name] != after[name]}


def sources(*suffixes: str) -> list[Path]:
    files = [path for name in code.PROJECT for path in (code.ROOT / name).rglob("*.*")]
    return [path for path in files if path.suffix in suffixes]


NUMBER = ("\nfrom", "\nNUMBER = 1\nfrom")


def test_a_comment_or_a_docstring_anywhere_changes_no_key(project):
    before = digests()
    for path in sources(".py"):
        text = re.sub(r'^( *)"""(?=\w)', r'\1"""Other words. ', path.read_text(), flags=re.M)
        path.write_text(
            re.sub(r"^(?=(class|def|import|from) )", "# a comment\n\n", text, flags=re.M)
        )
    for path in sources(".cpp"):
        path.write_text(path.read_text().replace("#include", "// a comment\n\n#include"))
    assert digests() == before


def test_what_an_editor_keeps_beside_a_source_is_no_source(project):
    before = code.read_sources()
    (project / "dca" / ".#mix.py").symlink_to("ana@host.17:1")
    (project / "dca" / ".ipynb_checkpoints").mkdir()
    for name in ("#mix.py#", "mix.py~", ".mix.py.swp", ".ipynb_checkpoints/mix-checkpoint.py"):
        (project / "dca" / name).write_text("broken(")
    assert code.read_sources() == before
    assert {"dca/mix.py", "dca/kernels.cpp", "pipelines/training/step.py"} < before.keys()


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("dca/mix.py", ("\nimport", "\nNUMBER = 1\nimport"), "dca/mix.py"),
        ("dca/kernels.cpp", ("#include", "#define NUMBER\n#include"), "dca/kernels.py"),
        ("pipelines/training/step.py", NUMBER, "pipelines/training/step.py"),
        ("dca/mix.py", ("\nimport", "\n# a comment\nimport"), None),
        ("dca/residuals/mhc.py", NUMBER, None),  # another kind
    ],
)
def test_an_edit_of_code_that_trains_is_found_while_a_command_runs(project, file, edit, expected):
    modules = train.STAGE.modules(EXPERIMENT.replace({"model.residual": "dca"}))
    sources = code.read_sources()
    assert code.changed_module(modules, sources) is None
    text = (project / file).read_text()
    assert edit[0] in text
    (project / file).write_text(text.replace(*edit, 1))
    assert code.changed_module(modules, sources) == expected


@pytest.mark.extended
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pipelines/console/text.py", "500", "400"),
        ("pipelines/config/validation.py", "{expected}, got", "{expected}, not"),
        ("pipelines/comparison/config.py", "PROBE_ROUNDS = 9", "PROBE_ROUNDS = 7"),
        ("pipelines/tracking/store.py", *NUMBER),
        ("pipelines/tracking/schema.py", *NUMBER),
        ("pipelines/reporting/statistics.py", *NUMBER),
        ("pipelines/reporting/page/publish.py", *NUMBER),
        ("pipelines/engine/dag.py", *NUMBER),
        ("pipelines/cluster/connection.py", *NUMBER),
        ("pipelines/search/progress.py", *NUMBER),
        ("pipelines/stages/__init__.py", "def ", "def new() -> None: ...\n\n\ndef "),
        ("dca/residuals/value_residual.py", *NUMBER),
        ("dca/residuals/dca.py", *NUMBER),
    ],
)
def test_code_that_shows_stores_or_orders_and_other_kinds_change_no_key(project, file, old, new):
    assert changed(project, file, old, new) == set()


def test_a_studys_statistics_are_in_no_key_of_what_trains():
    found = code.imported_modules(name for stage in STAGES for name in stage.modules(EXPERIMENT))
    in_keys = {name for name in found if name.startswith("pipelines.comparison.")}
    assert in_keys - {f"pipelines.comparison.{code.PACKAGE}"} == {"pipelines.comparison.values"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pipelines/training/optimizer.py", "0.0", "0.1"),
        ("pipelines/training/schedule.py", "0.5", "0.25"),
        ("pipelines/compat/torch.py", "\nimport", "\nNUMBER = 1\nimport"),
        ("pipelines/cluster/workers.py", "RESIZE_SECONDS = 60", "RESIZE_SECONDS = 61"),
    ],
)
def test_code_that_trains_changes_the_keys_of_what_trains(project, file, old, new):
    assert changed(project, file, old, new) - {"select"} == TRAINING


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("pipelines/training/__init__.py", "_MODULES = {", "_MODULES = {'new': 'new',"),
        ("dca/residuals/standard.py", *NUMBER),
        ("dca/architectures/gpt.py", *NUMBER),
        ("dca/kernels.cpp", "#include", "int number = 1;\n#include"),
        ("dca/fused/mix_triton_kernels.py", "\nimport", "\nNUMBER = 1\nimport"),
    ],
)
def test_the_configured_model_its_kernels_and_packages_change_the_keys_of_what_trains(
    project, file, old, new
):
    assert changed(project, file, old, new) >= TRAINING


def test_a_constant_of_the_optimizer_changes_neither_corpus_nor_evaluate(project):
    """The corpus has no key; evaluate imports none of it, and follows a fit that is made anew."""
    assert not CorpusStage().stage.cached
    assert "fit" in evaluate.STAGE.depends_on
    stages = changed(project, "pipelines/training/optimizer.py", "0.0", "0.1")
    assert stages - {"select"} == TRAINING


def test_code_of_a_stage_changes_its_key_alone(project):
    assert changed(project, "pipelines/search/study.py", *NUMBER) == {"search"}
    assert changed(project, "pipelines/registry/score.py", *NUMBER) == {"evaluate"}
    assert changed(project, "pipelines/generate.py", *NUMBER) == {"sample"}


def test_a_new_residual_kind_changes_no_other_kinds_key(project):
    before = digests()
    (project / "dca/residuals/new_kind.py").write_text("NUMBER = 1\n")
    assert digests() == before


def test_a_module_that_is_missing_is_an_error(project):
    with pytest.raises(ModuleNotFoundError, match=r"pipelines\.search\.gone"):
        code.code_digest(["pipelines.search.gone"])


def test_every_exclusion_names_something_and_has_a_reason():
    for name, reason in code.EXCLUDED.items():
        assert code.path_of(name).exists()
        assert len(reason.split()) > 2


def test_no_source_has_an_import_that_is_not_followed():
    """A relative import, or a header of the project's own in C++."""
    hidden = re.compile(r'^\s*(from \.|#include ")', re.M)
    assert [path for path in sources(".py", ".cpp") if hidden.search(path.read_text())] == []


OF_OTHER_STAGES = {
    "pipelines.config.left_out": "what is not searched any more",
    "pipelines.comparison.config": "the section of the stage compare",
    "pipelines.registry.config": "the sections of the stages promote and sample",
    "pipelines.search.config": "the section of the search, whose winner the fit is given",
    "pipelines.search.space": "the same",
}
"""What a fit loads with the experiment and does not use: the search's key has the first and
the last two."""
AROUND_THE_LOOP = {
    "pipelines.cluster.trial": "starts the loop in a trial of Tune, and passes on its rows",
    "pipelines.cluster.memory": "refuses a trial that does not fit its machine",
}
"""What a study's fit loads besides: it runs as a trial, with the loop that is in the key."""
TRIAL = """
import pickle, sys
from pathlib import Path
from pydantic import SecretStr
from pipelines.cluster.trial import Trial

base, corpus, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
trial = Trial.__new__(Trial)
config = {"group": "a", "folder": "trial", "values": {}, "key": SecretStr("")}
trial.setup(config, {"a": (base, folder)}, corpus)
while not trial.step()["done"]:
    pass
trial.cleanup()
import pipelines.cluster.workers  # where it has several
"""
FIT = """
import pickle, sys
from pathlib import Path
from pipelines.console.progress import Progress
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Invocation
from pipelines.search.results import Selected
from pipelines.stages.fit import fit
from pipelines.tracking.store import Store

experiment, corpus, storage = pickle.loads(Path(sys.argv[1]).read_bytes())
store = Store.open("tiny", storage)
pipeline, run = (store.create(kind, kind, kind) for kind in ("pipeline", "fit"))
invocation = Invocation(("pipelines/sweep.py",), Progress())
context = Context(experiment, storage, store, invocation, pipeline, run)
fit(context, StageResults({"corpus": corpus, "select": Selected(0, run, {}, 1.0)}))
"""
OURS = ("dca", "pipelines")
NONE = f"""
import sys
assert not [name for name in sys.modules if name.split(".")[0] in {OURS}]
"""
LOADED = f"""
import json
names = [name for name in sys.modules if name.split(".")[0] in {OURS}]
Path(sys.argv[2]).write_text(json.dumps(names))
"""


def loaded(script: str, given: tuple, folder: Path) -> set[str]:
    """The project's modules in a process after it has run a script; it begins with none."""
    task, names = folder / "task", folder / "names.json"
    task.write_bytes(pickle.dumps(given))
    command = [sys.executable, "-c", NONE + script + LOADED, str(task), str(names)]
    forked.run(command, without=OURS).check_returncode()
    return set(json.loads(names.read_text()))


def unexplained(modules: set[str], stage: Stage, experiment: Experiment) -> set[str]:
    """Modules that are neither in a stage's key, nor excluded, nor of other kinds of model."""
    found = code.imported_modules(stage.modules(experiment))
    found |= {name.removesuffix(f".{code.PACKAGE}") for name in found}
    kinds = (registry.residual, registry.architecture)
    found |= {names.module(name) for names in kinds for name in names.names}
    return {name for name in modules - found if not code.is_excluded(name)}


@pytest.mark.process
def test_what_a_trial_loads_is_in_the_key_or_excluded(experiment, tmp_path):
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, tmp_path)
    given = (experiment.training_run(), train_val_splits(tmp_path, found.fingerprint), tmp_path)
    modules = loaded(TRIAL, given, tmp_path)
    assert {"pipelines.training.optimizer", "dca.mix", "pipelines.cluster.workers"} <= modules
    assert unexplained(modules, SEARCH, experiment) == set()
    # In a study a fit is such a trial, too.
    assert unexplained(modules, fit.STAGE, experiment) == set(AROUND_THE_LOOP)


@pytest.mark.process
def test_what_a_fit_loads_is_in_the_key_or_excluded(experiment, tracking, tmp_path):
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, tmp_path)
    given = (experiment, PreparedCorpus("files", found.fingerprint, found.sizes), tmp_path)
    modules = loaded(FIT, given, tmp_path)
    assert {"pipelines.training.optimizer", "dca.mix"} <= modules
    assert unexplained(modules, fit.STAGE, experiment) == set(OF_OTHER_STAGES)


def test_a_source_that_is_half_edited_is_one_line(project):
    before = read_sources()
    mix = project / "dca" / "mix.py"
    mix.write_text("def half(")
    for work in (
        lambda: code_digest(["dca.mix"]),
        lambda: changed_module(["dca.mix"], before),
    ):
        with pytest.raises(
            PipelineError, match=r"mix\.py:1: a result depends on it, but it is no P"
        ):
            work()
    mix.write_bytes(b"\xff")
    with pytest.raises(PipelineError, match=r"mix\.py: a result depends on it, but it cannot"):
        code_digest(["dca.mix"])
