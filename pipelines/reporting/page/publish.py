"""Rendering of the page, and its files in storage and in the tracking store."""

import base64
import io
import logging
import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from html import escape
from importlib.resources import files
from pathlib import Path

import matplotlib
from jinja2 import Environment
from markupsafe import Markup

from pipelines.console.errors import RefusedError, StorageError
from pipelines.reporting.commands import config_file, report_folder, run_folder
from pipelines.reporting.importance import importance
from pipelines.reporting.mixing import read_mixing
from pipelines.reporting.page.content import Picture, Section
from pipelines.reporting.page.leaderboard import leaderboard_section
from pipelines.reporting.page.model_sections import (
    mixing_section,
    samples_section,
    winner_section,
)
from pipelines.reporting.page.provenance_sections import lineage_section, next_section
from pipelines.reporting.page.search_sections import (
    curves_section,
    failures_section,
    history_section,
    importance_section,
    parallel_section,
    pruning_section,
    slices_section,
)
from pipelines.reporting.page.study_section import study_sections
from pipelines.reporting.results import Results
from pipelines.reporting.summary import summary
from pipelines.storage.digests import DIGESTS_FILE, parse_digests, sha256_of, write_digests
from pipelines.storage.location import storage_folder
from pipelines.storage.private import make_private
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.locks import exclusive_lock
from pipelines.tracking.schema import PAGE_FILE, REPORT_FOLDER
from pipelines.tracking.uri import require_artifacts

LOCK_WAIT_SECONDS = 300
"""Longest wait for another report; one of thousands of trials takes half a minute."""
MAX_SVG_BYTES = 1_000_000
"""A figure with a larger SVG is a PNG in the page, too."""


def publish(results: Results) -> Path:
    """Write the report into a folder of its pipeline's run and log it as artifacts of that.

    The newest report of an experiment is copied to the same place. Returns that page's path.
    """
    run_id, newest = results.pipeline.info.run_id, report_folder(results.config)
    kept = results.store.client.get_experiment(results.store.experiment_id)
    storage = storage_folder(results.config.storage)
    require_artifacts(kept.name, kept.artifact_location, storage, warn=True)
    with _alone(newest), scratch_folder() as scratch:
        own = write(results, run_folder(results.config, run_id)).parent
        _make_own(newest)
        _delete_earlier(newest)
        for name in parse_digests((own / DIGESTS_FILE).read_text(encoding="utf-8")):
            shutil.copy(own / name, scratch)  # the folders may have files of others
            shutil.copy(own / name, _new(newest / name))
        shutil.copy(own / DIGESTS_FILE, _new(newest / DIGESTS_FILE))
        try:
            results.store.log_files(run_id, scratch, REPORT_FOLDER)
        except RefusedError as error:  # of a user who may read the experiment
            message = "the report is on this machine only, not with its run: %s"
            logging.getLogger(__name__).warning(message, error)
    return newest / PAGE_FILE


def publish_against(results: Results, baseline: str) -> Path:
    """Write the report of a study with another baseline beside the newest one; returns its path.

    It is no artifact: it can be written again from the store at any time.
    """
    folder = report_folder(results.experiment)
    own = run_folder(results.config, results.pipeline.info.run_id)
    with _alone(folder):
        if not (own / config_file(results.config)).is_file():  # of which the page has the commands
            _make_own(own)
            _write_config(results, own)
        return write(results, folder / f"against-{baseline}")


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Wait for another command that writes reports there: each replaces the other's files."""
    return exclusive_lock(f"reports in {folder}", wait_seconds=LOCK_WAIT_SECONDS)


def write(results: Results, folder: Path) -> Path:
    """Write the page, the figures and the experiment's YAML into a folder; returns the page's path.

    The files that an earlier report has listed in the folder are deleted, unless they were changed.
    """
    _make_own(folder)
    _delete_earlier(folder)
    sections = all_sections(results)
    for picture in (picture for section in sections for picture in section.pictures):
        _new(folder / f"{picture.name}.png")
        png = picture.save(folder)
        picture.markup = _markup(picture, png)
    _write_config(results, folder)
    path = _new(folder / PAGE_FILE)
    path.write_text(_render(results, sections), encoding="utf-8")
    figures = [f"{picture.name}.png" for section in sections for picture in section.pictures]
    _new(folder / DIGESTS_FILE)
    write_digests(folder, [*figures, config_file(results.config), PAGE_FILE])
    return path


def _write_config(results: Results, folder: Path) -> None:
    _new(folder / config_file(results.config)).write_text(results.experiment.to_yaml(), "utf-8")


def _delete_earlier(folder: Path) -> None:
    """Delete the files of an earlier report, by the list that it wrote, and no other."""
    listed = folder / DIGESTS_FILE
    if listed.is_symlink() or not listed.is_file():  # a pipe would be waited for
        return
    with suppress(OSError, ValueError):  # it is another list
        for name, digest in parse_digests(listed.read_text(encoding="utf-8")).items():
            path = folder / name
            if "/" in name or path.is_symlink() or not path.is_file():
                continue
            if sha256_of(path) == digest:
                path.unlink()


def _make_own(folder: Path) -> None:
    """Make the report's folder. Raises StorageError if it is a link: it would be another's."""
    try:
        link = next((path for path in (folder, folder.parent) if path.is_symlink()), None)
        if link:
            raise StorageError(f"{link} is a link; expected a folder of reports")
        make_private(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None


def _new(path: Path) -> Path:
    """A path to write to, at which there is no link, whose target would be written, and no pipe.

    Raises StorageError if a folder is there.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def all_sections(results: Results) -> list[Section]:
    """The sections of the page, in order."""
    known = importance(results)
    return [
        Section("summary", "Summary", points=summary(results, known)),
        *study_sections(results),
        leaderboard_section(results),
        importance_section(results, known),
        history_section(results),
        parallel_section(results),
        slices_section(results),
        curves_section(results),
        pruning_section(results),
        failures_section(results),
        winner_section(results),
        mixing_section(read_mixing(results)),
        samples_section(results),
        lineage_section(results),
        next_section(results),
    ]


def _render(results: Results, sections: Sequence[Section]) -> str:
    environment = Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string(
        (files(__package__) / "page.html").read_text(encoding="utf-8")
    )
    counts = results.trials["state"].value_counts()
    trials = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"
    what = "Trials"
    if results.arm:
        what = f"From the leaderboard on, this page is about {results.arm}. Trials of its search"
    return template.render(
        title=f"{results.config.experiment}: report",
        subtitle=f"{what}: {trials}. Bits per byte: less is better.",
        sections=sections,
    )


def _markup(picture: Picture, png: Path) -> Markup:
    """The figure as SVG, or as PNG if the SVG is too large."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        picture.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    alt = escape(picture.alt, quote=True)
    if len(svg) > MAX_SVG_BYTES:
        data = base64.b64encode(png.read_bytes()).decode()
        return Markup(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[A-Za-z][A-Za-z0-9.]{3,}_\d+"', "", svg)  # the same in every figure
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1))
