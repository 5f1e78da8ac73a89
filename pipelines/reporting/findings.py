"""What the tracking store says of an experiment, as plain data and tables; judged elsewhere.

found = findings("quickstart")
found.trials, found.curves, found.results
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config.yaml_text import parse
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, one_line
from pipelines.experiment import Experiment, read_experiment
from pipelines.registry.package import LINEAGE
from pipelines.registry.versions import Registry
from pipelines.tracking.client import connect_existing
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import EXPERIMENT_FILE, OLD_PARETO_TAG, PARETO_TAG, STAGE_TAG
from pipelines.tracking.store import Run, Store
from pipelines.tracking.uri import tracking_uri

CHAIN = ("search", "select", "fit", "evaluate")
"""Stages of which each needs the run of the one before it."""
SAMPLES = "samples.txt"
"""Artifact of the stage sample."""
INACTIVE = "n/a"
"""A searched key of a trial in which it did not apply."""


@dataclass(frozen=True)
class Findings:
    """One pipeline run of an experiment, what its stages hold, and its relatives' results."""

    config: Experiment
    store: Store
    pipeline: Run
    stages: dict[str, Run]
    """The runs that hold the stages' results, by stage; a stage that has not begun is absent."""
    trials: pd.DataFrame
    """A row a trial, by number: run_id, state, reason, bits_per_byte (its best; NaN without one),
    second (of search.second_objective), tokens, steps, seconds, parameters, front, configuration,
    and each searched key's value, INACTIVE where it did not apply."""
    curves: pd.DataFrame
    """A row an evaluation, of every trial and the fit: name, number (-1: none), step, tokens,
    seconds of training, bits_per_byte, best (so far, of train.best_metric)."""
    results: pd.DataFrame
    """A row a training run of the experiment that used its whole budget, one for each seed of a
    configuration: configuration, kind, run_id, seed, bits_per_byte, tokens."""
    version: int | None = None
    """Of the registered model that the fit became."""
    decision: dict[str, str] = field(default_factory=dict)
    """The tags of that version."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """What the fit's model was packaged with: corpus, provenance, hardware."""
    samples: str = ""
    others: int = 0
    """Pipeline runs of the experiment besides this one."""

    @property
    def keys(self) -> list[str]:
        """The searched keys."""
        return list(self.config.search.space)

    @property
    def metric(self) -> str:
        """What the search minimised."""
        return self.config.train.best_metric

    @property
    def winner(self) -> int | None:
        """The trial that was selected; None while none is."""
        return self.outputs("select").get("trial")

    @property
    def fit(self) -> Run | None:
        """The long training run: of the winner, or of train.py where there was no search."""
        return self.stages.get("fit") or self.stages.get("train")

    @property
    def model_uri(self) -> str | None:
        """Of the model that the fit logged."""
        name = "fit" if "fit" in self.stages else "train"
        return self.outputs(name).get("model_uri")

    def outputs(self, stage: str) -> dict[str, Any]:
        """What a stage found; empty while it has not ended."""
        return _outputs(self.stages[stage]) if stage in self.stages else {}

    def configuration(self, values: Mapping[str, Any], tokens: int | None = None) -> str:
        """What `trials` and `results` call the configuration with these values of some keys."""
        base = self.config.training_run().params | ({"train.tokens": tokens} if tokens else {})
        params = {key: encode_param(value) for key, value in (base | dict(values)).items()}
        return _configuration(params, str(self.lineage["corpus"]["fingerprint"]))


def findings(experiment: str) -> Findings:
    """The latest pipeline run of an experiment in the tracking store, finished or not.

    Raises ConfigError if there is none.
    """
    names = [found.name for found in connect_existing().search_experiments()]
    if experiment not in names:
        message = f"{one_line(experiment)}: no such experiment in {tracking_uri()}"
        raise ConfigError(Problem(message, nearest=nearest(experiment, names)))
    store = Store.open(experiment, Path.cwd(), create=False)
    pipelines = store.find("pipeline") if store else []
    searched = [run for run in pipelines if STAGE_TAG.format("search") in run.data.tags]
    if store is None or not pipelines:
        raise ConfigError(f"{one_line(experiment)}: no run of sweep.py or train.py in it yet")
    return findings_of(store, (searched or pipelines)[0].info.run_id)


def findings_of(store: Store, pipeline_run: str) -> Findings:
    """What hangs under one pipeline run. Raises ConfigError if its configuration is gone."""
    pipelines = {run.info.run_id: run for run in store.find("pipeline")}
    pipeline = pipelines[pipeline_run]
    text = store.read_text(pipeline_run, EXPERIMENT_FILE)
    config = read_experiment(parse(text, source=EXPERIMENT_FILE), source=EXPERIMENT_FILE)
    stages = _stages(store, pipeline)
    fits = [*store.find("fit"), *store.find("train")]
    searches = {run.info.run_id: run for run in store.find("search")}
    every = [run for run in store.find("trial") if _parent(run) in searches]
    search = stages["search"].info.run_id if "search" in stages else ""
    own = sorted((run for run in every if _parent(run) == search), key=_number)
    bases = {
        search_run: pipelines.get(_parent(run), pipeline).data.params
        for search_run, run in searches.items()
    }
    corpora = {run.info.run_id: run.data.params.get("corpus", "") for run in searches.values()}
    named = {
        **{
            run.info.run_id: _configuration(
                _filled(run, bases[_parent(run)]), corpora[_parent(run)]
            )
            for run in every
        },
        **{run.info.run_id: _configuration(run.data.params, _read_corpus(run)) for run in fits},
    }
    metric = config.train.best_metric
    results = [_result(run, named, metric) for run in (*every, *fits) if _has_ended(run)]
    found = Findings(
        config=config,
        store=store,
        pipeline=pipeline,
        stages=stages,
        trials=_trials(config, own, named),
        curves=_curves(store, config, own, [stages[s] for s in ("fit", "train") if s in stages]),
        results=_one_for_each_seed(results),
        others=len(pipelines) - 1,
    )
    return _with_model(found, corpora.get(search, ""))


def _with_model(found: Findings, corpus: str) -> Findings:
    """With what became of the fit's model: version, decision, lineage, samples."""
    uri = found.model_uri
    told = ("version.", "mlflow.source.git", "git.")
    tags = {k: v for k, v in found.pipeline.data.tags.items() if k.startswith(told)}
    lineage: dict[str, Any] = {
        "corpus": {"name": found.config.data.corpus, "fingerprint": corpus},
        "provenance": tags,
        "hardware": {},
    }
    version, decision = None, {}
    if uri:
        lineage = found.store.models.read_json(model_id_of(uri), LINEAGE) or lineage
        registry = Registry(found.store.client, found.config.promote.model)
        try:
            versions = [v for v in registry.versions() if v.source == uri]
        except ConfigError:  # nothing is registered by that name yet
            versions = []
        if versions:
            version, decision = int(versions[0].version), dict(versions[0].tags)
    samples = ""
    if "sample" in found.stages and found.outputs("sample"):
        samples = found.store.read_text(found.stages["sample"].info.run_id, SAMPLES)
    return replace(found, version=version, decision=decision, lineage=lineage, samples=samples)


def _stages(store: Store, pipeline: Run) -> dict[str, Run]:
    """The runs of a pipeline's stages, but those that follow an earlier result of another."""
    prefix = STAGE_TAG.format("")
    tags = {k: v for k, v in pipeline.data.tags.items() if k.startswith(prefix)}
    found = {key.removeprefix(prefix): store.client.get_run(run) for key, run in tags.items()}
    for before, name in pairwise(CHAIN):
        if name in found:
            needs = json.loads(found[name].data.tags.get("dca.inputs", "{}")).get("needs", {})
            expected = found[before].info.run_id if before in found else None
            if needs.get(before, expected) != expected:
                del found[name]
    if "evaluate" not in found:
        found.pop("sample", None)
    return found


def _trials(config: Experiment, runs: Sequence[Run], named: Mapping[str, str]) -> pd.DataFrame:
    columns = ["number", "run_id", "state", "reason", "bits_per_byte", "second", "tokens", "steps"]
    columns += ["seconds", "parameters", "front", "configuration", *config.search.space]
    rows = [_trial(config, run, named[run.info.run_id]) for run in runs]
    table = pd.DataFrame(rows, columns=columns, dtype=object)  # or null would become NaN
    reals, integers = ("bits_per_byte", "second", "seconds"), ("tokens", "steps", "parameters")
    kinds = dict.fromkeys(reals, "float") | dict.fromkeys((*integers, "number"), "int")
    return table.astype(kinds | {"front": "bool"}).set_index("number")


def _trial(config: Experiment, run: Run, configuration: str) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    values = json.loads(tags["dca.values"])
    tokens, seconds = int(metrics.get("tokens", 0)), metrics.get("seconds", 0.0)
    parameters = config.training_run(values).model.parameter_count()
    second = {
        "parameters": parameters,
        "bytes_per_second": tokens / seconds if seconds else float("nan"),
        None: float("nan"),
    }[config.search.second_objective]
    state = tags.get("dca.state", "unfinished")
    return {
        "number": _number(run),
        "run_id": run.info.run_id,
        "state": state,
        "reason": tags.get("dca.reason", ""),
        "bits_per_byte": metrics.get(f"best_{config.train.best_metric}", float("nan")),
        "second": second if state == "complete" else float("nan"),
        "tokens": tokens,
        "steps": tokens
        // int(run.data.params.get("train.batch_tokens", config.train.batch_tokens)),
        "seconds": seconds,
        "parameters": parameters,
        "front": "true" in (tags.get(PARETO_TAG), tags.get(OLD_PARETO_TAG)),
        "configuration": configuration,
        **{key: values.get(key, INACTIVE) for key in config.search.space},
    }


def _curves(
    store: Store, config: Experiment, trials: Sequence[Run], fits: Sequence[Run]
) -> pd.DataFrame:
    columns = ["name", "number", "step", "tokens", "seconds", "bits_per_byte", "best"]
    rows = [row for run in trials for row in _curve(store, config, run, f"trial {_number(run)}")]
    rows += [row for run in fits for row in _curve(store, config, run, run.data.tags["dca.kind"])]
    return pd.DataFrame(rows, columns=columns)


def _curve(store: Store, config: Experiment, run: Run, name: str) -> list[dict[str, Any]]:
    run_id, metric = run.info.run_id, config.train.best_metric
    if not run.data.metrics.get("val_bits_per_byte"):
        return []
    evaluated = store.history(run_id, "val_bits_per_byte")
    judged = evaluated if metric == "val_bits_per_byte" else store.history(run_id, metric)
    seconds = store.history(run_id, "seconds")
    batch_tokens = int(run.data.params["train.batch_tokens"])
    best = accumulate((judged[step] for step in evaluated), min)
    return [
        {
            "name": name,
            "number": _number(run),
            "step": step,
            "tokens": step * batch_tokens,
            "seconds": seconds.get(step, float("nan")),
            "bits_per_byte": value,
            "best": so_far,
        }
        for (step, value), so_far in zip(evaluated.items(), best, strict=True)
    ]


def _result(run: Run, named: Mapping[str, str], metric: str) -> dict[str, Any]:
    return {
        "configuration": named[run.info.run_id],
        "kind": run.data.tags["dca.kind"],
        "run_id": run.info.run_id,
        "seed": int(run.data.params["seed"]),
        "bits_per_byte": run.data.metrics.get(f"best_{metric}", float("nan")),
        "tokens": int(run.data.params["train.tokens"]),
        "started": run.info.start_time,
    }


def _one_for_each_seed(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The same configuration and seed trained again is no second opinion: the first one counts."""
    columns = ["configuration", "kind", "run_id", "seed", "bits_per_byte", "tokens", "started"]
    table = pd.DataFrame(rows, columns=columns).dropna(subset="bits_per_byte")
    table = table.sort_values("started", kind="stable").drop(columns="started")
    return table.drop_duplicates(["configuration", "seed"]).reset_index(drop=True)


def _configuration(params: Mapping[str, str], corpus: str) -> str:
    """Equal for runs that differ in nothing but the seed; the text is told by its fingerprint."""
    compared = {k: v for k, v in params.items() if k.startswith(("model.", "train."))}
    return json.dumps([corpus, sorted(compared.items())])


def _filled(run: Run, base: Mapping[str, str]) -> dict[str, str]:
    """A trial's parameters, with what it was trained with where a searched key did not apply."""
    params = run.data.params
    return {k: base.get(k, v) if v == INACTIVE else v for k, v in params.items()}


def _has_ended(run: Run) -> bool:
    """Whether a run used its whole budget, or all that its patience allowed."""
    if run.data.tags["dca.kind"] == "trial":
        return bool(run.data.tags.get("dca.state") == "complete")
    return "dca.outputs" in run.data.tags


def _read_corpus(run: Run) -> str:
    """The fingerprint of the text that a fit has read."""
    read = run.inputs.dataset_inputs if run.inputs else []
    return str(read[0].dataset.digest) if read else ""


def _outputs(run: Run) -> dict[str, Any]:
    return dict(json.loads(run.data.tags.get("dca.outputs", "{}")))


def _parent(run: Run) -> str:
    return str(run.data.tags.get("mlflow.parentRunId", ""))


def _number(run: Run) -> int:
    return int(run.data.tags.get("dca.trial", -1))
