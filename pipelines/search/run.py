"""search: Ray Tune runs the trials that Optuna proposes, MLflow records them.

The tracking store is the truth. A trial's run is made, with its parameters, before the trial
starts; a search that was killed is rebuilt from these runs and goes on with what is missing.
"""

import tempfile
from contextlib import closing
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial

from pipelines.cluster.capacity import max_concurrent_jobs, require_capacity
from pipelines.cluster.connection import connect
from pipelines.data.splits import train_val_splits
from pipelines.engine.stage import Context, Outputs
from pipelines.search.config import SearchTask
from pipelines.search.recorder import Recorder
from pipelines.search.resume import StoredTrial, earlier_trials, trials_folder
from pipelines.search.schedulers import scheduler_of
from pipelines.search.searcher import StudySearcher
from pipelines.search.space import Space
from pipelines.search.study import build_study
from pipelines.search.trial import Trial

HEAD_NODE = {"node:__internal_head__": 0.001}
"""What a trial takes whose workers take the CPUs: no CPU, or the two would wait for each other."""


def run_trials(
    context: Context[Any],
    task: SearchTask,
    corpus: Outputs,
    stored: list[StoredTrial],
    seconds: float,
) -> None:
    """Let Ray Tune run what is missing of a search, whose `stored` trials took `seconds` so far."""
    fingerprint = corpus["fingerprint"]
    space = Space(task)
    earlier = earlier_trials(task, fingerprint, context.run_id)
    if earlier:
        context.progress.log(f"  learns from {len(earlier)} trials of earlier searches")
    recorder = Recorder(context, task, corpus, space, stored, seconds)
    searcher = StudySearcher(
        build_study(task, space, stored, earlier),
        space,
        task,
        open_run=recorder.open_run,
        stored=stored,
        earlier=len(earlier),
        seconds=seconds,
    )
    recorder.retries = searcher.retries
    left = task.search.trial_count - sum(trial.state is not None for trial in stored)
    trainable = tune.with_parameters(
        Trial,
        base=task.base,
        corpus=train_val_splits(context.storage, fingerprint),
        folder=trials_folder(context),
    )
    with (
        context.progress.working("starting Ray"),
        tempfile.TemporaryDirectory() as scratch,
        closing(recorder),
    ):
        cluster = connect(dashboard=task.base.resources.max_workers > 1)
        _keep_keys()
        require_capacity(cluster, task.base.resources, "resources")
        tuner = tune.Tuner(
            tune.with_resources(trainable, _request(task)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler_of(task, stored, searcher.should_prune),
                num_samples=-1,  # the searcher knows when all are done
                max_concurrent_trials=min(max_concurrent_jobs(cluster, task.base.resources), left),
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=context.run_id,
                storage_path=scratch,  # Tune's own snapshots lag and are never read
                callbacks=[recorder],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError:
            if recorder.refused is None:
                raise
            raise recorder.refused from None


def _keep_keys() -> None:
    """Tune would send AWS's keys along with its actors, and Ray's agents write what is sent into
    their logs. Each node has its own."""
    sent = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in sent if not name.startswith("AWS_")}


def _request(task: SearchTask) -> tune.PlacementGroupFactory:
    if task.base.resources.max_workers > 1:
        return tune.PlacementGroupFactory([HEAD_NODE])
    bundle: dict[str, float] = {"CPU": task.base.resources.cpus_per_worker}
    if task.base.resources.gpus_per_worker:
        bundle["GPU"] = task.base.resources.gpus_per_worker
    return tune.PlacementGroupFactory([bundle])


def _trial_name(trial: TuneTrial) -> str:
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"
