from dca import ModelConfig
from pipelines.cost.largest_trial import largest_trial
from pipelines.experiment import read_experiment


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
