"""Reading an experiment's results from the tracking store.

    results = load_results("quickstart")
    results.trials, results.curves, results.completed_runs

Used by the stage report, pipelines/report.py and the notebooks.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.compat.mlflow import COMMIT_TAG, PARENT_RUN_TAG, RUNNING, all_pages
from pipelines.config.yaml_text import parse
from pipelines.console.errors import (
    ConfigError,
    DamagedError,
    EditedError,
    GoneError,
    Problem,
    RefusedError,
)
from pipelines.console.text import first_line, nearest
from pipelines.engine.results import json_digest
from pipelines.experiment import Experiment, read_stored
from pipelines.registry.champions import Champions
from pipelines.registry.package import LINEAGE
from pipelines.registry.versions import Registry
from pipelines.reporting.results import INACTIVE, Results, configuration_text
from pipelines.reporting.run_tables import (
    completed_run_table,
    curve_table,
    trial_table,
)
from pipelines.reporting.studies.loading import StudyRuns, require_arm
from pipelines.search.results import read_numbers
from pipelines.search.resume import stored_search
from pipelines.storage.project import command_line, script
from pipelines.tracking.client import RetryingClient, connect_existing
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.models import model_id_of
from pipelines.tracking.provenance import process_has_ended, this_process
from pipelines.tracking.schema import (
    CORPUS_PARAM,
    DIRTY_TAG,
    EVALUATE_KIND,
    EXPERIMENT_FILE,
    FIT_KIND,
    KIND_TAG,
    PIPELINE_KIND,
    PROCESS_TAG,
    SAMPLE_KIND,
    SAMPLES_FILE,
    SEARCH_KIND,
    SELECT_KIND,
    TRAIN_KIND,
    TRIAL_KIND,
    VERSION_PREFIX,
    VersionTags,
    stage_inputs,
    stage_runs,
)
from pipelines.tracking.store import Run, Store
from pipelines.tracking.trials import StoredTrial, configuration_of
from pipelines.tracking.uri import shown_tracking_uri
from pipelines.training.config import with_present_names

STAGE_CHAIN = (SEARCH_KIND, SELECT_KIND, FIT_KIND, EVALUATE_KIND)
"""Stages each of which reads the run of the one before it."""
PROVENANCE_TAGS = (VERSION_PREFIX, COMMIT_TAG, DIRTY_TAG)
"""Prefixes of the tags with a run's commit and package versions."""


def load_results(experiment: str, baseline: str | None = None) -> Results:
    """The results of the pipeline run of an experiment that ran last, finished or not.

    With the arms of a study compared with another baseline than the experiment's, if one is named.
    Raises ConfigError if the tracking store has no such experiment, no pipeline run of it, no arm
    of the baseline's name in it, or no comparison yet.
    """
    client = connect_existing()
    store = Store.open(experiment, Path.cwd(), create=False)  # refuses a deleted one
    if store is None:
        names = [found.name for found in all_pages(client.search_experiments)]
        known = ", ".join(_pipelines(client)) or "none of sweep.py or train.py yet"
        message = f"no such experiment in {shown_tracking_uri()}; experiments: {known}"
        raise ConfigError(Problem(message, source=experiment, nearest=nearest(experiment, names)))
    pipelines = store.find(PIPELINE_KIND)
    if not pipelines:
        message = "no run of sweep.py or train.py in it yet"
        raise ConfigError(Problem(message, source=experiment))
    searched, trained = (
        [run for run in pipelines if _has(run, kind)] for kind in (SEARCH_KIND, TRAIN_KIND)
    )
    some = searched or trained or pipelines  # some of the others only register a model
    latest = max(some, key=_ran_until)
    try:
        return results_of(store, latest.info.run_id, baseline)
    except EditedError:
        raise
    except DamagedError as error:
        again = f"`{command_line(script('sweep.py'))}` (or train.py) with the experiment's file"
        raise DamagedError(f"{error}; {again} writes it again") from None


def experiment_lines() -> list[str]:
    """A line for each experiment of this project, the last one that ran first."""
    lines = []
    for name, pipelines in _pipelines(connect_existing()).items():
        last = pipelines[0]
        ended = time.localtime(min(_ran_until(last) / 1000, time.time()))
        runs = f"{len(pipelines)} pipeline run{'s' if len(pipelines) > 1 else ''}"
        state = f"the newest {time.strftime('%Y-%m-%d %H:%M', ended)}, {last.info.status.lower()}"
        lines.append(f"{name}: {runs}, {state}")
    sweep = command_line(script("sweep.py"))
    return lines or [f"no experiment in {shown_tracking_uri()} yet; {sweep} makes one"]


def _pipelines(client: RetryingClient) -> dict[str, list[Run]]:
    """The pipeline runs of each experiment that has any, of both those first that ran last."""
    names = {one.experiment_id: one.name for one in all_pages(client.search_experiments)}
    query, order = f"tags.`{KIND_TAG}` = '{PIPELINE_KIND}'", ["attributes.start_time DESC"]
    found: dict[str, list[Run]] = {}
    runs = all_pages(client.search_runs, list(names), query, order_by=order)
    for run in sorted(runs, key=_ran_until, reverse=True):
        found.setdefault(names[run.info.experiment_id], []).append(run)
    return found


def _ran_until(pipeline: Run) -> float:
    """When a pipeline ran last, in milliseconds: now, if its command runs on this machine.

    One that is resumed keeps its former end. Of a command of another machine it is not known
    whether it runs or was killed.
    """
    info, process = pipeline.info, pipeline.data.tags.get(PROCESS_TAG, "")
    is_here = process.startswith(f"{this_process().split()[0]} ")
    if info.status == RUNNING and is_here and not process_has_ended(process):
        return math.inf
    return float(info.end_time or info.start_time)


def _has(pipeline: Run, kind: str) -> bool:
    """Whether a stage of that kind has a run."""
    return any(_is_of(path, kind) for path in stage_runs(pipeline.data.tags))


def _is_of(path: str, stage: str) -> bool:
    """Whether an instance of a stage, as `search/arm`, is of that one."""
    return path.split("/")[0] == stage


def results_of(store: Store, pipeline_run: str, baseline: str | None = None) -> Results:
    """The results of one pipeline run, by its run id, and a study's beside this baseline."""
    pipelines = {run.info.run_id: run for run in store.find(PIPELINE_KIND)}
    pipeline = pipelines[pipeline_run]
    text = store.read_text(pipeline_run, EXPERIMENT_FILE)
    whole = read_stored(parse(text, source=EXPERIMENT_FILE), source=EXPERIMENT_FILE)
    if baseline is not None:
        require_arm(whole, baseline)
    ids = stage_runs(pipeline.data.tags)
    runs = {path: store.client.find_run(run_id) for path, run_id in ids.items()}
    found = {path: run for path, run in runs.items() if run}  # of one that is gone there is nothing
    study = StudyRuns(whole, found, store) if whole.is_study else None
    config = study.winner_config if study else whole
    stages = _stage_runs(store, study.of_winner if study else found, config, study)
    own_searches = [run for path, run in found.items() if _is_of(path, SEARCH_KIND)]
    # these may be deleted, and not so their trials
    searches = {run.info.run_id: run for run in (*own_searches, *store.find(SEARCH_KIND))}
    trials = [run for run in store.find(TRIAL_KIND) if _parent(run) in searches]
    fits = [*store.find(FIT_KIND), *store.find(TRAIN_KIND)]
    configurations = _trial_configurations(trials, searches, pipelines, pipeline)
    configurations |= {
        run.info.run_id: configuration_text(configuration_of(run), _corpus_of(run)) for run in fits
    }
    search = stages[SEARCH_KIND].info.run_id if SEARCH_KIND in stages else ""
    own = _trials(store, config, stages[SEARCH_KIND]) if search else []
    own = [one for one in own if one.run_id in configurations]  # others have begun since
    own_fits = [stages[name] for name in (FIT_KIND, TRAIN_KIND) if name in stages]
    table = trial_table(config, own, configurations)
    curves = curve_table(store, config, own, own_fits)
    searched = {key: curves["number"].map(table[key]) for key in config.search.space}
    results = Results(
        config=config,
        store=store,
        pipeline=pipeline,
        stages=stages,
        trials=table,
        curves=curves.assign(**searched),
        completed_runs=completed_run_table(
            [*trials, *fits], configurations, config.train.best_metric
        ),
        other_pipeline_count=len(pipelines) - 1,
        whole=whole if study else None,
        arm=str(study.winner[0]) if study and whole.arms else "",
        study=study.study(baseline) if study else None,
        instances=found if study else {},
    )
    corpus = searches[search].data.params.get(CORPUS_PARAM, "") if search in searches else ""
    return _with_samples(_with_model(results, corpus))


def _stage_runs(
    store: Store, runs: Mapping[str, Run], config: Experiment, study: StudyRuns | None
) -> dict[str, Run]:
    """The runs of a pipeline's stages, without those that follow from another earlier result."""
    stages = dict(runs)
    for before, name in pairwise(STAGE_CHAIN):
        if name in stages:
            needs = stage_inputs(stages[name].data.tags).get("needs", {})
            follows = before not in needs or needs[before] in _identities(store, stages.get(before))
            if not follows or (name == FIT_KIND and not _is_fit_of(config, store, stages, study)):
                del stages[name]
    if EVALUATE_KIND not in stages:
        stages.pop(SAMPLE_KIND, None)
    return stages


def _is_fit_of(
    config: Experiment, store: Store, stages: Mapping[str, Run], study: StudyRuns | None
) -> bool:
    """Whether the fit is that of the selected values, and not of those selected before."""
    selected = store.read_result(stages[SELECT_KIND]) if SELECT_KIND in stages else None
    if not selected:
        return False
    try:
        run = config.fit_run(with_present_names(selected["values"]))
        params = (study.fit_run(run) if study else run).params
    except ConfigError:  # the fit has other workers now, which cannot train these values
        return False
    stored = configuration_of(stages[FIT_KIND])
    return all(
        stored.get(key, encode_param(value)) == encode_param(value)
        for key, value in params.items()
        if key.startswith(("model.", "train."))
    )


def _trials(store: Store, config: Experiment, search: Run) -> list[StoredTrial]:
    """The trials that a search has selected; before it has ended, those in its space."""
    stored = stored_search(store, search.info.run_id, config.search_task(), any_code=True)
    outputs = store.read_result(search) or {}
    if "selection" not in outputs:  # it has not ended, or it has in an older store
        return stored.trials
    numbers = read_numbers(outputs["selection"])
    return [trial for trial in stored.trials if trial.number in numbers]


def _identities(store: Store, run: Run | None) -> set[str]:
    """What the inputs of a stage have for the result of this run: a digest; in older stores the
    run."""
    if run is None:
        return set()
    return {run.info.run_id, json_digest(store.read_result(run))}


def _trial_configurations(
    trials: Sequence[Run],
    searches: Mapping[str, Run],
    pipelines: Mapping[str, Run],
    pipeline: Run,
) -> dict[str, str]:
    """The configuration text of every trial, by run id.

    In an older store a key that did not apply has the value of the search's pipeline run, else of
    `pipeline`.
    """
    found = {}
    for run in trials:
        search = searches[_parent(run)]
        base = configuration_of(pipelines.get(_parent(search), pipeline))
        params = {
            key: base.get(key, value) if value == INACTIVE else value
            for key, value in configuration_of(run).items()
        }
        corpus = search.data.params.get(CORPUS_PARAM, "")
        found[run.info.run_id] = configuration_text(params, corpus)
    return found


def _with_model(results: Results, corpus: str) -> Results:
    """With the lineage of the fit's model, and the version that it became."""
    tags = results.pipeline.data.tags
    lineage: dict[str, Any] = {
        "corpus": {"name": results.config.data.corpus, "fingerprint": corpus},
        "provenance": {k: v for k, v in tags.items() if k.startswith(PROVENANCE_TAGS)},
        "hardware": {},
    }
    uri = results.model_uri
    if uri:
        with suppress(GoneError):
            lineage = results.store.models.read_packaged(model_id_of(uri), LINEAGE) or lineage
    results = replace(results, lineage=lineage)
    registry = Registry(results.store.client, results.config.promote.model)
    try:
        versions = [version for version in registry.versions() if version.source == uri]
    except ConfigError:  # nothing is registered by that name yet
        return results
    champions = Champions(registry)
    try:
        results = replace(
            results,
            champion=champions.state(reconcile=False).champion,
            promotions=champions.promotions(),
        )
    except RefusedError as error:  # of a user who may read the experiment
        logging.getLogger(__name__).warning("the champion is not shown: %s", error)
    if not versions:
        return results
    version, tags = int(versions[0].version), VersionTags.of(versions[0])
    return replace(results, version=version, version_tags=tags)


def _with_samples(results: Results) -> Results:
    if not results.outputs(SAMPLE_KIND):
        return results
    run_id = results.stages[SAMPLE_KIND].info.run_id
    try:
        text = results.store.read_text(run_id, SAMPLES_FILE)
    except DamagedError as error:  # the page has the rest
        text = f"(no samples: {first_line(error)})"
    return replace(results, samples=text)


def _corpus_of(run: Run) -> str:
    """Fingerprint of the corpus that a fit read."""
    read = run.inputs.dataset_inputs if run.inputs else []
    return str(read[0].dataset.digest) if read else ""


def _parent(run: Run) -> str:
    return str(run.data.tags.get(PARENT_RUN_TAG, ""))
