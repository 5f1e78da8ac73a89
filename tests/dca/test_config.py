import pytest

from dca import ModelConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 0), ("depth", 0), ("heads", 3), ("last_k", 0), ("residual", "sum"), ("vocab", -1)],
)
def test_a_shape_that_cannot_be_built_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        ModelConfig(**{field: value})


def test_a_stack_has_the_input_the_sum_of_the_older_and_the_last_k():
    config = ModelConfig(depth=6, last_k=2)
    assert [config.stack_entries(t) for t in range(1, 8)] == [1, 2, 3, 4, 4, 4, 4]
    everything = ModelConfig(depth=6, last_k=None)
    assert [everything.stack_entries(t) for t in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7]
