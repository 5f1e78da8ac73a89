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


def test_a_name_is_registered_once(tmp_path):
    names = registry.Registry("residual", tmp_path)
    names("sum")(int)
    with pytest.raises(ValueError, match="residual: sum is registered twice"):
        names("sum")(float)
    for file in ("one.py", "two.py"):
        (tmp_path / file).write_text('@residual("sum")\nclass Sum: ...\n')
    with pytest.raises(ValueError, match="residual: sum is registered twice"):
        _ = registry.Registry("residual", tmp_path).names


def test_the_names_of_the_files_are_those_that_their_classes_are_registered_under():
    for kinds in (registry.residual, registry.architecture):
        for name in kinds.names:
            assert kinds[name].__module__ == kinds.module(name)


def test_names_are_read_without_importing_the_files(tmp_path):
    (tmp_path / "kind.py").write_text(
        'import nothing\n@registry.residual("far")\n@other\nclass Far: ...\n'
        '@residual("near")\nclass Near: ...\n'
    )
    names = registry.Registry("residual", tmp_path)
    assert names.names == ["far", "near"]
    assert names.module("near") == f"dca.{tmp_path.name}.kind"
