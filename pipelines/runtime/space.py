"""A searched key as Optuna knows it: for who proposes its values, and for who explains them."""

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pipelines.runtime.config import Dimension


def distribution(dimension: Dimension) -> BaseDistribution:
    """The range of a dimension; its conditions are not part of it."""
    if dimension.choice is not None:
        return CategoricalDistribution(dimension.choice)
    if dimension.int is not None:
        return IntDistribution(*dimension.int)
    if dimension.log_uniform is not None:
        return FloatDistribution(*dimension.log_uniform, log=True)
    assert dimension.uniform is not None
    return FloatDistribution(*dimension.uniform)
