"""Heat maps of the weights of a model's mixtures."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pipelines.reporting.figures.style import SHADES, new_figure, styled
from pipelines.reporting.learned_weights import OUT
from pipelines.reporting.mixing import Mixing

MAX_NUMBERED_CELLS = 150
"""Cells of a heat map up to which each has its number written in it."""
MAX_TICKS = 8
"""Named columns of a heat map, roughly."""


@styled
def mixing_weights(mixing: Mixing) -> Figure:
    """The weight of every stack entry, by layer: b, and b with the input-dependent part added."""
    table = mixing.weights
    if table.empty:
        return new_figure(1.0)[0]
    parts = {"b": table["b"]}
    if table["added"].notna().all():
        parts["b + input"] = table["b"] + table["added"]
    outputs = list(dict.fromkeys(table["output"]))
    heads = [output for output in outputs if output != OUT] or outputs
    height = _panel_height(table) * len(parts) + 0.6
    figure, panels = new_figure(height, len(parts), len(heads), sharey=True)
    norm = Normalize(min(p.min() for p in parts.values()), max(p.max() for p in parts.values()))
    for row, (part, values) in enumerate(parts.items()):
        for column, head in enumerate(heads):
            axes = panels[row * len(heads) + column]
            # the read-out has one output, which is shown below the first
            shown = table["output"].isin([head, *([OUT] if column == 0 else [])])
            _draw_heat_map(axes, table[shown].assign(value=values[shown]), table, norm)
            axes.set_title(head, fontsize=9, loc="left")
        panels[row * len(heads)].set_ylabel(f"layer: {part}", fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(norm, SHADES), ax=panels, location="bottom", aspect=40, shrink=0.8, pad=0.02
    )
    bar.set_label("weight")
    return figure


def _panel_height(table: pd.DataFrame) -> float:
    """Inches."""
    layers = max(table["layer"].nunique(), 1)
    return (0.26 if layers > 12 else 0.34) * layers + 1.0


def _draw_heat_map(axes: Axes, shown: pd.DataFrame, table: pd.DataFrame, norm: Normalize) -> None:
    """Layers by stack entries; an entry that a layer's stack does not have is blank."""
    layers = list(dict.fromkeys(table["layer"]))
    layers.sort(key=lambda layer: (layer == OUT, int(layer) if layer != OUT else 0))
    places = table.drop_duplicates("place").sort_values("place").set_index("place")["entry"]
    grid = np.full((len(layers), len(places)), np.nan)
    for _, row in shown.iterrows():
        grid[layers.index(row["layer"]), places.index.get_loc(row["place"])] = row["value"]
    axes.imshow(grid, cmap=SHADES, norm=norm, aspect="auto", interpolation="nearest")
    if grid.size <= MAX_NUMBERED_CELLS:
        _write_numbers(axes, grid, norm)
    step = max(1, len(places) // MAX_TICKS)
    axes.set_xticks(range(0, len(places), step), places.iloc[::step], rotation=60, fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.grid(visible=False)


def _write_numbers(axes: Axes, grid: np.ndarray, norm: Normalize) -> None:
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = "black" if norm(value) > 0.55 else "white"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=color)
