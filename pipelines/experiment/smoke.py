"""A tiny version of an experiment, for --smoke."""

import math

from pipelines.config.section import set_key
from pipelines.config.validation import validate
from pipelines.experiment.config import Experiment, problems

SUFFIX = "-smoke"
"""Of the names of an experiment and a registered model that were shrunk."""
MAX_SEEDS, MAX_BYTES = 2, 1_000_000
"""Replicates of each arm, and bytes of a text of which not all is read anyway."""


def shrink(experiment: Experiment) -> Experiment:
    """The experiment shrunk to a run of seconds through every stage.

    The experiment and the registered model have other names, so that no real champion changes.
    """
    workers = math.lcm(experiment.resources.max_workers, experiment.fit.resources.max_workers)
    train, model, search = experiment.train, experiment.model, experiment.search
    batch = train.seq_len * workers * math.ceil(4 / workers)
    changes = {
        "experiment": experiment.experiment + SUFFIX,
        "promote.model": experiment.promote.model + SUFFIX,
        "model.dim": min(model.dim, 8 * model.heads),
        "model.depth": min(model.depth, 2),
        "train.batch_tokens": batch,
        "train.micro_batch_tokens": None,
        "train.tokens": 12 * batch,
        "train.evals": 4,
        "train.eval_tokens": 4 * train.seq_len,
        "train.log_every_steps": 3,
        "search.trials": min(search.trial_count, 3),
        "search.try_first": search.try_first[:3],
        "search.warm_start": [],
        "fit.tokens": 16 * batch,
        "generate.max_new_tokens": min(experiment.generate.max_new_tokens, 40),
    }
    if max_bytes := experiment.data.max_bytes:
        changes["data.max_bytes"] = min(max_bytes, max(MAX_BYTES, 40 * train.seq_len))
    if experiment.is_study:
        seeds = experiment.replicate_seeds[:MAX_SEEDS]
        curves = {"fit.evals": 4, "fit.eval_tokens": 4 * train.seq_len}
        changes |= {"seeds": list(seeds), **curves}
    data = experiment.model_dump(mode="json")
    for key, value in changes.items():
        set_key(data, key, value)
    return validate(Experiment, data, check=problems)
