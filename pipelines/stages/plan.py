"""What a sweep would cost: parameters, FLOPs and memory of its trials, and the time of it all.

A few steps of some sizes are timed; the search's schedule is then played through with them, over
random orders of good and bad trials.
"""

import heapq
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler

from pipelines.runtime.cluster import Cluster, slots
from pipelines.runtime.config import Config
from pipelines.runtime.dag import Node, storage_path
from pipelines.runtime.errors import ConfigError
from pipelines.runtime.plain_yaml import flatten
from pipelines.runtime.progress import clock
from pipelines.runtime.tracking import Store
from pipelines.stages import corpus
from pipelines.stages.search import scheduler_of, trials_of
from pipelines.stages.study import STATES, Space, StoredTrial, build_study, may_start
from pipelines.training.probe import Measured, eval_tokens, measure

# Fixed costs in seconds, on two shared cores: TRIAL_SECONDS is measured, the others are split from
# the MLflow times of one tiny sweep.
COMMAND_SECONDS = 4.0
"""Imports, before the first stage and at the end."""
CORPUS_SECONDS = 2.0
"""Reading the 12 MB of python-stdlib through and writing its splits."""
SEARCH_SECONDS = 10.6
"""From the search's start to the first step of a trial: Ray, and the trials' imports."""
TRIAL_SECONDS = 0.42
"""From the last step of a trial to the first of the next on its slot (`make bench-sweep`)."""
FIT_SECONDS = 17.2
"""A fit with several workers less its training: they start, the model is packaged."""
FIT_HERE_SECONDS = 1.5
"""The same with one worker, which trains in the command's own process."""
STAGE_SECONDS = {"evaluate": 6.0, "register": 3.0, "promote": 3.2, "sample": 5.0, "report": 1.2}
"""Of a tiny model: most is a process that loads torch. What evaluate reads comes on top."""

SIMULATED_TRIALS = 400
"""Trials played through in all."""
MOST_ORDERS = 40
TIMED_SIZES = 3
"""Sizes whose steps are timed: the smallest, the largest, and between."""
LEARNERS = ("tpe", "gp", "cmaes")
"""Samplers of which nobody knows beforehand what they will propose."""
SIZE_KEYS = ("model.", "train.batch_tokens", "train.micro_batch_tokens")


HEADER: tuple[str, ...] = ("", "parameters", "FLOPs", "memory", "step", "time")


@dataclass(frozen=True)
class Outcome:
    """One way in which the search may go."""

    seconds: float
    flops: float
    winner: Config
    trials: int


class Prices:
    """Seconds of a step and of an evaluation by the FLOPs of a step, between the measured ones."""

    def __init__(self, configs: Sequence[Config], at_once: int) -> None:
        ordered = sorted({step_flops(config): config for config in configs}.items())
        picks = np.linspace(0, len(ordered) - 1, min(TIMED_SIZES, len(ordered))).round()
        self.sizes = [ordered[int(pick)][1] for pick in picks]
        self.flops = [step_flops(config) for config in self.sizes]
        self.measured: list[Measured] = measure(self.sizes, at_once=at_once)

    def step_seconds(self, config: Config) -> float:
        """Of one optimizer step."""
        return self._between(config, [one.step_seconds for one in self.measured])

    def eval_seconds(self, config: Config) -> float:
        """Of one evaluation."""
        return self._between(config, [one.eval_seconds for one in self.measured])

    def run_seconds(self, config: Config) -> float:
        """Of a whole training run, start-up left out."""
        train = config.train
        evaluations = len(train.eval_steps) * self.eval_seconds(config)
        return train.steps * self.step_seconds(config) + evaluations

    def _between(self, config: Config, values: list[float]) -> float:
        return float(np.interp(step_flops(config), self.flops, values))


def step_flops(config: Config) -> float:
    """FLOPs of one optimizer step, over all workers."""
    train = config.train
    return 3.0 * config.model.flops_per_token(train.seq_len) * train.batch_tokens


def estimate(
    config: Config, nodes: Sequence[Node], cluster: Cluster, say: Callable[[str], Any]
) -> list[str]:
    """Lines that tell what is left to do and what it takes; none if nothing is.

    Times steps for a minute or so on two cores; `say` hears of it. Training that was left
    unfinished counts from its start, a search from its last evaluations.
    """
    by_name = {node.stage.name: node for node in nodes}
    left = {name for name, node in by_name.items() if not node.reused}
    if not left & {"search", "fit"}:
        return []
    say("timing a few steps of some sizes ...")
    there = corpus.look(config)["bytes"]["validation"]
    config = config.replace({"train.eval_tokens": min(config.train.eval_tokens or there, there)})
    table, notes = [HEADER], []
    if "search" in left:
        outcomes = _searches(config, by_name["search"], cluster, table)
        notes.append(f"search {_range([one.seconds for one in outcomes])}")
    else:
        chosen = (by_name["select"].outputs or {}).get("values", {})
        outcomes = [Outcome(0, 0, config.replace(chosen), 0)]
    seconds = np.array([one.seconds for one in outcomes], dtype=float)
    flops = np.array([one.flops for one in outcomes], dtype=float)
    if "fit" in left:
        fits = [one.winner.fit_config() for one in outcomes]
        training, testing = _fits(fits, table)
        notes.append(f"fit    {_range(training)}")
        scored = [name for name in ("evaluate", "promote") if name in left]  # each by itself
        seconds += training + len(scored) * testing
        flops += [step_flops(one) * one.train.steps for one in fits]
    seconds += COMMAND_SECONDS + CORPUS_SECONDS
    seconds += sum(cost for name, cost in STAGE_SECONDS.items() if name in left)
    notes.append(f"all    {_range(seconds)}, {np.median(flops):.2e} FLOPs")
    if os.environ.get("RAY_ADDRESS"):
        notes.append("steps were timed on this machine, not on the cluster at RAY_ADDRESS")
    return [*_aligned(table), "", *notes]


def _searches(
    config: Config, node: Node, cluster: Cluster, table: list[tuple[str, ...]]
) -> list[Outcome]:
    """Ways in which what is missing of the search may go; adds the timed sizes to the table."""
    stored, before = _stored(config, node)
    most = min(slots(cluster, config.resources), _left(config, stored))
    cpus = config.resources.most * config.resources.cpus_per_worker
    prices = Prices(_sizes(config), max(1, min(most, (os.cpu_count() or 1) // cpus)))
    table += _rows("trial", prices)
    orders = max(5, min(MOST_ORDERS, SIMULATED_TRIALS // config.search.trial_count))
    found = [simulate(config, stored, prices, most, seed, before) for seed in range(orders)]
    return [replace(one, seconds=SEARCH_SECONDS + one.seconds) for one in found]


def _fits(fits: Sequence[Config], table: list[tuple[str, ...]]) -> tuple[Any, Any]:
    """Seconds that each fit takes, and its test split; adds the timed sizes to the table."""
    prices = Prices(fits, 1)
    table += _rows("fit", prices)
    share = corpus.look(fits[0])["bytes"]["test"] / eval_tokens(fits[0])
    fixed = FIT_HERE_SECONDS if fits[0].resources.most == 1 else FIT_SECONDS
    training = [fixed + prices.run_seconds(one) for one in fits]
    return np.array(training), np.array([share * prices.eval_seconds(one) for one in fits])


def simulate(
    config: Config,
    stored: Sequence[StoredTrial],
    prices: Prices,
    at_once: int,
    seed: int,
    before: float = 0.0,
) -> Outcome:
    """Play what is missing of the search through: who runs when, and whom the scheduler stops.

    `before` are the seconds that it has taken so far.

    How good a trial is, is random, and the same at each of its evaluations; with finished trials
    it does as one of them did.
    """
    search = config.search
    if search.sampler.name in LEARNERS:
        changes = {"search.sampler.name": "random", "search.warm_start": [], "seed": seed}
        config = config.replace(changes)
    space, rng = Space(config), random.Random(seed)
    study = build_study(config, space, stored)
    done = [trial for trial in stored if trial.state is not None]
    begun = {trial.number: trial.tokens for trial in stored if trial.state is None}
    models = [trial for trial in done if trial.curve]
    running: dict[int, _Running] = {}
    finished: list[_Running] = []
    scheduler = scheduler_of(
        config, done, lambda number, _: bool(running[int(number)].trial.should_prune())
    )
    queue: list[tuple[float, int]] = []
    left, now, flops = _left(config, stored), 0.0, 0.0
    spent = sum(trial.tokens for trial in done)
    while True:
        while left > 0 and len(queue) < at_once:
            tokens = spent + sum(one.tokens for one in running.values())
            if left <= search.trial_count - len(stored) and not may_start(
                search, tokens, before + now
            ):
                break
            left -= 1
            trial = study.ask()
            sized = _sized(config, space.suggest(trial))
            like = rng.choice(models).curve if models else {}
            one = _Running(trial, sized, begun.get(trial.number, 0), rng.random(), like)
            running[trial.number] = one
            scheduler.on_trial_add(None, one.known)
            start = now + (TRIAL_SECONDS if finished else 0)
            heapq.heappush(queue, (start + one.advance(prices), trial.number))
        if not queue:
            break
        now, number = heapq.heappop(queue)
        one = running[number]
        flops += one.stretch * step_flops(one.config)
        objective = one.objective()
        if search.scheduler.name == "median":
            one.trial.report(objective, one.tokens)
        result = {"curve": [(one.tokens, objective)]}
        stop = scheduler.on_trial_result(None, one.known, result) == TrialScheduler.STOP
        if not stop and one.left:
            heapq.heappush(queue, (now + one.advance(prices), number))
            continue
        one.complete = not one.left
        scheduler.on_trial_remove(None, one.known)
        values = [objective] * len(study.directions)
        study.tell(one.trial, values if one.complete else None, state=_state(one))
        spent += one.tokens
        finished.append(running.pop(number))
    ranked = sorted(finished, key=lambda one: (not one.complete, one.objective()))
    return Outcome(now, flops, ranked[0].config if ranked else config, len(finished))


class _Running:
    """A trial that is played through, from evaluation to evaluation."""

    complete = False

    def __init__(
        self, trial: Any, config: Config, tokens: int, luck: float, like: Mapping[int, float]
    ) -> None:
        self.trial, self.config, self.tokens = trial, config, tokens
        self._luck, self._like = luck, like
        batch = config.train.batch_tokens
        self.left = [s for s in config.train.eval_steps if s * batch > tokens]
        self.left = self.left or config.train.eval_steps[-1:]
        self.stretch = 0
        self.known = SimpleNamespace(config={"number": trial.number}, trial_id=trial.number)

    def advance(self, prices: Prices) -> float:
        """Go to the next evaluation; returns the seconds until it is done."""
        batch = self.config.train.batch_tokens
        step = self.left.pop(0)
        self.stretch = max(0, step - self.tokens // batch)
        self.tokens = step * batch
        steps = self.stretch * prices.step_seconds(self.config)
        return steps + prices.eval_seconds(self.config)

    def objective(self) -> float:
        """What it shows at its last evaluation."""
        reached = [value for tokens, value in self._like.items() if tokens <= self.tokens]
        return (reached[-1] if reached else 0) + self._luck * (0.001 if reached else 1)


def _state(one: _Running) -> Any:
    return STATES["complete" if one.complete else "pruned"]


def _left(config: Config, stored: Sequence[StoredTrial]) -> int:
    return config.search.trial_count - sum(trial.state is not None for trial in stored)


def _stored(config: Config, node: Node) -> tuple[list[StoredTrial], float]:
    """The trials of a search that was begun and is not remembered, and its seconds so far."""
    store = Store.open(config.experiment, storage_path(config), create=False)
    if store is None or node.run is None:
        return [], 0.0
    seconds = store.history(node.run.info.run_id, "seconds").values()
    return trials_of(store, node.run.info.run_id, config), max(seconds, default=0.0)


def _sized(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with those of the values that change what a step costs; as it was if they
    do not go together, which ends a trial at once."""
    changes = {key: value for key, value in values.items() if key.startswith(SIZE_KEYS)}
    with suppress(ConfigError):
        return config.replace(changes)
    return config


def _sizes(config: Config) -> list[Config]:
    """The sizes that random trials of the space have."""
    learns = config.search.sampler.name in LEARNERS
    changes = {"search.sampler.name": "random", "search.warm_start": []} if learns else {}
    drawn = config.replace(changes)
    space = Space(drawn)
    study = build_study(drawn, space, [])
    found: dict[str, Config] = {}
    for _ in range(max(config.search.trial_count, 64)):
        values = space.suggest(study.ask())
        key = repr({k: v for k, v in values.items() if k.startswith(SIZE_KEYS)})
        if key not in found:
            found[key] = _sized(config, values)
    return list(found.values())


def _rows(what: str, prices: Prices) -> list[tuple[str, ...]]:
    values = [dict(flatten(config.model_dump(mode="json"))) for config in prices.sizes]
    keys = [
        k for k in values[0] if k.startswith(SIZE_KEYS) and len({repr(v[k]) for v in values}) > 1
    ]
    rows: list[tuple[str, ...]] = []
    for config, measured in zip(prices.sizes, prices.measured, strict=True):
        label = ", ".join(f"{key.partition('.')[2]} {config.get(key)}" for key in keys)
        rows.append(
            (
                f"{what} {label}".strip(),
                f"{config.model.parameter_count():,}",
                f"{step_flops(config) * config.train.steps:.2e}",
                f"{measured.peak_bytes / 2**20:,.0f} MiB",
                f"{1000 * prices.step_seconds(config):,.0f} ms",
                clock(prices.run_seconds(config)),
            )
        )
    return rows


def _range(seconds: Any) -> str:
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9])
    return f"about {clock(middle)} ({clock(low)} to {clock(high)})"


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in table
    ]
