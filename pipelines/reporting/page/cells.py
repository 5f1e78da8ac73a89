"""Text of table cells: numbers, intervals and the values of a trial."""

from typing import Any

import pandas as pd

from pipelines.console.text import format_value
from pipelines.reporting.results import Results


def bits_cell(value: float) -> str:
    """Bits per byte; empty without a result."""
    return "" if pd.isna(value) else f"{value:.4f}"


def share_cell(value: float) -> str:
    """A share in percent."""
    return "n/a" if pd.isna(value) else f"{100 * value:.1f} %"


def count_cell(value: float) -> str:
    """A large number; empty without a value."""
    return "" if pd.isna(value) else f"{value:,.0f}"


def seed_cells(n: Any, mean: float, low: float, high: float) -> list[str]:
    """Number of seeds, their mean and its interval."""
    if pd.isna(n):
        return ["0", "", ""]
    return [str(n), bits_cell(mean), "" if pd.isna(low) else f"{low:.4f} to {high:.4f}"]


def values_text(results: Results, row: pd.Series) -> str:
    """A trial's values of the searched keys, as key=value."""
    return ", ".join(f"{key}={format_value(row[key])}" for key in results.keys)


def printable(text: str) -> str:
    """Generated text with its control characters replaced: HTML cannot hold them."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
