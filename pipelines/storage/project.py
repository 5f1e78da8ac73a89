"""Where the project's own files are; used by all that copy, hash or run its code."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder with the packages `dca` and `pipelines`."""
