"""A comparison of arms as text: its sentence, and its table as CSV, Markdown and JSON.

Used by the stage compare and by the report. Differences are an arm's bits per byte minus the
baseline's in tables; sentences name the better side.
"""

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from pipelines.comparison.statistics import POWER, sign_flip_floor
from pipelines.comparison.table import Comparison, Row
from pipelines.comparison.time_to_quality import TimeToQuality
from pipelines.comparison.values import Interval
from pipelines.console.text import counted

MIN_P = 0.0001
"""Smaller p-values are not spelled out."""
COLUMNS = {
    "arm": "arm",
    "replicates": "replicates",
    "diverged": "diverged",
    "bits_per_byte": "bits_per_byte",
    "sd": "sd",
    "bits_low": "bits_interval.low",
    "bits_high": "bits_interval.high",
    "verdict": "difference.verdict",
    "pairs": "difference.paired.n",
    "difference": "difference.paired.mean",
    "difference_low": "interval.low",
    "difference_high": "interval.high",
    "simultaneous_low": "simultaneous.low",
    "simultaneous_high": "simultaneous.high",
    "difference_sd": "difference.paired.sd",
    "t_test_p": "difference.paired.p",
    "holm_p": "difference.holm_p",
    "sign_flip_p": "difference.paired.sign_flip_p",
    "seeds_needed": "seeds_needed",
    "parameters": "parameters",
    "parameter_ratio": "parameter_ratio",
    "flops_per_token": "flops_per_token",
    "flops_ratio": "flops_ratio",
    "peak_memory_bytes": "peak_memory_bytes",
    "step_time_ratio": "step_time.value",
    "step_time_ratio_low": "step_time.interval.low",
    "step_time_ratio_high": "step_time.interval.high",
    "quality_reached_by_baseline": "tokens_to_quality.reverse",
    "quality_pairs": "tokens_to_quality.pairs",
    "quality_reached": "tokens_to_quality.reached",
    "tokens_to_quality": "tokens_to_quality.share",
    "tokens_to_quality_low": "tokens_to_quality.interval.low",
    "tokens_to_quality_high": "tokens_to_quality.interval.high",
    "time_to_quality": "time_to_quality.share",
    "time_to_quality_low": "time_to_quality.interval.low",
    "time_to_quality_high": "time_to_quality.interval.high",
    "best_learning_rate": "rates.best_rate",
    "best_rate_at_end": "rates.at_end",
    "sensitivity": "rates.sensitivity",
}
"""Columns of the CSV file, and where a row of the comparison has them."""


def sentence(found: Comparison) -> str:
    """The verdict in one sentence: of the best arm, or that none is better.

    Of an arm without others its mean and the interval.
    """
    others = [row for row in found.rows if row.difference is not None]
    if not others:
        return _alone(found.rows[0])
    if found.best is not None:
        return arm_sentence(found, found.best)
    if len(others) == 1:
        return arm_sentence(found, others[0])
    worse = sum(row.difference.verdict == "worse" for row in others if row.difference is not None)
    rest = len(others) - worse
    return f"No arm beats {found.baseline}: of {len(others)}, worse: {worse}, undecided: {rest}."


def arm_sentence(found: Comparison, row: Row) -> str:
    """The verdict about one arm, with its interval, seeds, p-value and time to quality."""
    if row.difference is None:
        return f"{row.arm} is the baseline."
    mean, verdict = row.difference.paired.mean, row.difference.verdict
    if mean is None:
        missing = _missing(found, row)
        return f"{row.arm} is undecided against {found.baseline}: no pair has two results{missing}."
    by = f"{abs(mean):.3f} bits per byte"
    evidence = _evidence(row, negated=mean <= 0)
    if verdict == "undecided":
        return (
            f"{row.arm} is undecided against {found.baseline}: {by} "
            f"{'lower' if mean <= 0 else 'higher'} ({evidence}){_missing(found, row)}."
        )
    beats = "beats" if verdict == "better" else "is worse than"
    return f"{row.arm} {beats} {found.baseline} by {by} ({evidence}){_reaches(found, row)}."


def columns(found: Comparison) -> list[dict[str, Any]]:
    """The rows as flat columns; None where a row has nothing."""
    return [{name: _get(row, path) for name, path in COLUMNS.items()} for row in found.rows]


def to_csv(found: Comparison) -> str:
    """The table as comma-separated values, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(columns(found))
    return text.getvalue()


def to_json(found: Comparison) -> str:
    """The whole comparison with its sentence, as JSON."""
    data = {"sentence": sentence(found), **asdict(found)}
    return json.dumps(data, indent=2, allow_nan=False)


def to_markdown(found: Comparison) -> str:
    """The sentence and the table, numbers rounded; a column that no arm has is left out."""
    rows = [cells(found, row) for row in found.rows]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{sentence(found)}\n\n{table}\n"


def cells(found: Comparison, row: Row) -> dict[str, str]:
    """A row of the table for readers, by its headings; empty where it has nothing."""
    return {"arm": row.arm, **quality_cells(found, row), **cost_cells(row), **tuning_cells(row)}


def quality_cells(found: Comparison, row: Row) -> dict[str, str]:
    """How good an arm is, and how surely."""
    alone, test = len(found.rows) == 1, row.difference.paired if row.difference else None
    flip, floor = _p_text(_get(test, "sign_flip_p")), sign_flip_floor(test.n) if test else 1
    verdict = row.difference.verdict if row.difference else "baseline"
    return {
        "verdict": "" if alone else verdict,
        "difference (95 %)": _number(_get(test, "mean"), "+.4f", row.interval),
        "Holm p": _p_text(_get(row, "difference.holm_p")),
        "bits per byte": _number(row.bits_per_byte, ".4f", row.bits_interval if alone else None),
        "sd": _number(row.sd, ".4f"),
        "seeds": f"{row.replicates}" + (f", {row.diverged} diverged" if row.diverged else ""),
        f"seeds to find {found.smallest_difference:g}": _number(row.seeds_needed, "d"),
        "95 % for all arms together": _between(row.simultaneous, "+.4f"),
        "sign-flip p (smallest possible)": flip and f"{flip} ({floor:.2g})",
    }


def cost_cells(row: Row) -> dict[str, str]:
    """What an arm costs, and how soon it is as good as the baseline."""
    time = _get(row, "step_time.value")
    return {
        "parameters": _number(row.parameters, ",d") + _times(row.parameter_ratio),
        "step time": _number(time, ".2f", _get(row, "step_time.interval")),
        "time to quality": _share_text(row.time_to_quality),
        "tokens to quality": _share_text(row.tokens_to_quality),
        "FLOPs a token": _number(row.flops_per_token, ".3g") + _times(row.flops_ratio),
        "peak memory, MB": _number(row.peak_memory_bytes and row.peak_memory_bytes / 1e6, ",.0f"),
    }


def tuning_cells(row: Row) -> dict[str, str]:
    """What the tuning of an arm found."""
    end, rate = _get(row, "rates.at_end"), _number(_get(row, "rates.best_rate"), "g")
    return {
        "best learning rate": rate + (f" ({end} tried: widen)" if end else ""),
        "sensitivity": _number(_get(row, "rates.sensitivity"), ".4f"),
    }


def _alone(row: Row) -> str:
    """The mean of an arm that has no others to be compared with."""
    if row.bits_per_byte is None:
        seeds = counted(row.diverged, "seed")
        return f"{row.arm} has no result: {row.diverged} of {seeds} diverged."
    parts = [
        _between(row.bits_interval, ".4f"),
        counted(row.replicates, "seed"),
        f"{row.diverged} diverged" if row.diverged else "",
    ]
    evidence = ", ".join(part for part in parts if part)
    return f"{row.arm} reaches {row.bits_per_byte:.4f} bits per byte ({evidence})."


def _evidence(row: Row, *, negated: bool) -> str:
    """Interval, number of seeds and p-value, and divergences if there are any."""
    n, p, interval = _get(row, "difference.paired.n"), _get(row, "difference.holm_p"), row.interval
    if interval and negated:
        interval = Interval(-interval.high, -interval.low)
    parts = [
        _between(interval, ".3f"),
        counted(n, "seed"),
        f"Holm p {'' if p < MIN_P else '= '}{_p_text(p)}" if p is not None else "",
        f"{row.diverged} diverged" if row.diverged else "",
    ]
    return ", ".join(part for part in parts if part)


def _missing(found: Comparison, row: Row) -> str:
    """Why it is undecided whatever the seeds, or those that would find the smallest difference, as
    the end of a sentence."""
    if row.difference and (blocked := row.difference.blocked):
        lost, of = row.difference.arm_diverged, ""
        if blocked == "worse":
            lost, of = row.difference.baseline_diverged, f" of {found.baseline}"
        return f"; it cannot be called {blocked}, because {counted(lost, 'training')}{of} diverged"
    n, needed = _get(row, "difference.paired.n"), row.seeds_needed
    if needed is None:
        return ""
    find = power_text(found)
    if needed <= n:
        return f"; {counted(n, 'seed')} {'is' if n == 1 else 'are'} enough to {find}"
    return f"; {counted(needed, 'seed')} would {find}"


def power_text(found: Comparison) -> str:
    """What the seeds needed by an undecided arm do, after "would"."""
    smallest, power = found.smallest_difference, 100 * POWER
    return f"find a difference of {smallest:g} with a probability of {power:g} %"


def _reaches(found: Comparison, row: Row) -> str:
    """When the better side reaches the other's quality, as the end of a sentence."""
    share = row.time_to_quality or row.tokens_to_quality
    if share is None:
        return ""
    whose = f", whose quality {found.baseline} reaches in " if share.reverse else ""
    whose = whose or " and reaches its quality in "
    if share.share is None:
        return f"{whose}{share.reached} of {counted(share.pairs, 'pair')}"
    unit = "time" if row.time_to_quality else "tokens"
    between = f" ({_between(share.interval, '.2f')})" if share.interval else ""
    return f"{whose}{share.share:.2f} of its {unit}{between}"


def _get(found: Any, path: str) -> Any:
    """What a path of attributes leads to; None where one of them is None."""
    for name in path.split("."):
        found = None if found is None else getattr(found, name)
    return found


def _number(value: float | None, form: str, interval: Interval | None = None) -> str:
    """A number and its interval; empty without one."""
    if value is None:
        return ""
    return f"{value:{form}}" + (f" ({_between(interval, form)})" if interval else "")


def _between(interval: Interval | None, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}" if interval else ""


def _times(ratio: float | None) -> str:
    """The ratio to the baseline's, unless it is that."""
    return "" if ratio in (None, 1) else f" (x {ratio:.3f})"


def _share_text(found: TimeToQuality | None) -> str:
    """A share with its interval, or in how many pairs the quality was reached."""
    if found is None:
        return ""
    who = "baseline: " if found.reverse else ""
    reached = f"{found.reached} of {found.pairs} reached"
    return who + (_number(found.share, ".2f", found.interval) or reached)


def _p_text(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.2g}" if p >= MIN_P else f"< {MIN_P:.4f}"
