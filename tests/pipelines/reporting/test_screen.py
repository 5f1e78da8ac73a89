from pathlib import Path

import pytest

from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults
from pipelines.registry.results import Fitted, Promoted, Registered, Sampled, Tested
from pipelines.reporting.screen import pareto_lines, screen_lines
from pipelines.search.results import Searched, Selected

RESULTS = {
    "corpus": PreparedCorpus("files", "0" * 32, {"test": 3000}),
    "search": Searched("s", {"complete": 2, "pruned": 1, "failed": 0}, (), ""),
    "select": Selected(
        1, "t", {"train.learning_rate": 0.012345678, "model.dca.last_k": None}, 2.25
    ),
    "fit": Fitted("f", "models:/m", 2.2, 12345, 65536, 61.0, "2"),
    "evaluate": Tested(2.2, "0" * 32, {"gzip": 3.1, "lzma": 2.0}, 0.1234),
    "register": Registered("dca-gpt", 3),
    "promote": Promoted("dca-gpt", 3, "promoted: the first"),
    "sample": Sampled("r"),
}
"""By stage."""
WINNER = "trial 1, 2.2500 bits per byte: train.learning_rate=0.012345678, model.dca.last_k=null"
WHERE = {"storage": "/runs", "script": lambda name: Path("pipelines") / name}


def shown(experiment, page: Path | None = Path("report.html"), **changes: object) -> list[str]:
    results = StageResults(RESULTS | changes)
    return screen_lines(experiment, results, "def generated", **(WHERE | {"page": page}))


def test_the_screen_has_the_result_the_text_and_the_next_commands(experiment):
    lines = shown(experiment)
    assert lines[:4] == [
        "tiny: 3 trials (2 complete, 1 pruned)",
        "winner   trial 1, 2.2500 bits per byte: train.learning_rate=0.012345678, "
        "model.dca.last_k=null",
        "trained  12,345 parameters on 65,536 bytes with 2 workers in 1:01, validation 2.2000 bits "
        "per byte",
        "gate     version 3 promoted: the first",
    ]
    start = lines.index("bits per byte of the test split (3,000 bytes of files)")
    assert [line.split()[-1] for line in lines[start + 1 : start + 4]] == ["lzma", "3", "gzip"]
    assert lines[start + 4] == (
        "12.3 % of the test bytes lie in strings of 64 bytes that the training text has too"
    )
    assert "def generated" in lines
    assert "champion  models:/dca-gpt@champion (version 3)" in lines
    assert "report    report.html" in lines
    assert "python pipelines/generate.py --model dca-gpt --prompt" in lines[-1]


def test_a_result_of_an_earlier_version_says_nothing_of_the_training_text(experiment):
    lines = shown(experiment, evaluate=Tested(2.2, "0" * 32, {"gzip": 3.1}))
    assert not any("training text" in line for line in lines)


def test_one_worker_is_singular(experiment):
    fit = Fitted("f", "models:/m", 2.2, 12345, 65536, 61.0, "1")
    assert "with 1 worker in 1:01" in shown(experiment, fit=fit)[2]


def test_without_a_champion_the_commands_use_the_version(experiment):
    lines = shown(experiment, promote=Promoted("dca-gpt", None, "kept"))
    (champion,) = [line for line in lines if line.startswith("champion")]
    assert champion.endswith("python pipelines/promote.py promote --model dca-gpt 3")
    assert "--model dca-gpt/3 --prompt" in lines[-1]


def test_without_a_page_its_line_is_left_out(experiment):
    assert not any(line.startswith("report ") for line in shown(experiment, None))


STAGES = list(RESULTS)
CORPUS = f"tiny: corpus files {'0' * 32}: 3,000 bytes test"
TRIALS = "tiny: 3 trials (2 complete, 1 pruned)"


@pytest.mark.parametrize(
    ("until", "first", "last"),
    [
        ("corpus", [CORPUS], "mlflow ui"),
        ("search", [TRIALS, "winner   trial 1, 2.2500 bits per byte: the"], "mlflow ui"),
        ("select", [TRIALS, "winner   trial 1, 2.2500 bits per byte: train"], "mlflow ui"),
        ("fit", [TRIALS, "winner", "trained", "model    models:/m, not"], "--model models:/m "),
        ("evaluate", [TRIALS, "winner", "trained", "model", ""], "--model models:/m --prompt"),
        ("register", [TRIALS, "winner", "trained", "gate     version 3 not decided"], "dca-gpt/3 "),
        ("promote", [TRIALS, "winner", "trained", "gate     version 3 promoted"], "dca-gpt --"),
    ],
)
def test_the_screen_has_the_results_up_to_any_stage(until, first, last, experiment, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results = {name: RESULTS[name] for name in STAGES[: STAGES.index(until) + 1]}
    chosen = Selected(1, "t", {}, 2.25) if until == "search" else None
    lines = screen_lines(
        experiment, StageResults(results), "", chosen=chosen, **(WHERE | {"page": None})
    )
    for line, start in zip(lines, first, strict=False):
        assert line.startswith(start)
    assert last in lines[-1]
    assert "" not in (lines[0], lines[-1])
    assert any("this model" in line for line in lines) == (until == "evaluate")


@pytest.mark.parametrize(
    ("second", "lines"),
    [
        (None, []),
        (
            "bytes_per_second",
            [
                "Pareto front of bits per byte and bytes per second: the trials not dominated",
                "    2.0000         30,000  trial 2",
                "    2.5000         40,000  trial 3",
            ],
        ),
    ],
)
def test_the_screen_shows_the_front_where_there_are_two_objectives(experiment, second, lines):
    search = {"second_objective": second, "scheduler": {"name": "none"}}
    config = experiment.replace({"search": search})
    assert pareto_lines(config, [(2, 2.0, 30_000.0), (3, 2.5, 40_000.0)]) == lines


def test_the_arms_of_a_study_that_cannot_be_compared_have_their_results_all_the_same(experiment):
    arms = {"plain": {}, "grn": {"model.residual": "grn_v2"}, "deep": {"model.depth": 3}}
    study = experiment.replace({"arms": arms, "seeds": [0, 1]})
    tested = {("plain", 0): 2.25, ("plain", 1): 2.75, ("deep", 0): 2.0}
    instances = {
        "search": {(arm,): RESULTS["search"] for arm in ("plain", "deep")},
        "select": {(arm,): RESULTS["select"] for arm in ("plain", "deep")},
        "fit": dict.fromkeys(tested, RESULTS["fit"]),
        "evaluate": {values: Tested(bits, "0" * 32, {}) for values, bits in tested.items()},
    }
    corpus = {"corpus": RESULTS["corpus"]}
    lines = screen_lines(study, StageResults(corpus, instances), "", page=None, **WHERE)
    chosen = [f"winner   [{arm}] {WINNER}" for arm in ("plain", "deep")]
    assert lines[:7] == [
        "tiny: 3 arms, 2 of them searched, 6 trials, 3 of 6 trainings",
        "",
        *chosen,
        "bits per byte of the test split, arms that are not compared yet",
        "   2.500  plain, mean of 2 trainings",
        "   2.000  deep, mean of 1 training",
    ]
    del instances["evaluate"]
    lines = screen_lines(study, StageResults(corpus, instances), "", page=None, **WHERE)
    assert lines[4:6] == [
        "bits per byte of the validation split, arms that are not compared yet",
        f"  {RESULTS['fit'].val_bits_per_byte:6.3f}  plain, mean of 2 trainings",
    ]
    del instances["fit"], instances["select"][("deep",)]
    lines = screen_lines(study, StageResults(corpus, instances), "", page=None, **WHERE)
    assert lines[2:4] == [chosen[0], ""]
