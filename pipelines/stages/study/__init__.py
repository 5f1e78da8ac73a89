"""The stages of a study alone, a module each, and its fan-out: the arms and seeds of the others.

A study has them besides those of every sweep; the command sweep.py runs them.
"""

from collections.abc import Mapping

from pipelines.engine.instances import FanOut
from pipelines.engine.results import Value
from pipelines.experiment import Experiment

ARM, SEED = "arm", "seed"
"""The dimensions."""


def fan_out(experiment: Experiment) -> FanOut[Experiment] | None:
    """The arms and seeds of an experiment; None if it is no study.

    An instance with an arm and no seed is part of its tuning.
    """
    if not experiment.is_study:
        return None
    dimensions: dict[str, tuple[Value, ...]] = {SEED: experiment.replicate_seeds}
    if experiment.arms:
        dimensions[ARM] = experiment.arm_names
    arms = experiment.by_arm

    def configure(position: Mapping[str, Value]) -> Experiment:
        base = arms[str(position.get(ARM, ""))]
        return base.of_seed(int(position[SEED])) if SEED in position else base

    return FanOut(dimensions, configure)
