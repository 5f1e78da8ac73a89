"""The parts of the page: sections, tables and pictures. Rendered by page.html."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from pipelines.reporting.commands import Command

DOTS_PER_INCH = 150
"""Resolution of the PNG files."""


@dataclass
class Table:
    """Rows of text; columns of numbers are aligned to the right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: set[int] = field(default_factory=set)
    """Indices of the columns that hold numbers."""

    def cell_class(self, column: int) -> Markup:
        """The class attribute of a column's cells."""
        return Markup(' class="number"') if column in self.numbers else Markup("")


@dataclass
class Picture:
    """A figure of the page."""

    name: str
    """File name of its PNG, without the suffix."""
    figure: Figure
    caption: str
    alt: str
    """Alternative text for screen readers."""
    markup: str = ""
    """The figure inside the page."""

    def save(self, folder: Path) -> Path:
        """Write the figure as a PNG file into a folder; returns its path."""
        path = folder / f"{self.name}.png"
        _lay_out(self.figure)
        self.figure.savefig(path, dpi=DOTS_PER_INCH)
        return path


@dataclass
class TextFile:
    """A file whose text is part of the page."""

    name: str
    text: str


@dataclass
class Section:
    """A part of the page under a heading; its empty parts are left out."""

    id: str
    title: str
    points: Sequence[str] = ()
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[str] = ()
    commands: Sequence[Command] = ()
    file: TextFile | None = None


def picture_section(
    name: str,
    title: str,
    draw: Callable[[], Figure],
    *,
    caption: str,
    alt: str,
    missing: str = "",
) -> Section:
    """A section of one picture, or of a sentence why there is none.

    Args:
        name: Of the section and of the picture.
        title: The heading.
        draw: Draws the figure.
        caption: Shown below the figure.
        alt: Alternative text of the figure.
        missing: Why there is no figure; empty if there is one.
    """
    if missing:
        return Section(name, title, paragraphs=[missing])
    return Section(name, title, pictures=[Picture(name, draw(), caption, alt)])


def _lay_out(figure: Figure) -> None:
    """Compute the layout once: `savefig` draws the whole figure one more time for it."""
    figure.set_dpi(DOTS_PER_INCH)
    if layout := figure.get_layout_engine():
        layout.execute(figure)
    figure.set_layout_engine(None)
