import pytest

from dca import ModelConfig
from pipelines.cost.largest_trial import largest_trial
from pipelines.experiment import read_experiment
from pipelines.search.space import Space
from pipelines.training.memory import peak_bytes


def test_the_largest_size_of_the_space_counts(data):
    data["search"] = {
        "space": {
            "model.depth": {"int": [1, 9]},
            "model.residual": {"choice": ["standard", "dca"]},
            "model.dca.last_k": {"choice": [1, 4], "when": {"model.residual": "dca"}},
            "train.micro_batch_tokens": {"choice": [32, 256]},
            "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        }
    }
    worst = largest_trial(read_experiment(data, source="test").search_task())
    assert (worst.model.depth, worst.model.residual, worst.model.dca.last_k) == (9, "dca", 4)
    assert worst.train.micro_batch_tokens == 256


def test_the_largest_size_may_be_one_that_has_a_condition(data):
    data["search"] = {
        "space": {
            "model.residual": {"choice": ["standard", "dca"]},
            "model.depth": {"int": [2, 60], "when": {"model.residual": "standard"}},
        }
    }
    worst = largest_trial(read_experiment(data, source="test").search_task())
    assert (worst.model.depth, worst.model.residual) == (60, "standard")


def test_a_long_choice_takes_a_model_of_its_largest_value_only(data, monkeypatch):
    counted = []
    count = ModelConfig.parameter_count
    monkeypatch.setattr(
        ModelConfig, "parameter_count", lambda model: counted.append(model) or count(model)
    )
    space = {
        "model.depth": {"choice": [*range(1, 301)]},
        "model.dca.last_k": {"choice": [None, 1, 2]},
    }
    data["search"] = {"space": space}
    worst = largest_trial(read_experiment(data, source="test").search_task())
    assert (worst.model.depth, worst.model.dca.last_k) == (300, None)
    assert len(counted) < 9


@pytest.mark.parametrize(
    ("heads", "bounds", "dim"),
    [
        ({"choice": [4]}, [16, 79], 72),
        ({"int": [3, 5]}, [16, 79], 78),
        ({"int": [7, 8]}, [16, 1 << 11], 1 << 11),
        ({"choice": [64]}, [16, 1000], 896),
    ],
)
def test_the_largest_size_may_lie_inside_a_range_of_which_the_end_is_invalid(
    data, heads, bounds, dim
):
    """A width is an even multiple of the heads."""
    data["search"] = {"space": {"model.dim": {"int": bounds}, "model.heads": heads}}
    worst = largest_trial(read_experiment(data, source="test").search_task())
    assert worst.model.dim == dim


def test_the_largest_size_may_be_a_multiple_of_the_double_of_another(data):
    """Of 66, as a head has an even width: 1023 is one of 33 only, and 1024 of neither."""
    data["model"] |= {"dim": 66, "heads": 33}
    data["search"] = {"space": {"model.dim": {"int": [66, 1040]}}}
    worst = largest_trial(read_experiment(data, source="test").search_task())
    assert worst.model.dim == 990


def test_a_key_may_be_larger_once_another_one_is(data):
    space = {
        "train.micro_batch_tokens": {"int": [32, 512], "step": 32},
        "train.batch_tokens": {"choice": [128, 512]},
    }
    data["search"] = {"space": space}
    worst = largest_trial(read_experiment(data, source="test").search_task())
    assert (worst.train.micro_batch_tokens, worst.train.batch_tokens) == (512, 512)


def test_no_point_of_a_small_space_needs_more(data):
    data["search"] = {
        "space": {
            "model.dim": {"int": [40, 47]},
            "model.heads": {"int": [2, 4]},
            "model.residual": {"choice": ["dca", "standard"]},
            "model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
            "train.micro_batch_tokens": {"choice": [64, 256], "when": {"model.residual": "dca"}},
        }
    }
    task = read_experiment(data, source="test").search_task()
    space = Space(task)
    valid = [task.base.replace(point) for point in space.points() if space.is_valid(point)]
    assert len(valid) > 10
    most = max(peak_bytes(run, on_gpu=False) for run in valid)
    assert peak_bytes(largest_trial(task), on_gpu=False) == most
