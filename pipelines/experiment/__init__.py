"""One experiment: its sections, the rules between them, and how it is read from a command line.

Used by the stages, the report and the commands. `python -m pipelines.experiment` prints the
reference table of all keys, with --schema the JSON schema.
"""

from pipelines.experiment.config import FIELDS, Experiment
from pipelines.experiment.reading import load, read_experiment, read_packaged, read_stored
from pipelines.experiment.reference import reference, schema

__all__ = [
    "FIELDS",
    "Experiment",
    "load",
    "read_experiment",
    "read_packaged",
    "read_stored",
    "reference",
    "schema",
]
