"""The summary of a report: most important key, evidence for the winner, reproduction.

Also the two tables behind it: what differs from the defaults, and what was trained with several
seeds. Used by the page and the notebooks.
"""

import json
from contextlib import suppress
from typing import Any

from pipelines.comparison.text import sentence
from pipelines.console.errors import ConfigError
from pipelines.console.text import counted
from pipelines.experiment import FIELDS
from pipelines.reporting.commands import reproduction_command
from pipelines.reporting.importance import Importance, importance
from pipelines.reporting.results import Results
from pipelines.reporting.statistics import (
    CONFIDENCE,
    TopTwo,
    compare_top_two,
    ranking,
    resolved_values,
    seed_statistics,
)
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import BEST_METRIC, TRAIN_KIND, TRAIN_TOKENS_PARAM, Provenance
from pipelines.tracking.trials import configuration_of
from pipelines.training.config import TrainingRun

FEW_TRIALS = 20
"""With fewer trials the importance is called a hint."""


def summary(results: Results, known: Importance | None = None) -> list[str]:
    """Three sentences: the most important key, the evidence for the winner, how to reproduce it.

    Of a study instead of the first two its verdict, and what the gate says of the winner. `known`
    is the importance where it was computed already.
    """
    if results.whole:
        return [*_study_sentences(results), _reproduction_sentence(results)]
    return [
        _importance_sentence(known or importance(results)),
        _evidence_sentence(results),
        _reproduction_sentence(results),
    ]


def _study_sentences(results: Results) -> list[str]:
    """The verdict of a study, and what became of its winner."""
    if results.study is None:
        ended, count = results.trainings
        return [f"The study is unfinished: of {counted(count, 'training')} {ended} ended."]
    *arm, seed = results.winning_values
    name = f"{arm[0]} with seed {seed}" if arm else f"the model of seed {seed}"
    of_arm = ", of the arm that is the best there" if arm else ""
    return [
        sentence(results.study.comparison),
        f"The winner is {name}, the best on the validation split{of_arm}; {gate_phrase(results)}.",
    ]


def _importance_sentence(known: Importance) -> str:
    if known.obstacle:
        return f"The most important hyperparameter cannot be determined: {known.obstacle}."
    shares = known.shares.dropna()
    first = shares[shares["always"].astype(bool)]
    key, trials, share = first.index[0], int(first["trials"].iloc[0]), first["share"].iloc[0]
    others = [
        f"{name} {100 * row['share']:.0f} %{'' if row['always'] else ' where it applies'}"
        for name, row in shares.drop(key).head(2).iterrows()
    ]
    then = f" (then {', '.join(others)})" if others else ""
    few = "; with so few trials this is only a hint" if trials < FEW_TRIALS else ""
    return (
        f"{key} is the most important hyperparameter: it explains {100 * share:.0f} % of the "
        f"variance between {counted(trials, 'trial')}{then}, compared after {known.tokens:,} bytes "
        f"of training, which all of them reached{few}."
    )


def _evidence_sentence(results: Results) -> str:
    """The gap to the runner-up, the seeds and the gate."""
    if results.winner is None:
        return _sentence_without_winner(results)
    pair = compare_top_two(results)
    best = results.trials.at[results.winner, "bits_per_byte"]
    parts = [f"Trial {results.winner} won with {best:.4f} bits per byte"]
    if pair is None:
        parts.append("without another trial to compare it with")
    else:
        where = f"after {pair.tokens:,} bytes"
        how = "better" if pair.gap >= 0 else "worse"
        parts.append(f"{abs(pair.gap):.4f} {how} than trial {pair.second}, the next, {where}")
        parts.append(_seed_phrase(pair))
    return f"{', '.join(parts)}; {gate_phrase(results)}."


def _sentence_without_winner(results: Results) -> str:
    ranked = ranking(results)
    ranked = ranked[ranked["bits_per_byte"].notna()]
    if len(ranked):
        best = ranked.iloc[0]
        return (
            f"No winner is selected yet: trial {ranked.index[0]}, {best['state']}, leads with "
            f"{best['bits_per_byte']:.4f} bits per byte."
        )
    if results.fit is None:
        return "No winner is selected yet: no trial has a result."
    value = results.fit.data.metrics.get(BEST_METRIC.format(results.metric))
    shown = "has no result yet" if value is None else f"reached {value:.4f} bits per byte"
    return f"There was no search, so there is no winner: one training run {shown}."


def _seed_phrase(pair: TopTwo) -> str:
    if pair.means is None:
        a, b = pair.counts
        seeds = "with one seed each" if max(a, b) < 2 else f"with {a} and {counted(b, 'seed')}"
        return f"{seeds}, too few to exclude chance"
    level = f"{100 * CONFIDENCE:.0f} %"
    verdict = "is better" if pair.low > 0 else "is worse" if pair.high < 0 else "may be no better"
    return (
        f"over {pair.counts[0]} and {counted(pair.counts[1], 'seed')} {pair.means[0]:.4f} against "
        f"{pair.means[1]:.4f}, a difference between {pair.low:.4f} and {pair.high:.4f} with "
        f"{level} confidence, so that it {verdict}"
    )


def gate_phrase(results: Results) -> str:
    """The gate's decision, as half a sentence."""
    tags = results.version_tags
    if results.version is None:
        return "no version is registered yet, so there is no comparison on the test split"
    if tags.gain is not None and tags.min_gain is not None:
        asked = (tags.promote or {}).get("confidence", results.config.promote.confidence)
        confidence = tags.confidence or asked
        verdict = "promoted" if tags.promoted else "not promoted"
        return (
            f"on the test split version {results.version} gains {tags.gain:.4f} bits per byte over "
            f"version {tags.champion}, at least {tags.min_gain:.4f} with {100 * confidence:g} % "
            f"confidence, and was {verdict}"
        )
    return f"version {results.version} {tags.decision or 'has no decision yet'}"


def _reproduction_sentence(results: Results) -> str:
    code = Provenance.of(results.lineage["provenance"])
    at = f" at commit {code.commit[:12]}" if code.commit else ""
    dirty = ", which had uncommitted changes" if code.dirty else ""
    return f"To reproduce it{at}{dirty}: {reproduction_command(results)}"


def changed_from_defaults(results: Results) -> list[tuple[str, str, str]]:
    """Keys of the final training that differ from the defaults: key, default, value.

    As they were recorded; of a training that has not begun, as they will be. None if the fit cannot
    train the winner: its workers may have become others since the trial ran.
    """
    recorded = configuration_of(results.fit) if results.fit else {}
    planned: dict[str, Any] = {}
    if not recorded:
        with suppress(ConfigError):
            planned = _planned(results).params
    params = recorded or {key: encode_param(value) for key, value in planned.items()}
    defaults = {key: encode_param(value) for key, value in FIELDS.items()}
    changed = [key for key, default in defaults.items() if params.get(key, default) != default]
    return [(key, defaults[key], params[key]) for key in changed]


def _planned(results: Results) -> TrainingRun:
    """The final training, as the configuration has it. Raises ConfigError if it is not valid."""
    if TRAIN_KIND in results.stages:
        return results.config.training_run()
    values = {} if results.winner is None else resolved_values(results, results.winner)
    run = results.config.fit_run(values)
    return run.replace({"seed": results.winning_values[-1]}) if results.winning_values else run


def repeated_configurations(
    results: Results,
) -> list[tuple[str, str, int, float, float, float]]:
    """Configurations with several seeds, best first: letter, values, n, mean, low and high.

    The values are those of the keys in which they differ.
    """
    table = seed_statistics(results)
    table = table[table["n"] > 1].sort_values("mean", kind="stable")
    params = [dict(json.loads(str(name))[1]) for name in table.index]
    every = dict.fromkeys(
        [*results.keys, TRAIN_TOKENS_PARAM, *(key for one in params for key in one)]
    )
    differ = [key for key in every if len({one.get(key) for one in params}) > 1]
    keys = differ or [*results.keys, TRAIN_TOKENS_PARAM]
    return [
        (
            chr(ord("A") + place % 26),
            ", ".join(f"{key}={one.get(key)}" for key in keys),
            *(int(row["n"]), row["mean"], row["low"], row["high"]),
        )
        for place, (one, (_, row)) in enumerate(zip(params, table.iterrows(), strict=True))
    ]
