"""What a report says in words: three sentences that sum it up, and the commands that go on."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.yaml_text import PLAIN_WORD
from pipelines.experiment import FIELDS
from pipelines.reporting.findings import Findings
from pipelines.reporting.judgement import (
    CONFIDENCE,
    Duel,
    Importance,
    duel,
    importance,
    over_seeds,
    ranking,
    whole,
)
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.uri import tracking_uri

FEW_TRIALS = 20
"""Below which importance is called a hint."""
SEEDS = 4
"""More seeds to train the winner and the runner-up with."""
MORE = 4
"""Times the budget that "longer" means."""


@dataclass(frozen=True)
class Command:
    """Something to run next."""

    purpose: str
    lines: list[str]


def summary(found: Findings, known: Importance | None = None) -> list[str]:
    """Which hyperparameter mattered most, how sure the win is, how to reproduce it."""
    return [_what_mattered(known or importance(found)), _how_sure(found), _how_again(found)]


def _what_mattered(known: Importance) -> str:
    shares = known.shares.dropna()
    if known.note or shares.empty:
        reason = known.note or "no key could be compared"
        return f"Which hyperparameter mattered most cannot be said: {reason}."
    first = shares[shares["always"]] if shares["always"].any() else shares
    key, trials, share = first.index[0], int(first["trials"].iloc[0]), first["share"].iloc[0]
    others = [
        f"{name} {100 * row['share']:.0f} %{'' if row['always'] else ' where it applies'}"
        for name, row in shares.drop(key).head(2).iterrows()
    ]
    then = f" (then {', '.join(others)})" if others else ""
    few = "; with so few trials that is a hint" if trials < FEW_TRIALS else ""
    return (
        f"{key} mattered most: it explains {100 * share:.0f} % of the differences between "
        f"{trials} trials{then}, judged after {known.tokens:,} bytes of training, which "
        f"all of them reached{few}."
    )


def _how_sure(found: Findings) -> str:
    """The gap, the seeds and the gate, in one sentence."""
    if found.winner is None:
        return _so_far(found)
    pair = duel(found)
    best = found.trials.at[found.winner, "bits_per_byte"]
    parts = [f"Trial {found.winner} won with {best:.4f} bits per byte"]
    if pair is None:
        parts.append("there was no other trial to beat")
    else:
        where = f"after {pair.tokens:,} bytes"
        how = "better" if pair.gap >= 0 else "worse"
        parts.append(f"{abs(pair.gap):.4f} {how} than trial {pair.second}, the next, {where}")
        parts.append(_over_seeds(pair))
    return f"{', '.join(parts)}; {gate(found)}."


def _so_far(found: Findings) -> str:
    ranked = ranking(found)
    ranked = ranked[ranked["bits_per_byte"].notna()]
    if len(ranked):
        best = ranked.iloc[0]
        return (
            f"Nothing has won yet: trial {ranked.index[0]}, {best['state']}, leads with "
            f"{best['bits_per_byte']:.4f} bits per byte."
        )
    if found.fit is None:
        return "Nothing has won yet: no trial has a result."
    value = found.fit.data.metrics.get(f"best_{found.metric}")
    shown = "has no result yet" if value is None else f"reached {value:.4f} bits per byte"
    return f"There was no search, so nothing has won: one training run {shown}."


def _over_seeds(pair: Duel) -> str:
    if pair.means is None:
        most = max(pair.counts)
        seeds = (
            "with one seed each"
            if most < 2
            else f"with {pair.counts[0]} and {pair.counts[1]} seeds"
        )
        return f"{seeds}, which does not tell a better configuration from a lucky one"
    level = f"{100 * CONFIDENCE:.0f} %"
    sure = "is better" if pair.low > 0 else "is worse" if pair.high < 0 else "may be no better"
    return (
        f"over {pair.counts[0]} and {pair.counts[1]} seeds {pair.means[0]:.4f} against "
        f"{pair.means[1]:.4f}, a difference between {pair.low:.4f} and {pair.high:.4f} with "
        f"{level} confidence, so that it {sure}"
    )


def gate(found: Findings) -> str:
    """What the gate decided, in half a sentence."""
    tags = found.decision
    if found.version is None:
        return "no version has been registered, so no gate has looked at the test text"
    if "gate.least_gain" in tags:
        confidence = _promote(tags).get("confidence", found.config.promote.confidence)
        verdict = "promoted" if tags.get("gate.promoted") == "true" else "not promoted"
        return (
            f"on the test text version {found.version} gains {float(tags['gate.gain']):.4f} bits "
            f"per byte over version {tags['gate.champion']}, at least "
            f"{float(tags['gate.least_gain']):.4f} with {100 * confidence:g} % confidence, and was "
            f"{verdict}"
        )
    decision = tags.get("gate.decision", "has not been decided about")
    return f"version {found.version} {decision}"


def _promote(tags: Mapping[str, str]) -> dict[str, Any]:
    return dict(json.loads(tags.get("promote", "{}")))


def _how_again(found: Findings) -> str:
    again = _train(found) if found.model_uri else _sweep(found)
    commit = str(found.lineage["provenance"].get("mlflow.source.git.commit", ""))
    at = f" at commit {commit[:12]}" if commit else ""
    dirty = found.lineage["provenance"].get("git.dirty") == "true"
    mixed = ", which had changes that were not committed" if dirty else ""
    return f"To reproduce it{at}{mixed}: {again}"


def commands(found: Findings) -> list[Command]:
    """What reproduces the result, what would settle it, and what goes on from it."""
    name = found.config.experiment
    rows = []
    if found.model_uri:
        rows.append(
            Command(
                "Train the winner again; says whether the weights are bit for bit the same",
                [_train(found)],
            )
        )
    rows.append(
        Command(f"The whole pipeline; {file(found)} is the configuration below", [_sweep(found)])
    )
    if settle := settling(found):
        rows.append(
            Command("Settle whether the winner is better than the runner-up: more seeds", settle)
        )
    if found.keys and found.config.search.sampler.name in ("tpe", "gp", "cmaes"):
        count = 2 * found.config.search.trial_count
        changes = [f"experiment={name}-2", f"search.warm_start=[{name}]", f"search.trials={count}"]
        rows.append(
            Command("Search on from what these trials have taught", [_sweep(found, *changes)])
        )
    budget = MORE * found.config.fit_run().train.tokens
    rows.append(
        Command(
            "Train the winner longer; the search is reused", [_sweep(found, f"fit.tokens={budget}")]
        )
    )
    if found.model_uri:
        model = (
            f"{found.config.promote.model}/{found.version}" if found.version else found.model_uri
        )
        prompt = found.config.generate.prompts[0]
        line = shlex.join(["python", "pipelines/generate.py", "--model", model, "--prompt", prompt])
        rows.append(Command("Text from the model", [line]))
    uri = tracking_uri()
    here = "mlflow ui" if uri.startswith("sqlite") else f"open {uri}"
    rows.append(Command("All runs, curves and versions", [here]))
    rows.append(Command("This page again", [shlex.join(["python", "pipelines/report.py", name])]))
    return rows


def file(found: Findings) -> str:
    """What the experiment's YAML is called in the commands, and beside the page."""
    return f"{found.config.experiment}.yaml"


def _sweep(found: Findings, *changes: str) -> str:
    command = "sweep.py" if "train" not in found.stages else "train.py"
    return shlex.join(["python", f"pipelines/{command}", file(found), *changes])


def _train(found: Findings, *changes: str) -> str:
    if found.version is None:
        return shlex.join(["python", "pipelines/train.py", file(found), *changes])
    version = f"{found.config.promote.model}/{found.version}"
    return shlex.join(["python", "pipelines/train.py", "--from-version", version, *changes])


def settling(found: Findings) -> list[str]:
    """Trains the winner and the runner-up with more seeds, at the fit's budget, and reports."""
    pair = duel(found)
    if pair is None:
        return []
    first = found.config.seed + 1
    seeds = " ".join(str(first + number) for number in range(SEEDS))
    winner = [] if found.version is not None else _changes(found, pair.winner)
    second = _changes(found, pair.second)
    again = shlex.join(["python", "pipelines/report.py", found.config.experiment])
    return [
        f"for seed in {seeds}; do",
        f"  {_train(found, *winner)} seed=$seed",
        f"  {_train(found, *second)} seed=$seed",
        "done",
        again,
    ]


def _changes(found: Findings, number: int) -> list[str]:
    return [f"{key}={_yaml(value)}" for key, value in whole(found, number).items()]


def _yaml(value: Any) -> str:
    """A value as `key=value` takes it."""
    if isinstance(value, str) and PLAIN_WORD.fullmatch(value):
        return value
    return encode_param(value) if not isinstance(value, str) else f'"{value}"'


def differences(found: Findings) -> list[tuple[str, str, str]]:
    """Keys of the winner's training that are not the defaults: key, default, value."""
    values = {} if found.winner is None else whole(found, found.winner)
    config = found.config.fit_run(values) if values else found.config.fit_run()
    told = ("seed", "data.", "model.", "train.")
    rows = []
    for key, default in FIELDS.items():
        if key.startswith(told) and (value := config.get(key)) != default:
            shown = [encode_param(one) for one in (default, _listed(value))]
            if shown[0] != shown[1]:
                rows.append((key, shown[0], shown[1]))
    return rows


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def repeated(found: Findings) -> list[tuple[str, str, int, float, float, float]]:
    """Configurations of several seeds, best first: a letter, what it is, n, mean, low, high."""
    table = over_seeds(found)
    table = table[table["n"] > 1].sort_values("mean", kind="stable")
    params = [dict(json.loads(str(name))[1]) for name in table.index]
    every = dict.fromkeys([*found.keys, "train.tokens", *(key for one in params for key in one)])
    differ = [key for key in every if len({one.get(key) for one in params}) > 1]
    keys = differ or [*found.keys, "train.tokens"]
    return [
        (
            chr(ord("A") + place % 26),
            ", ".join(f"{key}={one.get(key)}" for key in keys),
            *(int(row["n"]), row["mean"], row["low"], row["high"]),
        )
        for place, (one, (_, row)) in enumerate(zip(params, table.iterrows(), strict=True))
    ]
