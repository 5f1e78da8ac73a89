import pickle

import pytest
import torch
from torch import nn

from dca import ModelConfig, registry
from dca.compat import SkipInitialisation
from dca.errors import FieldError
from dca.residuals.dca import entry_names, stack_entries
from tests.sections import fields, shipped_fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("dim", 0), ("depth", 0), ("heads", 3), ("residual", "sum")],
        *[("vocab", -1), ("dropout", 1.0), ("dropout", -0.1)],
    ],
)
def test_a_shape_that_cannot_be_built_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        ModelConfig(**{field: value})


def test_a_stack_has_the_input_the_sum_of_the_older_and_the_last_k():
    config = ModelConfig(depth=6, dca={"last_k": 2})
    assert [stack_entries(config, t) for t in range(1, 8)] == [1, 2, 3, 4, 4, 4, 4]
    everything = ModelConfig(depth=6, dca={"last_k": None})
    assert [stack_entries(everything, t) for t in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7]


def test_entries_of_a_stack_have_the_same_place_in_every_layer():
    config = ModelConfig(depth=6, dca={"last_k": 2})
    assert entry_names(config, 1) == [("embedding", 0)]
    assert entry_names(config, 3) == [("embedding", 0), ("2 back", 2), ("1 back", 3)]
    assert entry_names(config, 5) == [
        *[("embedding", 0), ("older", 1), ("2 back", 2), ("1 back", 3)]
    ]
    everything = config.with_options(last_k=None)
    assert entry_names(everything, 3) == [("embedding", 0), ("block 1", 1), ("block 2", 2)]


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


def test_defaults_and_limits_are_those_of_the_shipped_schema():
    assert fields(ModelConfig) == shipped_fields(ModelConfig)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 12, "heads": 4}, "heads: dim / heads must be an even number, got 12 / 4"),
        ({"dim": 20, "heads": 8}, "heads: dim / heads must be an even number, got 20 / 8"),
        ({"attention_windows": ()}, r"attention_windows: .*, got \[\]"),
        ({"attention_windows": (0,)}, r"of at least 1 or null, got \[0\]"),
        ({"attention_windows": (4, None, -1)}, r"got \[4, None, -1\]"),
        ({"dca": {"init_std": -0.1}}, "^dca.init_std: expected at least 0, got -0.1"),
        ({"dca": {"init_std": float("inf")}}, "dca.init_std: expected at least 0, got inf"),
        ({"dca": {"b_rate": 0.0}}, "dca.b_rate: expected more than 0, got 0.0"),
        ({"dca": {"width": 1}}, "^dca.width: expected one of last_k, init_std, "),
        (
            {"hyper_connections": {"streams": 0}},
            "streams: expected at least 1 and at most 64, got 0",
        ),
        ({"ff_mult": 0}, "ff_mult: expected at least 1, got 0"),
        ({"dca": {"last_k": 0}}, "dca.last_k: expected at least 1 or null, got 0"),
        ({"kv_heads": 3}, "kv_heads: expected null or a divisor of heads = 4, got 3"),
        ({"kv_heads": 0}, "kv_heads: expected null or a divisor of heads = 4, got 0"),
        ({"kv_heads": 8}, "kv_heads: expected null or a divisor of heads = 4, got 8"),
        ({"activation": "relu"}, "activation: expected one of gelu, relu2, swiglu, got 'relu'"),
        ({"logit_softcap": 0.0}, "logit_softcap: expected more than 0 or null, got 0.0"),
        ({"logit_softcap": float("inf")}, "logit_softcap: expected more than 0 or null, got inf"),
        ({"logit_softcap": float("nan")}, "logit_softcap: expected more than 0 or null, got nan"),
    ],
)
def test_an_invalid_shape_is_refused_with_what_was_expected(given, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**given)


@pytest.mark.parametrize(
    "given",
    [
        *({"dim": 2, "heads": 1}, {"dca": {"last_k": 1}}, {"dropout": 0.0}, {"dropout": 0.999}),
        *(
            {"dca": {"init_std": 0.0}},
            {"attention_windows": [1]},
            {"hyper_connections": {"streams": 1}},
            {"vocab": 1},
        ),
        *({"kv_heads": 1}, {"kv_heads": 4}, {"logit_softcap": 1e-6}),
    ],
)
def test_the_smallest_shapes_are_valid(given):
    assert ModelConfig(**given)


@pytest.mark.parametrize(
    ("dim", "ff_mult", "hidden"),
    [(768, 4, 2048), (512, 4, 1360), (128, 4, 336), (64, 4, 176), (64, 1, 48), (4, 1, 16)],
)
def test_swiglu_has_as_many_parameters_in_two_thirds_of_the_width(dim, ff_mult, hidden):
    config = ModelConfig(dim=dim, heads=1, ff_mult=ff_mult, activation="swiglu")
    assert config.ff_dim == hidden
    assert (
        ModelConfig(dim=dim, heads=1, ff_mult=ff_mult, activation="relu2").ff_dim == ff_mult * dim
    )


def test_attention_windows_are_repeated_over_the_depth():
    config = ModelConfig(attention_windows=[8, None, 2])
    assert [config.window(block) for block in range(1, 6)] == [8, None, 2, 8, None]


def test_an_error_has_its_parts_and_names_the_nearest_if_there_is_one():
    bare, near = FieldError("dim", "expected 1"), FieldError("dim", "expected 1", "depth")
    assert (str(bare), str(near)) == ("dim: expected 1", "dim: expected 1; did you mean depth?")
    for error in (bare, near):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (FieldError, str(error))
        parts = (again.field, again.message, again.nearest)
        assert parts == (error.field, error.message, error.nearest)


def test_functions_that_draw_are_skipped_and_others_are_not():
    with SkipInitialisation():
        for tensor in (nn.init.normal_(torch.zeros(3)), nn.init.uniform_(tensor=torch.zeros(3))):
            assert tensor.tolist() == [0, 0, 0]
        assert (torch.zeros(3) + 1).tolist() == [1, 1, 1]
    assert nn.init.constant_(torch.zeros(2), 5).tolist() == [5, 5]
