"""compare: the arms of a study beside its baseline, with a verdict about each.

Its run in the tracking store has the table, the figures and what was measured. Every verdict that
was shown is a look at the results: the level is spent over them (pipelines/comparison).
"""

import json
from collections.abc import Sequence
from statistics import mean

from pipelines.comparison import text
from pipelines.comparison.table import compare as compare_arms
from pipelines.console.errors import EditedError, PipelineError
from pipelines.console.text import quote_value
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults, Values, json_digest, to_json
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.results import Compared, Fitted, Probed
from pipelines.reporting.studies.study import Study
from pipelines.search.results import Selected
from pipelines.stages.study.arms import measured_arms
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.descriptions import describe_comparison
from pipelines.tracking.schema import (
    BASIS_TAG,
    COMPARE_KIND,
    COMPARISON_FILE,
    FIGURES_FOLDER,
    LOOKS_TAG,
    MEASURED_FILE,
    SEED_PARAM,
    STEP_TIME,
    arm_metric,
)
from pipelines.tracking.store import Run, Store

Looks = tuple[tuple[int, ...], ...]
METRICS = (
    *("bits_per_byte", "difference", "difference_low", "difference_high", "holm_p", "diverged"),
    *("parameters", STEP_TIME, "tokens_to_quality", "time_to_quality"),
)
"""Columns of the table that are metrics of the run, of each arm."""


def compare(context: Context[Experiment], needs: StageResults) -> Compared:
    """Compare the arms; the table and the figures are artifacts of the stage's run."""
    shown = "compare: the table and the figures"
    with (
        context.progress.working(shown),
        context.progress.watching(lambda: f"  {shown}", stage=COMPARE_KIND),
    ):
        return _compare(context, needs)


def _compare(context: Context[Experiment], needs: StageResults) -> Compared:
    config = context.config
    winner = _winner(needs)
    arms = measured_arms(context.store, config, needs)
    bases, present = _bases(config, needs), tuple(config.replicate_seeds)
    looks = (*_earlier_looks(context.store, context.run_id, bases, present), present)
    probed, settings = needs.get(Probed), config.compare
    found = compare_arms(
        *(arms, config.baseline_arm or config.experiment, looks),
        single_look=settings.single_look,
        smallest_difference=settings.smallest_difference,
    )
    seconds = probed.token_seconds if probed else None
    study = Study(arms, found, looks, settings.single_look, seconds)
    _store(context, study)
    context.store.tag(context.run_id, {BASIS_TAG: bases[-1], LOOKS_TAG: json.dumps(looks)})
    verdicts = {row.arm: row.difference.verdict for row in found.rows if row.difference}
    return Compared(context.run_id, winner, text.sentence(found), verdicts)


def _winner(needs: StageResults) -> Values:
    """The best replicate on the validation split of the arm with the best mean there."""
    bits: dict[Values, dict[Values, float]] = {}
    for values, fitted in needs.all(Fitted).items():
        bits.setdefault(values[:-1], {})[values] = fitted.val_bits_per_byte
    if not bits:
        raise PipelineError("compare: every training diverged; there is no model")
    best = min(bits.values(), key=lambda of_arm: mean(of_arm.values()))
    return min(best, key=lambda values: best[values])


def _bases(config: Experiment, needs: StageResults) -> list[str]:
    """Digests of the baseline's training on this text, to which more seeds are added; the last one
    is stored, the one before it was by earlier versions.

    Other arms may come and go. As in the key with which its trainings are reused, it does not
    matter where the text lies, what the baseline is called, and what options kinds have that it
    does not train.
    """
    arm = (config.baseline_arm,) if config.arms else ()
    base = config.of_arm(config.baseline_arm) if config.arms else config
    run, text = base.fit_run(needs.all(Selected)[arm].values), needs[PreparedCorpus].fingerprint
    params, own = run.params, run.identity
    del params[SEED_PARAM], own[SEED_PARAM]
    own = {key: value for key, value in own.items() if not key.startswith("data.")}
    return [json_digest([arm, text, params]), json_digest([len(arm), text, own])]


def _earlier_looks(
    store: Store, run_id: str, bases: Sequence[str], present: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """The other seeds with which a verdict was shown, in the order in which they were.

    Whatever the order of its seeds, a look is one. Verdicts of results that were discarded since
    have been shown, too.
    """
    runs = [run for basis in bases for run in store.find_all(COMPARE_KIND, basis)[::-1]]
    looks = [look for run in runs if run.info.run_id != run_id for look in _looks_of(run)]
    return [seeds for seeds in dict.fromkeys(looks) if set(seeds) != set(present)]


def _looks_of(run: Run) -> list[tuple[int, ...]]:
    """The looks that a run has stored, each with its seeds in order.

    Raises EditedError if its tag is not what was written.
    """
    text = run.data.tags.get(LOOKS_TAG, "[]")
    try:
        return [tuple(sorted(map(int, seeds))) for seeds in json.loads(text)]
    except (TypeError, ValueError):
        where = f"run {run.info.run_id}: tag {LOOKS_TAG}"
        expected = "expected the seeds of each look, as in [[0, 1], [0, 1, 2]]"
        message = f"{where}: {expected}, got {quote_value(text)}; set it again in MLflow"
        raise EditedError(message) from None


def _store(context: Context[Experiment], study: Study) -> None:
    """The table, what was measured and the figures as artifacts of the run; metrics of each arm."""
    store, run_id, found = context.store, context.run_id, study.comparison
    for kind, write in (("csv", text.to_csv), ("md", text.to_markdown), ("json", text.to_json)):
        store.log_text(run_id, write(found), COMPARISON_FILE.format(kind))
    store.log_text(run_id, json.dumps(to_json(study)), MEASURED_FILE)
    store.describe(describe_comparison(text.to_markdown(found), context.pipeline_run), run_id)
    metrics = {
        arm_metric(column, line["arm"]): float(line[column])
        for line in text.columns(found)
        for column in METRICS
        if line[column] is not None
    }
    store.log_metrics(run_id, metrics)
    _draw(context, study)


def _draw(context: Context[Experiment], study: Study) -> None:
    from pipelines.reporting.page.study_section import study_pictures  # with matplotlib
    from pipelines.reporting.results import split_of

    split = split_of(context.config.train.best_metric)
    with scratch_folder() as scratch:
        for picture in study_pictures(study, split):
            picture.save(scratch)
        context.store.log_files(context.run_id, scratch, FIGURES_FOLDER)


STAGE = Stage(
    name=COMPARE_KIND,
    result=Compared,
    run=compare,
    depends_on=("corpus", "search", "select", "probe", "fit", "evaluate"),
    config_keys=("arms", "baseline", "seeds", "compare"),
    modules=lambda _: ("pipelines.stages.study.compare",),
)
