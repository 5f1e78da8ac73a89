"""What a study trained, in plain words: its text, its model, its seeds and what each arm changes.

Used by the section of a study, for a reader who has only the page.
"""

import json
from collections.abc import Sequence

from pipelines.comparison.table import Row
from pipelines.compat.mlflow import DATASET_CONTEXT_TAG
from pipelines.console.text import format_value
from pipelines.experiment import Experiment
from pipelines.reporting.page.content import Table
from pipelines.reporting.results import Results
from pipelines.tracking.schema import EVALUATE_KIND, FIT_KIND

SIZES = {"depth": "{} layers", "dim": "{} wide", "heads": "{} heads"}
"""Keys of the model that are named, with their words."""
MAX_RATES = 8
"""Learning rates that are listed; of more the lowest and the highest are."""


def setup_paragraphs(results: Results, experiment: Experiment) -> list[str]:
    """The text and its splits; the model; the seeds."""
    seeds = ", ".join(map(str, experiment.replicate_seeds))
    return [_text(results, experiment), f"{_model(experiment)} Seeds: {seeds}."]


def _text(results: Results, experiment: Experiment) -> str:
    data = experiment.data
    given = f" {data.path}" if data.path else ""
    first = f", of which the first {data.max_bytes:,} bytes are read" if data.max_bytes else ""
    sizes = ", ".join(f"{split} {size:,}" for split, size in _split_sizes(results).items())
    splits = f" Bytes of its splits: {sizes}." if sizes else ""
    return f"The text is {data.corpus}{given}{first}.{splits} A token is a byte."


def _split_sizes(results: Results) -> dict[str, int]:
    """Bytes of the splits, as the winner's training and its test have recorded them."""
    found: dict[str, int] = {}
    for run in (results.stages.get(name) for name in (FIT_KIND, EVALUATE_KIND)):
        for one in run.inputs.dataset_inputs if run and run.inputs else ():
            split = next(tag.value for tag in one.tags if tag.key == DATASET_CONTEXT_TAG)
            found[split] = json.loads(one.dataset.profile)["bytes"]
    return found


def _model(experiment: Experiment) -> str:
    """Sizes that all arms have; those that an arm or the search changes are left out."""
    changed = {*experiment.search.space}
    for changes in experiment.arms.values():
        changed |= {key.removeprefix("search.space.") for key in changes}
    sizes = {f"model.{key}": text for key, text in SIZES.items()}
    sizes |= {"train.seq_len": "sequences of {} bytes", "train.batch_tokens": "{:,} bytes a step"}
    parts = [text.format(experiment.get(key)) for key, text in sizes.items() if key not in changed]
    return f"The model: {', '.join(parts)}." if parts else ""


def arms_table(experiment: Experiment) -> Table:
    """A line for each arm with the keys that it changes."""
    rows = [
        [
            name,
            ", ".join(f"{key}={format_value(value, digits=None)}" for key, value in changes.items())
            or "nothing",
        ]
        for name, changes in experiment.arms.items()
    ]
    return Table("What each arm changes of the configuration.", ["arm", "changes"], rows)


def rate_paragraphs(rows: Sequence[Row]) -> list[str]:
    """Whether the best learning rate of each arm lies inside those tried, or at an end."""
    rates = {row.arm: row.rates for row in rows if row.rates and len(row.rates.rates) > 1}
    ends = [
        f"{arm} ({one.best_rate:g} is the {one.at_end})" for arm, one in rates.items() if one.at_end
    ]
    if ends:
        return [
            f"The best learning rate lies at an end of those tried of {', '.join(ends)}: one "
            "beyond may be better, so that the range should be wider."
        ]
    tried = {one.rates for one in rates.values()}
    if not tried or len(rates) < len(rows):
        return []
    return [
        f"Each arm has the best of the learning rates {' or '.join(map(_tried, sorted(tried)))}; "
        "none is at an end of them."
    ]


def _tried(rates: Sequence[float]) -> str:
    if len(rates) > MAX_RATES:
        return f"{len(rates)} from {rates[0]:.2g} to {rates[-1]:.2g}"
    return ", ".join(f"{rate:g}" for rate in rates)
