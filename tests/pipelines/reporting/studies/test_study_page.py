"""Studies in the page and on the screen, from a store."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, RunInputs

from pipelines import report
from pipelines.comparison.time_to_quality import learning_rates
from pipelines.comparison.values import Interval, Ratio
from pipelines.compat.mlflow import DATASET_CONTEXT_TAG
from pipelines.console.errors import ConfigError
from pipelines.console.progress import Progress
from pipelines.experiment import Experiment, read_experiment
from pipelines.reporting.loading import load_results, results_of
from pipelines.reporting.page import content
from pipelines.reporting.page import publish as module
from pipelines.reporting.page.publish import publish
from pipelines.reporting.page.search_sections import failures_section
from pipelines.reporting.page.study_section import study_sections
from pipelines.reporting.studies.loading import require_arm
from pipelines.reporting.summary import summary
from pipelines.stages.report import show_results
from tests.pipelines.reporting.studies.made import DCA, STANDARD, arm, study
from tests.pipelines.reporting.tables import results_of as tables_of
from tests.pipelines.stored_study import RATE, store_study

ARMS = {"standard": {"model.residual": "standard"}, "dca-2": {"model.dca.last_k": 2}}
GAINS = {"standard": 0.0, "dca-2": 0.05}
TIMES = {"standard": 1.0, "dca-2": 1.2}


@pytest.fixture
def config(data: dict) -> Experiment:
    search = {"space": {RATE: {"choice": [1e-3, 2e-3]}}, "sampler": {"name": "grid"}}
    return read_experiment(data | {"arms": ARMS, "seeds": 3, "search": search}, source="test")


def words(page: str) -> str:
    return re.sub(
        r"<[^>]+>|\s+", " ", re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page, flags=16)
    )


def test_a_study_is_shown_by_its_page_and_its_screen(store, config, monkeypatch, capsys):
    monkeypatch.setattr(content, "DOTS_PER_INCH", 38)
    made = store_study(store, config, GAINS, times=TIMES)
    found = made.compare()
    page = publish(load_results("tiny")).read_text()
    text = words(page)
    assert text.count(found.sentence.replace("<", "&lt;")) == 2  # in the summary, too
    assert "The winner is dca-2 with seed 0, the best on the validation split, of the arm" in text
    for title in ("Comparison of the arms", "The arms in figures", "Leaderboard", "What next"):
        assert f">{title}</h2>" in page
    assert (
        "From the leaderboard on, this page is about dca-2. Trials of its search: 2 compl" in text
    )
    assert "2 (winner)" not in text
    assert page.count("<figure>") >= 4
    assert "the baseline, then the best first. The verdict is that of the Holm test" in text
    assert "<td>dca-2</td><td>model.dca.last_k=2</td>" in page  # what the arm changes
    assert "Add seeds" not in text  # nothing is undecided

    show_results(made.context(""), made.results, None)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "tiny: 2 arms, 4 trials, 6 of 6 trainings"
    assert lines[1].startswith("winner   [dca-2, 0] trial 0, ")
    assert lines[-1] == f"verdict   {found.sentence}"
    assert any(line.split()[:2] == ["dca-2", "better"] for line in lines)


def test_with_another_baseline_a_page_is_written_beside_it(store, config, monkeypatch, capsys):
    monkeypatch.setattr(module, "all_sections", lambda found: study_sections(found)[:1])
    made = store_study(store, config, GAINS, times=TIMES)
    with pytest.raises(ConfigError, match="--baseline: the newest run of the study has not"):
        report.main(["tiny", "--baseline", "dca-2"])
    made.compare()
    waited = []

    class Recorded(Progress):
        def waiting(self, text, **data):
            waited.append((text, self.console.stderr))
            return super().waiting(text, **data)

    monkeypatch.setattr(report, "Progress", Recorded)
    assert report.main(["tiny", "--baseline", "dca-2"]) == 0
    assert waited == [("report: reading the runs", True), ("report: drawing the figures", True)]
    path = capsys.readouterr().out.strip()
    assert path.endswith("runs/reports/tiny/against-dca-2/report.html")
    text = words(Path(path).read_text())
    assert "standard is worse than dca-2 by 0.049 bits per byte" in text
    assert "The baseline of the experiment is standard; the comparison with dca-2 was asked" in text
    assert store.client.list_artifacts(made.pipeline, "report") == []
    with pytest.raises(ConfigError, match=r"got .*dca-3.*did you mean dca-2"):
        report.main(["tiny", "--baseline", "dca-3"])
    with pytest.raises(ConfigError, match="expected the name of an experiment as well"):
        report.main(["--baseline", "dca-2"])


@pytest.mark.extended
@pytest.mark.parametrize("arms", [{}, ARMS])
def test_a_baseline_that_is_no_arm_is_refused_and_nothing_is_written(store, config, tmp_path, arms):
    study = config.replace({"arms": arms, "seeds": 2})
    store_study(store, study, GAINS if arms else {"tiny": 0.1}).compare()
    before = set(tmp_path.rglob("*"))
    expected = "an arm of standard, dca-2, got" if arms else "none: tiny is no study of several"
    with pytest.raises(ConfigError, match=rf"--baseline: expected {expected}"):
        report.main(["tiny", "--baseline", "../../zz"])
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("baseline", ["x", "", "../../zz", "n" * 300])
@pytest.mark.parametrize("arms", [{}, ARMS])
def test_whatever_is_no_arm_is_refused_as_a_baseline_in_one_short_line(config, baseline, arms):
    expected = "an arm of standard, dca-2, got" if arms else "none: tiny is no study of several"
    with pytest.raises(ConfigError, match=rf"--baseline: expected {expected}") as refused:
        require_arm(config.replace({"arms": arms, "seeds": 2}), baseline)
    assert len(str(refused.value)) < 150
    assert "\n" not in str(refused.value)


@pytest.mark.extended
def test_an_unfinished_study_says_how_far_it_is(store, config, capsys):
    made = store_study(store, config, GAINS, ended=4)
    results = results_of(store, made.pipeline)
    assert results.study is None
    assert summary(results)[0] == "The study is unfinished: of 6 trainings 4 ended."
    (section,) = study_sections(results)
    assert "of 6 trainings 4 ended" in section.paragraphs[0]
    assert results.arm == "standard"
    assert results.winner == 0
    show_results(made.context(""), made.results, None)
    assert capsys.readouterr().out.strip().startswith("tiny: 2 arms, 4 trials, 4 of 6 trainings")


@pytest.mark.extended
def test_a_training_of_any_arm_that_failed_is_among_the_failures(store, config):
    made = store_study(store, config, GAINS, ended=4)
    run = made.open_run("fit", ("dca-2", 2))
    store.fail(run, RuntimeError("the disk is full"), command_ends=False)
    (table,) = failures_section(results_of(store, made.pipeline)).tables
    assert ["fit/dca-2/2", "failed", "the disk is full", ""] in map(list, table.rows)


@pytest.mark.extended
def test_of_seeds_alone_the_interval_is_shown(store, config, capsys):
    made = store_study(store, config.replace({"arms": {}, "seeds": 2}), {"tiny": 0.1})
    found = made.compare()
    results = results_of(store, made.pipeline)
    study_section, pictures = study_sections(results)
    assert study_section.points == [found.sentence]
    assert [picture.name for picture in pictures.pictures] == ["study_curves", "rate_curves"]
    assert [len(table.rows) for table in study_section.tables] == [1, 1, 1]
    assert summary(results)[1].startswith(
        "The winner is the model of seed 1, the best on the valid"
    )
    show_results(made.context(""), made.results, None)
    out = capsys.readouterr().out
    assert "tiny: 2 trials, 2 of 2 trainings" in out
    assert "beside" not in out


def paragraphs(config: Experiment, *arms, **settings) -> str:
    results = tables_of(config.of_arm("dca-2"), whole=config, study=study(*arms, **settings))
    return " ".join(study_sections(results)[0].paragraphs)


def test_the_page_says_what_was_trained_on_which_text(config):
    changes = {"data.corpus": "files", "data.path": "/texts/wiki", "data.max_bytes": 4_000_000}
    text = paragraphs(config.replace(changes), STANDARD, DCA)
    assert "The text is files /texts/wiki, of which the first 4,000,000 bytes are read." in text
    assert "A token is a byte." in text
    sizes = config.model, config.train
    model = f"{sizes[0].depth} layers, {sizes[0].dim} wide, {sizes[0].heads} heads, sequences of"
    assert f"The model: {model} {sizes[1].seq_len} bytes, " in text
    assert "Seeds: 0, 1, 2." in text
    searched = config.replace({"search.space": {"model.dim": {"choice": [8, 16]}}})
    wider = searched.replace({"arms": {"standard": {}, "dca-2": {"model.depth": 3}}})
    assert f"The model: {sizes[0].heads} heads, " in paragraphs(wider, STANDARD, DCA)


def test_the_page_has_the_sizes_of_the_splits_that_the_runs_have_recorded(config):
    def recorded(**sizes: int) -> SimpleNamespace:
        inputs = [
            DatasetInput(
                Dataset(split, "0", "local", "{}", profile=json.dumps({"bytes": size})),
                [InputTag(DATASET_CONTEXT_TAG, split)],
            )
            for split, size in sizes.items()
        ]
        return SimpleNamespace(inputs=RunInputs(inputs))

    results = tables_of(config.of_arm("dca-2"), whole=config, study=study(STANDARD, DCA))
    results.stages["fit"] = recorded(training=3_600_000, validation=200_000)
    results.stages["evaluate"] = recorded(test=200_000)
    text = " ".join(study_sections(results)[0].paragraphs)
    assert "Bytes of its splits: training 3,600,000, validation 200,000, test 200,000." in text


def test_the_page_says_whether_the_best_rates_lie_inside_those_tried(config):
    text = paragraphs(config, STANDARD, DCA)
    assert "Each arm has the best of the learning rates 0.001, 0.002, 0.004; none is at an" in text
    ends = arm("ends", 0.1, rates=learning_rates([(1e-3, 2.0), (2e-3, 2.1)], 8.0))
    found = paragraphs(config, STANDARD, ends)
    assert "at an end of those tried of ends (0.001 is the lowest)" in found
    assert "none is at an end" not in found
    one = arm("one", 0.1, rates=learning_rates([(1e-3, 2.0)], 8.0))
    assert "end of them" not in paragraphs(config, STANDARD, one)


def test_the_page_says_that_step_times_are_too_noisy_and_what_seeds_needed_mean(config):
    assert "too noisy" not in paragraphs(config, STANDARD, DCA)
    noisy = arm("b", 0.001, step_time=Ratio(1.2, Interval(0.7, 1.3)))
    text = paragraphs(config, STANDARD, noisy)
    assert "too noisy to compare costs in time: the 95 % interval of b (0.70 to 1.30)" in text
    assert "Each is of 9 turns. They can be measured again on a machine that does nothing" in text
    assert "so many would find a difference of 0.01 with a probability of 80 %" in text


def test_the_page_says_how_the_level_is_spent(config):
    first = paragraphs(config, STANDARD, DCA)
    assert "at the level 0.04" in first
    assert "This is the first look, at 5 seeds; if seeds are added" in first
    later = paragraphs(config, STANDARD, DCA, seeds=((0, 1), (0, 1, 2), tuple(range(5))))
    assert "Verdicts were shown at 2, 3 and now 5 seeds" in later
    once = paragraphs(config, STANDARD, DCA, single_look=True)
    assert "at the level 0.05" in once
    assert "promised a single look, at 5 seeds, which is the only one" in once
    again = paragraphs(config, STANDARD, DCA, seeds=((0, 1), tuple(range(5))), single_look=True)
    assert "at 2 seeds, and no verdict counts after that" in again


def test_the_page_says_what_the_intervals_leave_out_and_what_is_to_be_known_of_an_arm(config):
    text = paragraphs(config, STANDARD, DCA)
    assert (
        "They leave out how well the learning rate and the other searched keys were chosen" in text
    )
    assert "diverged" not in text
    lost = arm("lost", 0.1, bits={0: 2.0, 1: None, 2: None})
    assert "Trainings diverged of lost (2)." in paragraphs(config, STANDARD, lost)


def test_the_page_says_how_long_the_arms_were_trained(config):
    assert "trained with 5 seeds on 1,000 bytes. A pair" in paragraphs(config, STANDARD, DCA)
    tokens = (*DCA.curves[0].tokens[:-1], 1200)
    longer = {seed: curve._replace(tokens=tokens) for seed, curve in DCA.curves.items()}
    arms = STANDARD, arm("longer", 0.1, curves=longer)
    assert "5 seeds on 1,000 to 1,200 bytes. A" in paragraphs(config, *arms)
    in_time = config.replace({"budget": "time"})
    assert "trained with 5 seeds for equal times. A" in paragraphs(in_time, *arms)
    lost = arm("lost", 0.1, bits=dict.fromkeys(range(5)), curves={})
    assert "5 seeds on 1,000 bytes. A" in paragraphs(config, STANDARD, lost)
    planned = f"{config.train.tokens:,}"
    assert f"with 5 seeds on {planned} bytes. Res" in paragraphs(config, lost)


@pytest.mark.parametrize(("name", "split"), [("val", "validation"), ("train", "training")])
def test_the_searches_are_described_by_the_split_that_they_minimised(config, name, split):
    config = config.replace({"train.best_metric": f"{name}_bits_per_byte"})
    results = tables_of(config.of_arm("dca-2"), whole=config, study=study(STANDARD, DCA))
    first, pictures = study_sections(results)
    assert f"The searches, on the {split} split" in " ".join(t.caption for t in first.tables)
    rates = next(one for one in pictures.pictures if one.name == "rate_curves")
    assert f"of an arm's search, on the {split} split" in rates.caption
