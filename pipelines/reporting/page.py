"""The report as one HTML page that needs no network, and its figures as PNG beside it."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from pipelines.console.text import format_duration, format_value
from pipelines.reporting import figures
from pipelines.reporting.findings import Findings
from pipelines.reporting.judgement import (
    CONFIDENCE,
    Importance,
    importance,
    ranking,
    saved,
)
from pipelines.reporting.mixing import Mixing, mixing
from pipelines.reporting.words import Command, commands, differences, file, gate, repeated, summary
from pipelines.storage.location import storage_folder
from pipelines.tracking.uri import tracking_uri

PAGE = "report.html"
DOTS_PER_INCH = 150
"""Of the PNG files."""
MOST_ROWS = 50
"""Of the leaderboard; the rest is counted."""
MOST_SVG = 1_000_000
"""Bytes up to which a figure is drawn by the browser; a heavier one is a PNG in the page too."""


@dataclass
class Table:
    """Rows of text, numbers to the right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: set[int] = field(default_factory=set)
    """Columns that hold numbers."""

    def kind(self, column: int) -> Markup:
        """The class of a column's cells."""
        return Markup(' class="number"') if column in self.numbers else Markup("")


@dataclass
class Picture:
    """A figure of the page."""

    name: str
    """Of its PNG file, without the suffix."""
    figure: Figure
    caption: str
    alt: str
    """What it shows, for those who cannot see it."""
    markup: str = ""
    """Inside the page."""


@dataclass
class Section:
    """A part of the page under a heading; empty parts of it are left out."""

    id: str
    title: str
    points: Sequence[str] = ()
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[str] = ()
    commands: Sequence[Command] = ()
    file: Any = None
    """A name and a text."""


def write(found: Findings, folder: Path) -> Path:
    """Write the page, the figures and the experiment's YAML into a folder; returns the page's path.

    What an earlier report has left there goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.yaml"), folder / PAGE]:
        old.unlink(missing_ok=True)
    sections = compose(found)
    for picture in (picture for section in sections for picture in section.pictures):
        png = folder / f"{picture.name}.png"
        picture.figure.savefig(png, dpi=DOTS_PER_INCH)
        picture.figure.set_layout_engine("none")  # it was computed: once, not for each file
        picture.markup = _markup(picture, png)
    (folder / file(found)).write_text(found.config.to_yaml())
    path = folder / PAGE
    path.write_text(_render(found, sections), encoding="utf-8")
    return path


def publish(found: Findings) -> Path:
    """Write the report into the experiment's storage, and keep it with the pipeline's MLflow run.

    Into the current folder, if storage is not a folder of this machine. Returns the page's path.
    """
    storage = storage_folder(found.config.storage)
    here = storage if isinstance(storage, Path) else Path.cwd()
    path = write(found, here / "reports" / found.config.experiment)
    found.store.log_files(found.pipeline.info.run_id, path.parent, "report")
    return path


def _render(found: Findings, sections: Sequence[Section]) -> str:
    environment = Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string((files(__package__) / "page.html").read_text())
    counts = found.trials["state"].value_counts()
    trials = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    return template.render(
        title=f"{found.config.experiment}: report",
        subtitle=f"Trials: {trials}. Bits per byte: less is better.",
        sections=sections,
    )


def _markup(picture: Picture, png: Path) -> Markup:
    """The figure as SVG, or as PNG where that is smaller."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        picture.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    alt = escape(picture.alt, quote=True)
    if len(svg) > MOST_SVG:
        import base64

        data = base64.b64encode(png.read_bytes()).decode()
        return Markup(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[A-Za-z][A-Za-z0-9.]{3,}_\d+"', "", svg)  # the same in every figure
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1))


def compose(found: Findings) -> list[Section]:
    """The sections of the page, in order."""
    known = importance(found)
    return [
        Section("summary", "Summary", points=summary(found, known)),
        _leaderboard(found),
        _importance(found, known),
        _history(found),
        _parallel(found),
        _slices(found),
        _curves(found),
        _pruning(found),
        _failures(found),
        _winner(found),
        _mixing(mixing(found)),
        _samples(found),
        _lineage(found),
        _next(found),
    ]


def _leaderboard(found: Findings) -> Section:
    section = Section("leaderboard", "Leaderboard")
    table = ranking(found)
    if table.empty:
        section.paragraphs = ["There are no trials."]
    else:
        section.pictures = [
            Picture(
                "leaderboard",
                figures.leaderboard(found),
                "The best trials. A filled dot used its whole budget.",
                "Bits per byte of the best trials, best first.",
            )
        ]
        more = f", the best {MOST_ROWS} of {len(table)}" if len(table) > MOST_ROWS else ""
        second = found.config.search.second_objective
        columns = [
            "trial",
            "state",
            "bits per byte",
            *([second.replace("_", " ")] if second else []),
        ]
        columns += ["n", "mean", f"{100 * CONFIDENCE:.0f} % interval", "bytes", "parameters"]
        rows = [
            [
                *(f"{number}{' (winner)' if number == found.winner else ''}", row["state"]),
                _bits(row["bits_per_byte"]),
                *([_number(row["second"])] if second else []),
                *_seeds(row["n"], row["mean"], row["low"], row["high"]),
                *(f"{row['tokens']:,}", f"{row['parameters']:,}"),
                *(format_value(row[key]) for key in found.keys),
            ]
            for number, row in table.head(MOST_ROWS).iterrows()
        ]
        caption = (
            f"Trials{more}: those that used their whole budget, then the deepest. n counts the "
            "seeds that a configuration was trained with at this budget: one tells no interval."
        )
        numbers = set(range(2, len(columns) + len(found.keys)))
        section.tables = [Table(caption, [*columns, *found.keys], rows, numbers)]
        if second:
            section.pictures = [*section.pictures, _front(found, second)]
    _add_repeated(section, found)
    return section


def _front(found: Findings, second: str) -> Picture:
    return Picture(
        "front",
        figures.front(found),
        "Trials on the line: no trial is better in both objectives.",
        f"Bits per byte against {second.replace('_', ' ')}; the trials that none beats are joined.",
    )


def _add_repeated(section: Section, found: Findings) -> None:
    """What was trained with several seeds, at any budget."""
    rows = repeated(found)
    if not rows:
        section.paragraphs = [
            *section.paragraphs,
            "No configuration was trained with more than one seed yet, so no interval can be "
            "given; the commands under What next do that.",
        ]
        return
    section.pictures = [
        *section.pictures,
        Picture(
            "seeds",
            figures.seeds(found),
            "Configurations that were trained with several seeds.",
            "For each repeated configuration its results, their mean and the t-interval.",
        ),
    ]
    table = Table(
        "The same: trials, fits and runs of train.py that differ in nothing but the seed.",
        ["", "configuration", "n", "mean", f"{100 * CONFIDENCE:.0f} % interval"],
        [[letter, text, *_seeds(*rest)] for letter, text, *rest in rows],
        {2, 3, 4},
    )
    section.tables = [*section.tables, table]


def _importance(found: Findings, known: Importance) -> Section:
    section = Section("importance", "What mattered")
    if known.note or known.shares.empty:
        section.paragraphs = [f"Nothing can be said: {known.note or 'no key could be compared'}."]
        return section
    top = known.shares.index[0]
    section.paragraphs = [
        f"Optuna's fANOVA: a random forest learns bits per byte after {known.tokens:,} bytes, "
        "which all of these trials reached, from the searched keys; a key's share is the part of "
        "the forest's variance that it explains by itself, the rest being the work of several. A "
        "key that does not always apply is judged among the trials in which it did."
    ]
    section.pictures = [
        Picture(
            "importance",
            figures.importances(found, known),
            "The share of the differences between trials that each key explains.",
            f"Bars of importance; the largest is {top}.",
        )
    ]
    rows = [
        [key, _share(row["share"]), f"{int(row['trials'])}"] for key, row in known.shares.iterrows()
    ]
    caption = "Importance; n/a where fewer than four trials tell."
    section.tables = [Table(caption, ["key", "share", "trials"], rows, {1, 2})]
    return section


def _history(found: Findings) -> Section:
    section = Section("history", "History of the search")
    if found.trials.empty:
        section.paragraphs = ["There are no trials."]
        return section
    section.pictures = [
        Picture(
            "history",
            figures.history(found),
            "What each trial reached; an open triangle was stopped early, at a smaller budget.",
            "Bits per byte by trial number, and the best complete trial so far.",
        )
    ]
    return section


def _parallel(found: Findings) -> Section:
    section = Section("parallel", "Parallel coordinates")
    if not found.keys or found.curves.empty:
        section.paragraphs = ["Nothing was searched, or no trial has a result."]
        return section
    section.pictures = [
        Picture(
            "parallel",
            figures.parallel(found),
            "A line a trial through its values; n/a where a key did not apply. The dashed line is "
            "the winner.",
            f"Parallel coordinates of {', '.join(found.keys)} and bits per byte.",
        )
    ]
    return section


def _slices(found: Findings) -> Section:
    section = Section("slices", "Slices")
    if not found.keys or found.curves.empty:
        section.paragraphs = ["Nothing was searched, or no trial has a result."]
        return section
    section.pictures = [
        Picture(
            "slices",
            figures.slices(found),
            "Each searched key by itself; the ring is the winner.",
            f"Bits per byte against each of {', '.join(found.keys)}.",
        )
    ]
    return section


def _curves(found: Findings) -> Section:
    section = Section("curves", "Learning curves")
    if found.curves.empty:
        section.paragraphs = ["Nothing has been evaluated yet."]
        return section
    section.pictures = [
        Picture(
            "curves",
            figures.curves(found),
            "Validation bits per byte against steps, bytes and seconds of training (without "
            "pauses). The best three trials and the fit are named, the others grey.",
            "Three panels of learning curves, of every trial and the fit.",
        )
    ]
    return section


def _pruning(found: Findings) -> Section:
    section = Section("pruning", "What stopping early saved")
    name = found.config.search.scheduler.name
    if found.trials.empty:
        section.paragraphs = ["There are no trials."]
        return section
    less = saved(found)
    section.paragraphs = [
        f"{less.trials} of {len(found.trials)} trials were stopped early: {less.tokens:,} bytes, "
        f"{100 * less.share:.0f} % of those of all to their end, were not trained on, which is "
        f"about {format_duration(less.seconds)} of training, added up over the trials, each at its own pace."
        if less.trials
        else f"No trial was stopped early (scheduler {name})."
    ]
    section.pictures = [
        Picture(
            "pruning",
            figures.pruning(found),
            "Bytes that each trial was trained on.",
            "A bar a trial, longest first; hatched is what pruning has not spent.",
        )
    ]
    return section


def _failures(found: Findings) -> Section:
    section = Section("failures", "Failures")
    bad = found.trials[found.trials["state"].isin(["failed", "unfinished"])]
    rows = [
        [f"trial {number}", row["state"], row["reason"] or "-", _values(found, row)]
        for number, row in bad.iterrows()
    ]
    for name, run in {"pipeline": found.pipeline, **found.stages}.items():
        if run.info.status != "FINISHED" and (reason := run.data.tags.get("dca.reason")):
            rows.append([name, run.info.status.lower(), reason, ""])
    if not rows:
        section.paragraphs = ["None: every trial and stage that began has ended as it should."]
        return section
    caption = "Failed, and unfinished so far. A failed trial has no number and does not rank."
    section.tables = [Table(caption, ["what", "state", "reason", "values"], rows)]
    return section


def _winner(found: Findings) -> Section:
    section = Section("winner", "The winner")
    text = gate(found)
    section.paragraphs = [f"{text[0].upper()}{text[1:]}."]
    if found.winner is not None:
        values = _values(found, found.trials.loc[found.winner]) or "the configuration as it is"
        section.paragraphs = [f"Trial {found.winner}: {values}.", *section.paragraphs]
    rows = [list(row) for row in differences(found)]
    tables = [
        Table(
            "What differs from the defaults, as the winner was trained in the end.",
            ["key", "default", "value"],
            rows,
        )
    ]
    tested = found.outputs("evaluate")
    if tested:
        name = f"version {found.version}" if found.version else "this model"
        scores = {**tested["baselines"], name: tested["test_bits_per_byte"]}
        ranked = sorted(scores.items(), key=lambda item: item[1])
        rows = [[label, f"{bits:.4f}"] for label, bits in ranked]
        tables.append(
            Table("Bits per byte of the sealed test text.", ["", "bits per byte"], rows, {1})
        )
    section.tables = tables
    return section


def _mixing(weights: Mixing) -> Section:
    section = Section("mixing", "What the mixing learned")
    section.paragraphs = [f"{weights.note[0].upper()}{weights.note[1:]}."] if weights.note else []
    if weights.weights.empty:
        return section
    added = (
        f" Below, with relu(w . f) added, averaged over {weights.bytes_read:,} bytes of the "
        "validation text."
        if weights.bytes_read
        else ""
    )
    section.pictures = [
        Picture(
            "mixing",
            figures.mixed(weights),
            "Weights of the stack entries (columns) in each layer (rows), for queries, keys and "
            f"values: b, averaged over features.{added} The last row is the read-out. 1 is the "
            "plain residual sum; blank is not in the stack.",
            "Heat maps of the weights by layer and stack entry.",
        )
    ]
    table = weights.weights
    rows = [
        [
            *(row["layer"], row["output"], row["entry"], f"{row['b']:.3f}", f"{row['spread']:.3f}"),
            "" if pd.isna(row["added"]) else f"{row['added']:.3f}",
        ]
        for _, row in table.iterrows()
        if len(table) <= MOST_ROWS * 4
    ]
    columns = ["layer", "feeds", "entry", "b", "spread over features", "input-dependent"]
    if rows:
        section.tables = [Table("The same as numbers.", columns, rows, {3, 4, 5})]
    return section


def _samples(found: Findings) -> Section:
    section = Section("samples", "Text")
    if not found.samples:
        section.paragraphs = ["No text has been generated yet."]
        return section
    model = found.outputs("sample").get("model_uri", "no model")
    section.paragraphs = [f"Written by {model}:"]
    section.samples = [_printable(found.samples)]
    return section


def _lineage(found: Findings) -> Section:
    provenance, hardware = found.lineage["provenance"], found.lineage["hardware"]
    dirty = " and changes" if provenance.get("git.dirty") == "true" else ""
    stages = {"pipeline": found.pipeline, **found.stages}
    runs = {name: run.info.run_id for name, run in stages.items()}
    if found.winner is not None:
        runs["winning trial's"] = found.trials.at[found.winner, "run_id"]
    packages = [
        f"{key.removeprefix('version.')} {value}"
        for key, value in provenance.items()
        if key.startswith("version.")
    ]
    shown = {
        "experiment": f"{found.config.experiment} in {tracking_uri()}",
        **{f"{name} run": run_id for name, run_id in runs.items()},
        "model": found.model_uri or "none yet",
        "version": f"{found.config.promote.model} {found.version}" if found.version else "none",
        "gate": found.decision.get("gate.decision", "not decided"),
        "corpus": " ".join(found.lineage["corpus"].values()),
        "commit": f"{provenance.get('mlflow.source.git.commit', 'unknown')}{dirty}",
        "packages": ", ".join(packages),
        "hardware": ", ".join(
            [
                str(hardware.get("processor", "unknown")),
                f"{hardware.get('cpus', '?')} CPUs",
                *hardware.get("gpus", []),
            ]
        ),
        "platform": str(hardware.get("platform", "unknown")),
    }
    section = Section("lineage", "Lineage")
    if found.others:
        section.paragraphs = [
            f"The experiment has {found.others} other pipeline runs, of other configurations or of "
            "train.py; of them only what repeats a configuration with another seed is used here."
        ]
    section.tables = [Table("Where all this comes from.", ["", ""], list(shown.items()))]
    return section


def _next(found: Findings) -> Section:
    configuration = {"name": file(found), "text": found.config.to_yaml()}
    section = Section("next", "What next", commands=commands(found), file=configuration)
    section.paragraphs = [
        "From the folder that has the tracking database, with the project's pipelines/ in it; "
        f"{file(found)} lies beside this page, is an artifact of the pipeline's run, and is below."
    ]
    return section


def _seeds(n: Any, mean: float, low: float, high: float) -> list[str]:
    if pd.isna(n):
        return ["0", "", ""]
    return [str(n), _bits(mean), "" if pd.isna(low) else f"{low:.4f} to {high:.4f}"]


def _values(found: Findings, row: pd.Series) -> str:
    return ", ".join(f"{key}={format_value(row[key])}" for key in found.keys)


def _bits(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4f}"


def _share(value: float) -> str:
    return "n/a" if pd.isna(value) else f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.0f}"


def _printable(text: str) -> str:
    """Generated bytes may be anything: what a page cannot hold is shown as a box."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
