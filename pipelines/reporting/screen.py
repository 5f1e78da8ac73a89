"""The result of a sweep as lines of text, the last screen of the command.

Used by the stage report and at the end of a sweep.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from pipelines.console.text import counted, format_duration, format_value
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.overlap import overlap_text
from pipelines.engine.results import StageResults
from pipelines.experiment import Experiment
from pipelines.registry.results import Compared, Diverged, Fitted, Promoted, Registered, Tested
from pipelines.reporting.commands import setup_lines, tracking_page_command
from pipelines.reporting.studies.screen import settling_lines, table_lines
from pipelines.reporting.studies.study import Study
from pipelines.search.results import Searched, Selected
from pipelines.storage.project import command_line, option
from pipelines.tracking.uri import shown_tracking_uri


def screen_lines(
    config: Experiment,
    results: StageResults,
    samples: str,
    *,
    page: Path | None,
    storage: object,
    script: Callable[[str], Path],
    chosen: Selected | None = None,
    study: Study | None = None,
    blocked: bool = False,
) -> list[str]:
    """The search, the winner, the test result, generated text and the next commands.

    Of a study with all its searches, and the verdict as the last word.

    Args:
        config: The experiment.
        results: Those of the stages that have run, up to the last one that was asked for.
        samples: The generated text; empty without.
        page: Path of the HTML page; None without one.
        storage: The experiment's storage, as shown.
        script: Path of a command's script, by its file name.
        chosen: The winner, if the stage that selects it has not run.
        study: The comparison of a study's arms.
        blocked: Whether the gate has just failed because of what the champion is now.

    """
    first = study_counts(config, results)
    if compared := results.get(Compared):
        results = results.at(compared.winner)
    searched = results.get(Searched)
    name = f"[{', '.join(map(str, compared.winner))}] " if compared else ""
    arms = [] if compared else _arm_lines(config, results)
    winner = None if arms else results.get(Selected) or chosen
    lines = _search_lines(config, results, winner, name)
    blocks = [
        [*(first or lines[:1]), *lines[1:], *_model_lines(results)],
        table_lines(study) if study and study.others else [],
        arms,
        pareto_lines(config, searched.front if searched else ()),
        _test_lines(results),
        [samples] if samples else [],
    ]
    return [
        *(line for block in blocks if block for line in ["", *block]),
        "",
        *_champion_lines(results, script, blocked=blocked),
        f"runs      {shown_tracking_uri()}, experiment {config.experiment}",
        f"files     {storage}",
        *([f"report    {page}"] if page else []),
        *_next_lines(config, results, script),
        *(settling_lines(study, config) if study else []),
        *([f"verdict   {compared.sentence}"] if compared else []),
    ][1:]


def study_counts(config: Experiment, results: StageResults) -> list[str]:
    """One line for the searches and trainings of a study; nothing for other sweeps."""
    searches = results.all(Searched).values()
    if not config.is_study or not searches:
        return []
    arms = f"{counted(len(config.arms), 'arm')}, " if config.arms else ""
    if len(searches) < len(config.arms):
        arms += f"{len(searches)} of them searched, "
    trials = sum(sum(one.trials.values()) for one in searches)
    ended, diverged = len(results.all(Fitted)), len(results.all(Diverged))
    lost = f", {diverged} of them diverged" if diverged else ""
    count = max(len(config.arms), 1) * len(config.replicate_seeds)
    trained = f"{ended + diverged} of {counted(count, 'training')}{lost}"
    return [f"{config.experiment}: {arms}{counted(trials, 'trial')}, {trained}"]


def _arm_lines(config: Experiment, results: StageResults) -> list[str]:
    """What is known of each arm of a study that is not compared yet: its winner, and the bits per
    byte of its trainings; nothing of other sweeps."""
    if not config.arms:
        return []
    lines = [
        f"winner   [{values[0]}] {_choice(chosen)}"
        for values, chosen in results.all(Selected).items()
    ]
    tested = {key: one.test_bits_per_byte for key, one in results.all(Tested).items()}
    fitted = {key: one.val_bits_per_byte for key, one in results.all(Fitted).items()}
    bits: dict[str, list[float]] = {}
    for values, found in (tested or fitted).items():
        bits.setdefault(str(values[0]), []).append(found)
    if bits:
        split = "test" if tested else "validation"
        lines.append(f"bits per byte of the {split} split, arms that are not compared yet")
    return lines + [
        f"  {fmean(found):6.3f}  {arm}, mean of {counted(len(found), 'training')}"
        for arm, found in bits.items()
    ]


def _search_lines(
    config: Experiment, results: StageResults, chosen: Selected | None, name: str
) -> list[str]:
    """One line each for the search and its winner; for the corpus alone if there was no more."""
    searched = results.get(Searched)
    if searched is None:
        corpus = results[PreparedCorpus]
        sizes = ", ".join(f"{size:,} bytes {split}" for split, size in corpus.bytes.items())
        return [f"{config.experiment}: corpus {corpus.name} {corpus.fingerprint}: {sizes}"]
    states = searched.trials
    trials = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    lines = [f"{config.experiment}: {counted(sum(states.values()), 'trial')} ({trials})"]
    if chosen is None:
        return lines
    return [*lines, f"winner   {name}{_choice(chosen)}"]


def _choice(chosen: Selected) -> str:
    """A winner, with its values in full, for people who copy them."""
    values = ", ".join(
        f"{key}={format_value(value, digits=None)}" for key, value in chosen.values.items()
    )
    bits = "diverged" if chosen.objective is None else f"{chosen.objective:.4f} bits per byte"
    return f"trial {chosen.trial}, {bits}: {values or 'the defaults'}"


def _model_lines(results: StageResults) -> list[str]:
    """One line each for the fit and for what became of its model."""
    fit, registered = results.get(Fitted), results.get(Registered)
    if fit is None:
        return []
    workers = f"{fit.workers} worker{'' if fit.workers == '1' else 's'}"
    trained = (
        f"trained  {fit.parameters:,} parameters on {fit.tokens:,} bytes with "
        f"{workers} in {format_duration(fit.seconds)}, "
        f"validation {fit.val_bits_per_byte:.4f} bits per byte"
    )
    if registered is None:
        return [trained, f"model    {fit.model_uri}, not registered"]
    promoted = results.get(Promoted)
    decision = promoted.decision if promoted else "not decided"
    return [trained, f"gate     version {registered.version} {decision}"]


def pareto_lines(config: Experiment, front: Sequence[tuple[int, float, float]]) -> list[str]:
    """The Pareto front of a search with two objectives; empty with one.

    `front` has a trial's number and its two objectives in each row.
    """
    second = config.search.second_objective
    if second is None:
        return []
    return [
        f"Pareto front of bits per byte and {second.replace('_', ' ')}: the trials not dominated",
        *(f"  {bits:8.4f}  {value:13,.0f}  trial {number}" for number, bits, value in front),
    ]


def _test_lines(results: StageResults) -> list[str]:
    """The model among the compressors on the test split, best first."""
    tested, registered = results.get(Tested), results.get(Registered)
    if tested is None:
        return []
    corpus = results[PreparedCorpus]
    name = f"version {registered.version}" if registered else "this model"
    rows = {**tested.baselines, name: tested.test_bits_per_byte}
    ranked = sorted(rows.items(), key=lambda row: row[1])
    return [
        f"bits per byte of the test split ({corpus.bytes['test']:,} bytes of {corpus.name})",
        *(f"  {bits:6.3f}  {name}" for name, bits in ranked),
        *([] if tested.overlap is None else [overlap_text(tested.overlap)]),
    ]


def _champion_lines(
    results: StageResults, script: Callable[[str], Path], *, blocked: bool
) -> list[str]:
    """The champion, or the command that decides; not where it would fail again as it just did: the
    error has the commands that work."""
    registered, promoted = results.get(Registered), results.get(Promoted)
    if registered is None:
        return []
    if promoted and promoted.champion is not None:
        return [f"champion  models:/{promoted.model}@champion (version {promoted.champion})"]
    if blocked:
        return [
            "champion  not decided: nothing can be compared with the present one; see the error"
        ]
    arguments = ("promote", "--model", registered.model, registered.version)
    again = "none; to decide again" if promoted else "to decide"
    return [f"champion  {again}: {command_line(script('promote.py'), *arguments)}"]


def _next_lines(
    config: Experiment, results: StageResults, script: Callable[[str], Path]
) -> list[str]:
    lines = [*setup_lines(), tracking_page_command()]
    if model := _model_name(results):
        prompt = option("--prompt", config.generate.prompts[0])
        lines.append(command_line(script("generate.py"), "--model", model, *prompt))
    return [f"{'' if place else 'next':10}{line}" for place, line in enumerate(lines)]


def _model_name(results: StageResults) -> str:
    """What generate.py calls the model that came out of it; empty without one."""
    fit, registered = results.get(Fitted), results.get(Registered)
    promoted = results.get(Promoted)
    if promoted and promoted.champion is not None:
        name = promoted.model  # generate.py takes a folder of that name for a model's
        return f"models:/{name}@champion" if Path(name).exists() else name
    if registered:
        return f"{registered.model}/{registered.version}"
    return fit.model_uri if fit else ""
