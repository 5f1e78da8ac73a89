"""The result of a sweep as lines of text, the last screen of the command.

Used by the stage report.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.console.text import format_duration, format_value
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.overlap import overlap_text
from pipelines.engine.results import StageResults
from pipelines.experiment import Experiment
from pipelines.registry.results import Fitted, Promoted, Registered, Tested
from pipelines.reporting.commands import setup_lines, tracking_page_command
from pipelines.search.results import Searched, Selected
from pipelines.tracking.uri import shown_tracking_uri


def screen_lines(
    config: Experiment,
    results: StageResults,
    samples: str,
    *,
    page: Path | None,
    storage: object,
    script: Callable[[str], Path],
) -> list[str]:
    """The search, the winner, the test result, generated text and the next commands.

    Args:
        config: The experiment.
        results: Those of all other stages of the sweep.
        samples: The generated text.
        page: Path of the HTML page; None without one.
        storage: The experiment's storage, as shown.
        script: Path of a command's script, by its file name.
    """
    return [
        *_result_lines(config, results),
        *pareto_lines(config, results[Searched].front),
        "",
        *_test_lines(results),
        "",
        samples,
        "",
        *_champion_lines(results, script),
        f"runs      {shown_tracking_uri()}, experiment {config.experiment}",
        f"files     {storage}",
        *([f"report    {page}"] if page else []),
        *_next_lines(config, results, script),
    ]


def _result_lines(config: Experiment, results: StageResults) -> list[str]:
    """One line each for the search, its winner, the fit and the gate."""
    states = results[Searched].trials
    trials = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    chosen, fit = results[Selected], results[Fitted]
    # In full, for people who copy them.
    values = ", ".join(
        f"{key}={format_value(value, digits=None)}" for key, value in chosen.values.items()
    )
    workers = f"{fit.workers} worker{'' if fit.workers == '1' else 's'}"
    return [
        f"{config.experiment}: {sum(states.values())} trials ({trials})",
        f"winner   trial {chosen.trial}, {chosen.objective:.4f} bits per byte: "
        f"{values or 'the defaults'}",
        f"trained  {fit.parameters:,} parameters on {fit.tokens:,} bytes with "
        f"{workers} in {format_duration(fit.seconds)}, "
        f"validation {fit.val_bits_per_byte:.4f} bits per byte",
        f"gate     version {results[Registered].version} {results[Promoted].decision}",
    ]


def pareto_lines(config: Experiment, front: Sequence[tuple[int, float, float]]) -> list[str]:
    """The Pareto front of a search with two objectives; empty with one.

    `front` has a trial's number and its two objectives in each row.
    """
    second = config.search.second_objective
    if second is None:
        return []
    return [
        "",
        f"Pareto front of bits per byte and {second.replace('_', ' ')}: the trials not dominated",
        *(f"  {bits:8.4f}  {value:13,.0f}  trial {number}" for number, bits, value in front),
    ]


def _test_lines(results: StageResults) -> list[str]:
    """The version among the compressors on the test split, best first."""
    tested, corpus = results[Tested], results[PreparedCorpus]
    name = f"version {results[Registered].version}"
    rows = {**tested.baselines, name: tested.test_bits_per_byte}
    ranked = sorted(rows.items(), key=lambda row: row[1])
    return [
        f"bits per byte of the test split ({corpus.bytes['test']:,} bytes of {corpus.name})",
        *(f"  {bits:6.3f}  {name}" for name, bits in ranked),
        *([] if tested.overlap is None else [overlap_text(tested.overlap)]),
    ]


def _champion_lines(results: StageResults, script: Callable[[str], Path]) -> list[str]:
    name, champion = results[Promoted].model, results[Promoted].champion
    if champion is not None:
        return [f"champion  models:/{name}@champion (version {champion})"]
    command = f"python {script('promote.py')} promote --model {name}"
    return [f"champion  none yet; to decide again: {command} {results[Registered].version}"]


def _next_lines(
    config: Experiment, results: StageResults, script: Callable[[str], Path]
) -> list[str]:
    name, champion = results[Promoted].model, results[Promoted].champion
    model = name if champion is not None else f"{name}/{results[Registered].version}"
    prompt = shlex.quote(config.generate.prompts[0])
    lines = [
        *setup_lines(),
        tracking_page_command(),
        f"python {script('generate.py')} --model {model} --prompt {prompt}",
    ]
    return [f"{'' if place else 'next':10}{line}" for place, line in enumerate(lines)]
