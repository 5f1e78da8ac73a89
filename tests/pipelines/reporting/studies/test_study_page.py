"""Studies in the page and on the screen, from a store."""

import re
from pathlib import Path

import pytest

from pipelines import report
from pipelines.console.errors import ConfigError
from pipelines.experiment import Experiment, read_experiment
from pipelines.reporting.loading import load_results, results_of
from pipelines.reporting.page import content
from pipelines.reporting.page import publish as module
from pipelines.reporting.page.publish import publish
from pipelines.reporting.page.search_sections import failures_section
from pipelines.reporting.page.study_section import study_sections
from pipelines.reporting.summary import summary
from pipelines.stages.report import show_results
from tests.pipelines.reporting.studies.made import DCA, STANDARD, arm, study
from tests.pipelines.reporting.tables import results_of as tables_of
from tests.pipelines.stored_study import RATE, store_study

ARMS = {"standard": {"model.residual": "standard"}, "dca-2": {"model.last_k": 2}}
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
    assert "Trials of dca-2, whose sections begin with the leaderboard: 2 complete" in text
    assert "2 (winner)" not in text
    assert page.count("<figure>") >= 4
    assert "Add seeds" not in text  # nothing is undecided

    show_results(made.context(""), made.results, False)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "tiny: 2 arms, 4 trials, 6 of 6 trainings"
    assert lines[1].startswith("winner   [dca-2, 0] trial 0, ")
    assert lines[-1] == f"verdict   {found.sentence}"
    assert any(line.split()[:2] == ["dca-2", "better"] for line in lines)


def test_with_another_baseline_a_page_is_written_beside_it(store, config, monkeypatch, capsys):
    monkeypatch.setattr(module, "all_sections", lambda found: study_sections(found)[:1])
    made = store_study(store, config, GAINS, times=TIMES)
    with pytest.raises(ConfigError, match="--baseline: the arms have not been compared yet"):
        report.main(["tiny", "--baseline", "dca-2"])
    made.compare()
    assert report.main(["tiny", "--baseline", "dca-2"]) == 0
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


def test_an_unfinished_study_says_how_far_it_is(store, config, capsys):
    made = store_study(store, config, GAINS, ended=4)
    results = results_of(store, made.pipeline)
    assert results.study is None
    assert summary(results)[0] == "The study is unfinished: 4 of 6 trainings have ended."
    (section,) = study_sections(results)
    assert "4 of 6 trainings have ended" in section.paragraphs[0]
    assert results.arm == "standard"
    assert results.winner == 0
    show_results(made.context(""), made.results, False)
    assert capsys.readouterr().out.strip().startswith("tiny: 2 arms, 4 trials, 4 of 6 trainings")


def test_a_training_of_any_arm_that_failed_is_among_the_failures(store, config):
    made = store_study(store, config, GAINS, ended=4)
    run = made.open_run("fit", ("dca-2", 2))
    store.fail(run, RuntimeError("the disk is full"), command_ends=False)
    (table,) = failures_section(results_of(store, made.pipeline)).tables
    assert ["fit/dca-2/2", "failed", "the disk is full", ""] in map(list, table.rows)


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
    show_results(made.context(""), made.results, False)
    out = capsys.readouterr().out
    assert "tiny: 2 trials, 2 of 2 trainings" in out
    assert "beside" not in out


def paragraphs(config: Experiment, *arms, **settings) -> str:
    results = tables_of(config.of_arm("dca-2"), whole=config, study=study(*arms, **settings))
    return " ".join(study_sections(results)[0].paragraphs)


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
    assert "on 1000 bytes" in text.replace(",", "")
    tokens = (*DCA.curves[0].tokens[:-1], 1200)
    curves = {seed: curve._replace(tokens=tokens) for seed, curve in DCA.curves.items()}
    assert "for equal times" in paragraphs(config, STANDARD, arm("longer", 0.1, curves=curves))
