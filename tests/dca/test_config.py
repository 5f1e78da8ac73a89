import pytest

from dca import ModelConfig, registry
from dca.residuals.grn import stack_entries


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("dim", 0), ("depth", 0), ("heads", 3), ("last_k", 0), ("residual", "sum")],
        *[("vocab", -1), ("hyper_streams", 0), ("dropout", 1.0), ("dropout", -0.1)],
    ],
)
def test_a_shape_that_cannot_be_built_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        ModelConfig(**{field: value})


def test_a_stack_has_the_input_the_sum_of_the_older_and_the_last_k():
    config = ModelConfig(depth=6, last_k=2)
    assert [stack_entries(config, t) for t in range(1, 8)] == [1, 2, 3, 4, 4, 4, 4]
    everything = ModelConfig(depth=6, last_k=None)
    assert [stack_entries(everything, t) for t in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"residual": "hyper_connection"}, "did you mean hyper_connections"),
        ({"architecture": "gtp"}, "architecture: expected one of gpt, got 'gtp'; did you mean gpt"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_valid_one(names, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**names)


def test_a_name_is_registered_once():
    names = registry.Registry("residual")
    names("sum")(int)
    with pytest.raises(ValueError, match="residual: sum is registered twice"):
        names("sum")(float)
