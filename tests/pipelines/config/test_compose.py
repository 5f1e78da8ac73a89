"""Experiments made of several files, and changes from the command line."""

import os
import threading
from pathlib import Path

import pytest

from pipelines import train
from pipelines.config.compose import MAX_FILES
from pipelines.console import progress
from pipelines.console.errors import ConfigError
from pipelines.experiment import Experiment, load, read_experiment
from tests.pages import commands, example

ROOT = Path(__file__).parents[3]
SPACE = """\
search:
  space:
    train.learning_rate: {log_uniform: [1e-3, 1e-2]}
    model.depth: {int: [2, 6]}
    model.dca.last_k: {choice: [1, 2, 4], when: {model.residual: dca}}
"""


def write(folder: Path, **files: str) -> Path:
    """Files by name, `__` for a folder; the path of the last one."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def composed(folder: Path, *overrides: str, grids: bool = False, **files: str) -> Experiment:
    return load([str(write(folder, **files)), *overrides], grids=grids)


def problem(folder: Path, *overrides: str, grids: bool = False, **files: str) -> str:
    with pytest.raises(ConfigError) as error:
        composed(folder, *overrides, grids=grids, **files)
    return str(error.value).replace(f"{folder}/", "")


def test_later_parts_win_and_the_files_own_keys_win_over_all(tmp_path):
    experiment = composed(
        tmp_path,
        a="model: {dim: 16, depth: 2, heads: 2}",
        b="model: {depth: 3, heads: 4}\nseed: 5",
        e="model: {heads: 1}\nextends: [a.yaml, b.yaml]\nexperiment: e",
    )
    assert (
        experiment.model.dim,
        experiment.model.depth,
        experiment.model.heads,
        experiment.seed,
    ) == (16, 3, 1, 5)


def test_the_paths_of_an_experiment_from_a_pipe_are_those_of_the_working_folder(
    tmp_path, monkeypatch
):
    """As of `sweep.py <(make-yaml)`: they were looked for in /dev/fd."""
    write(tmp_path, part="seed: 3")
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    text = f"extends: part.yaml\n{FILE}\ndata: {{corpus: files, path: text.txt}}\n"
    os.write(writer, text.encode())
    os.close(writer)
    found = load([f"/dev/fd/{reader}"])
    os.close(reader)
    assert (found.seed, found.data.path) == (3, f"{tmp_path}/text.txt")


def test_a_pipe_without_a_writer_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.01)
    os.mkfifo(tmp_path / "e.yaml")
    writer = threading.Timer(0.3, (tmp_path / "e.yaml").write_text, ["experiment: e"])
    writer.start()
    assert load([str(tmp_path / "e.yaml")]).experiment == "e"
    writer.join()
    assert f"reading {tmp_path}/e.yaml, 0:00" in capsys.readouterr().err


def test_names_of_parts_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    files = {
        "base": "seed: 7\nmodel: {depth: 2}",
        "model__big": "extends: ../base.yaml\nmodel: {depth: 9}",
        "sub__e": "extends: ../model/big.yaml\nexperiment: e",
    }
    path = write(tmp_path, **files)
    monkeypatch.chdir(path.parent)
    experiment = load(["e.yaml"])
    assert (experiment.seed, experiment.model.depth) == (7, 9)


def test_a_part_that_two_parts_share_counts_where_the_later_one_brings_it(tmp_path):
    experiment = composed(
        tmp_path,
        base="seed: 1",
        a="extends: base.yaml\nseed: 2",
        b="extends: base.yaml",
        e="extends: [a.yaml, b.yaml]\nexperiment: e",
    )
    assert experiment.seed == 1


def test_lists_and_dimensions_are_replaced_as_a_whole_and_null_removes_a_dimension(tmp_path):
    own = (
        "extends: part.yaml\nexperiment: e\nmodel: {attention_windows: [8]}\n"
        "search: {space: {model.depth: {choice: [2, 3]}, model.dca.last_k: null}}"
    )
    experiment = composed(tmp_path, part=f"model: {{attention_windows: [1, null]}}\n{SPACE}", e=own)
    assert experiment.model.attention_windows == (8,)
    space = experiment.model_dump(mode="json", exclude_unset=True)["search"]["space"]
    assert space == {
        "train.learning_rate": {"log_uniform": [0.001, 0.01]},
        "model.depth": {"choice": [2, 3]},
    }


def test_null_removes_no_dimension_that_does_not_exist(tmp_path):
    own = "extends: part.yaml\nexperiment: e\nsearch: {space: {model.dim: null}}"
    assert problem(tmp_path, part=SPACE, e=own).startswith("e.yaml: search.space.model.dim: ")


@pytest.mark.parametrize(
    ("own", "part", "expected"),
    [
        ("extends: e.yaml", "", "e.yaml: extends: cyclic: e.yaml -> e.yaml"),
        (
            "extends: part.yaml",
            "extends: [data/../e.yaml]",
            "part.yaml: extends: cyclic: e.yaml -> part.yaml -> data/../e.yaml",
        ),
        (
            "extends: prat.yaml",
            "",
            "e.yaml: extends: prat.yaml: no such file; did you mean part.yaml?",
        ),
        (
            "extends: date/text.yaml",
            "",
            "e.yaml: extends: date/text.yaml: no such file; did you mean data/text.yaml?",
        ),
        ("extends: part.yaml", "- seed", 'part.yaml: expected keys and values, got ["seed"]'),
        ("extends: part.yaml", "", "part.yaml: expected keys and values, got null"),
        ("extends: part.yaml", "seed: [\n", "part.yaml:2: not valid YAML: "),
        ("extends: data", "", "e.yaml: extends: data: expected a file, got a folder"),
        ("extends: 3", "", "e.yaml: extends: expected a file or a list of files, got 3"),
        ("extends:", "", "e.yaml: extends: expected a file or a list of files, got null"),
        ("extends: ['']", "", 'e.yaml: extends: expected a file or a list of files, got [""]'),
        ("model: {extends: part.yaml}", "", "e.yaml: model.extends: unknown key"),
        ("extend: part.yaml", "", "e.yaml: extend: unknown key; did you mean extends?"),
    ],
)
def test_a_part_that_cannot_be_used_is_one_line_with_the_file_that_names_it(
    tmp_path, own, part, expected
):
    files = {"data__text": "seed: 1", "part": part, "e": f"experiment: e\n{own}"}
    message = problem(tmp_path, **files)
    assert message.startswith(expected)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("length", "names"), [(60, "{0}.yaml"), (40, "[{0}.yaml, {0}.yaml]")])
def test_endless_parts_are_refused_in_seconds(tmp_path, length, names):
    """Each part extends the one before, once or twice: that would be 2**40 files to read."""
    write(tmp_path, p0="seed: 1")
    for i in range(1, length + 1):
        write(tmp_path, **{f"p{i}": f"extends: {names.format(f'p{i - 1}')}"})
    message = problem(tmp_path, e=f"experiment: e\nextends: p{length}.yaml")
    assert message.endswith(f"extends: expected at most {MAX_FILES} files in one experiment")


def test_each_problem_names_the_file_that_contains_its_value(tmp_path):
    lines = problem(
        tmp_path,
        "model.ff_mult=wide",
        data="data: {path: 3}\nmodel: {dim: 1.5}\nseed: x\nsearch: {trials: many}",
        model="model: {dim: 2.5, depht: 1, attention_windows: [1, x]}",
        e="extends: [data.yaml, model.yaml]\nseed: y\n"
        "search: {space: {model.depth: {int: [1, x]}}}",
    ).splitlines()
    assert sorted(line.partition(": input")[0] for line in lines) == [
        "command line: model.ff_mult",
        "data.yaml: data.path",
        "data.yaml: search.trials",
        "e.yaml: experiment: missing",
        "e.yaml: search.space.model.depth.int.1",
        "e.yaml: seed",
        "model.yaml: model.attention_windows.1",
        "model.yaml: model.depht: unknown key; did you mean model.depth?",
        "model.yaml: model.dim",
    ]


def test_problems_between_keys_name_the_file_of_the_wrong_key(tmp_path):
    own = "extends: part.yaml\nexperiment: e"
    assert problem(tmp_path, part="model: {heads: 3}", e=own).startswith("part.yaml: model.heads: ")
    space = "search: {space: {model.heads: {int: [5, 7]}}}"
    assert problem(tmp_path, part=space, e=own).startswith("part.yaml: search.space.model.heads: ")
    message = problem(tmp_path, part="resources: {workers: 3}", e=own)
    assert message.startswith(
        "e.yaml: train.batch_tokens: expected a multiple of workers x seq_len = 3"
    )


def test_a_change_does_not_reach_other_keys_through_an_alias(tmp_path):
    text = "experiment: e\nresources: &r {workers: 2}\nfit: {resources: *r}"
    experiment = composed(tmp_path, "resources.workers=1", e=text)
    assert (experiment.resources.workers, experiment.fit.resources.workers) == (1, 2)


def test_the_documentations_example_composes(tmp_path):
    for path in (ROOT / "experiments").iterdir():
        (tmp_path / path.name).symlink_to(path)
    text = example("configuration", "Compose files", "yaml")
    experiment = composed(tmp_path, mine=text)
    assert (experiment.data.corpus, experiment.model.dim) == ("enwik8", 128)
    assert set(experiment.search.space) == {"train.learning_rate", "model.dca.last_k"}


FILE = f"experiment: e\nmodel: {{depth: 5}}\n{SPACE}  trials: 7\n  scheduler: {{name: none}}\n"


def test_comma_lists_are_a_grid_over_exactly_their_keys(tmp_path):
    grid = (
        "train.learning_rate=1e-4,3e-4",
        "model.residual=dca,standard",
        "model.dca.last_k=1,null # all",
    )
    experiment = composed(tmp_path, *grid, grids=True, e=FILE)
    assert {key: dimension.choice for key, dimension in experiment.search.space.items()} == {
        "train.learning_rate": [1e-4, 3e-4],
        "model.residual": ["dca", "standard"],
        "model.dca.last_k": [1, None],
    }
    assert (experiment.search.sampler.name, experiment.search.trial_count) == ("grid", 8)
    assert experiment.search.scheduler.name == "none"
    assert experiment.model.depth == 5


def test_the_command_line_may_change_the_search_of_its_grid(tmp_path):
    experiment = composed(
        tmp_path,
        *("search.trials=3", "model.depth=1,2", "model.heads=1,2", "search.sampler.name=random"),
        grids=True,
        e=FILE,
    )
    assert (experiment.search.trials, experiment.search.sampler.name) == (3, "random")
    assert set(experiment.search.space) == {"model.depth", "model.heads"}


def test_a_grid_drops_what_belongs_to_the_space_of_the_file(tmp_path):
    text = f"{FILE}  try_first: [{{model.depth: 3}}]\n  warm_start: [before]\n"
    experiment = composed(tmp_path, "model.depth=2,4", grids=True, e=text)
    assert (experiment.search.try_first, experiment.search.warm_start) == ([], [])


RATES = "train.learning_rate: {log_uniform: [1e-4, 1e-2]}"
KINDS = "model.residual: {choice: [standard, dca]}"
KEPT = "model.dca.last_k: {choice: [1, 2], when: {model.residual: dca}}"
TRIED = f"""experiment: e
search:
  space: {{{RATES}, {KINDS}, {KEPT}}}
  try_first:
    - {{train.learning_rate: 0.002, model.residual: dca, model.dca.last_k: 2}}
    - {{train.learning_rate: 0.002, model.residual: standard}}
    - {{model.residual: dca}}
"""


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (
            ["train.learning_rate=0.001"],
            [
                {"model.residual": "dca", "model.dca.last_k": 2},
                {"model.residual": "standard"},
                {"model.residual": "dca"},
            ],
        ),
        (["model.residual=standard"], [{"train.learning_rate": 0.002}]),
        (
            ["search.space.train.learning_rate=null", "model.residual=standard", "search.space={}"],
            [],
        ),
        (
            ["search.try_first=[{model.residual: dca}]", "train.learning_rate=0.001"],
            [{"model.residual": "dca"}],
        ),
    ],
)
def test_a_key_that_is_no_longer_searched_drops_out_of_the_points_to_try_first(
    tmp_path, overrides, left
):
    assert composed(tmp_path, *overrides, e=TRIED).search.try_first == left


def test_a_point_to_try_first_of_the_command_line_is_checked(tmp_path):
    given = ["search.try_first=[{train.learning_rate: 0.002}]", "train.learning_rate=0.001"]
    with pytest.raises(ConfigError, match=r"try_first.0: train.learning_rate is not searched"):
        composed(tmp_path, *given, e=TRIED)


def test_the_documentations_grid_has_four_trials():
    (command,) = commands(example("configuration", "Change on the command line", "bash"))
    _, _, name, *grid = command
    experiment = load([str(ROOT / name), *grid], grids=True)
    assert (experiment.search.sampler.name, experiment.search.trial_count) == ("grid", 4)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.attention_windows=[64,null]", "model.attention_windows", (64, None)),
        ('generate.prompts=["a, b"]', "generate.prompts", ["a, b"]),
        ("generate.prompts=['a', 'b, c']", "generate.prompts", ["a", "b, c"]),
        ('storage="a, b"', "storage", "a, b"),
        ("search.space.model.dim={choice: [8, 16]}", "search.space", None),
        ("promote={model: a, confidence: 0.9}", "promote.model", "a"),
    ],
)
def test_commas_inside_brackets_braces_and_quotes_make_a_value(tmp_path, override, key, value):
    experiment = composed(tmp_path, override, grids=True, e=FILE)
    assert experiment.search.sampler.name == "tpe"
    assert value is None or experiment.get(key) == value


def test_a_key_with_a_value_on_the_command_line_is_no_longer_searched(tmp_path):
    experiment = composed(tmp_path, "model.depth=3", e=FILE)
    assert set(experiment.search.space) == {"train.learning_rate", "model.dca.last_k"}
    assert experiment.model.depth == 3
    experiment = composed(tmp_path, "model={dca: {last_k: 4}, heads: 2}", e=FILE)
    assert set(experiment.search.space) == {"train.learning_rate", "model.depth"}


def test_a_key_that_cannot_apply_with_a_value_of_the_command_line_is_no_longer_searched(tmp_path):
    """In a file that says so itself it is a mistake."""
    rate = "train.learning_rate: {choice: [1e-3, 2e-3]}"
    last = "model.dca.last_k: {choice: [1, 2], when: {model.residual: dca}}"
    file = f"experiment: e\nsearch: {{space: {{{rate}, {last}}}}}\n"
    searched = composed(tmp_path, "model.residual=standard", e=file).search.space
    assert set(searched) == {"train.learning_rate"}
    assert "model.dca.last_k" in composed(tmp_path, "model.residual=dca", e=file).search.space
    wrong = problem(tmp_path, e=f"{file}model: {{residual: standard}}\n")
    assert "last_k.when: it can never apply: model.residual is" in wrong


def test_the_last_change_of_a_key_counts(tmp_path):
    searched = "search.space.model.depth={int: [1, 2]}"
    assert "model.depth" in composed(tmp_path, "model.depth=3", searched, e=FILE).search.space
    assert "model.depth" not in composed(tmp_path, searched, "model.depth=3", e=FILE).search.space
    gone = composed(tmp_path, searched, "search.space.model.depth=null", e=FILE)
    assert "model.depth" not in gone.search.space


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1,2", "seed=1,2: a comma list is a grid, for sweep.py, over a key of model or tr"),
        ("learning_rate=1e-4,3e-4", "needs quotes; did you mean train.learning_rate?"),
        ("data.path=a, b.txt", "text with a comma needs quotes"),
        ("generate.prompts=[a],[b]", "text with a comma needs quotes"),
        ("data.path=a,a", "text with a comma needs quotes"),
        ("model.dpeth=2,4", "needs quotes; did you mean model.depth?"),
        ("model.attention_windows=[64],[8]", "expected a number, a word or null between commas"),
        ("model.depth=2,4,2", "model.depth=2,4,2: expected each value once"),
        ("train.learning_rate=1e-3,0.001", "expected each value once"),
        ("train.weight_decay=0,0.0", "expected each value once"),
        ("model.depth=2,,4", 'model.depth: input should be a valid integer, got "2,,4"'),
        ("model.depth=2,x", "search.space.model.depth: model.depth: input should be a valid int"),
        ("model.residual=dca,standrad", "did you mean standard?"),
        ("train.tokens=4096,8192", "search.space.train.tokens: cannot be searched"),
        ("train.start_from=a,b", "start_from: cannot be searched: trials would no longer be c"),
        ("train.start_from=a,b", "comparable; text with a comma needs quotes"),
        ("fit.resources.workers=1,4", "a list needs brackets, text with a comma needs quotes"),
        ("model.depth=[2,4", "not valid YAML"),
    ],
)
def test_a_comma_list_that_makes_no_grid_is_one_clear_line(tmp_path, override, expected):
    message = problem(tmp_path, override, grids=True, e=FILE)
    assert message.startswith("command line: ")
    assert expected in message
    assert len(message.splitlines()) == 1


def test_a_file_in_a_folder_with_an_equals_sign_is_an_experiment(tmp_path, monkeypatch):
    (tmp_path / "a=b").mkdir()
    write(tmp_path / "a=b", e=FILE)
    monkeypatch.chdir(tmp_path)
    for path in ("a=b/e.yaml", f"{tmp_path}/a=b/e.yaml"):
        assert load([path, "seed=3"]).seed == 3
        assert train._experiment(train._parse([path, "seed=3"]), None).seed == 3
        with pytest.raises(ConfigError, match="its experiment is the version's"):
            train._parse([path, "--from-version", "1"])
    with pytest.raises(ConfigError, match="a: unknown key"):
        load(["a=c/e.yaml"])


def test_the_command_line_extends_nothing(tmp_path):
    message = problem(tmp_path, "extends=part.yaml", part="seed: 1", e=FILE)
    assert message == "command line: extends=part.yaml: expected in a file only"


def test_only_a_sweep_takes_comma_lists(tmp_path):
    assert "is a grid, for sweep.py" in problem(tmp_path, "model.depth=2,4", e=FILE)
    with pytest.raises(ConfigError, match=r"^command line: promote.model=a,b: a comma"):
        read_experiment({"experiment": "e"}, ["promote.model=a,b"], source="version 1")


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("extends: a.yaml", "c.yaml: extends: cyclic: e.yaml -> a.yaml -> b.yaml -> c.yaml -> a."),
        ("extends: none.yaml", "c.yaml: extends: none.yaml: no such file"),
        (
            "extends: [d.yaml, 'https://host/a.yaml']",
            'c.yaml: extends: expected a file of this machine, got "https://host/a.yaml"',
        ),
        ("extends: [" + ", ".join(["d.yaml"] * 50) + "]", "c.yaml: extends: expected at most 50"),
    ],
)
def test_a_problem_of_a_part_names_the_part_that_extends_it(tmp_path, last, message):
    parts = {"a": "extends: b.yaml", "b": "extends: c.yaml", "c": last, "d": "seed: 1"}
    assert problem(tmp_path, **parts, e="extends: a.yaml\nexperiment: e").startswith(message)


def test_an_experiment_has_at_most_fifty_files(tmp_path):
    parts = ", ".join(["d.yaml"] * 49)
    assert composed(tmp_path, d="seed: 3", e=f"experiment: e\nextends: [{parts}]").seed == 3
    more = f"experiment: e\nextends: [{parts}, d.yaml]"
    assert problem(tmp_path, d="seed: 3", e=more).endswith("at most 50 files in one experiment")
