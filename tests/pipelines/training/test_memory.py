"""The formula for memory, held to what processes show; and what it refuses."""

import pytest

from pipelines.cluster.capacity import Node
from pipelines.cluster.memory import machine_bytes, require_memory
from pipelines.console.errors import ConfigError
from pipelines.cost import timing
from pipelines.experiment import Experiment, read_experiment
from pipelines.search.space import largest_trial
from pipelines.training import memory
from pipelines.training.memory import peak_bytes

HERE = [Node("here", 2)]


@pytest.fixture
def small(config: Experiment) -> Experiment:
    sizes = {
        "model.dim": 128,
        "model.heads": 4,
        "model.depth": 4,
        "train.evals": 1,
        "train.eval_tokens": 4096,
    }
    return config.replace(sizes | {"train.batch_tokens": 2048, "train.seq_len": 256})


def test_the_formula_is_within_a_quarter_of_what_processes_show(small, monkeypatch):
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.1)
    standard = {"model.residual": "standard", "model.dim": 384}
    long = {"train.seq_len": 1024, "train.batch_tokens": 8192, "train.tokens": 8192}
    sizes = [small.replace(long | {"model.last_k": 4}), small.replace(standard), small]
    for size, found in zip(sizes, timing.time_steps(sizes, at_once=1), strict=True):
        expected = peak_bytes(size, on_gpu=False)
        assert expected == pytest.approx(found.peak_bytes, rel=0.25)
        own, theirs = (peak - memory.PROCESS_BYTES for peak in (expected, found.peak_bytes))
        assert own == pytest.approx(theirs, rel=0.25, abs=64 * memory.MIB)
        assert found.step_seconds > 0
        assert found.eval_seconds > 0


def test_workers_share_a_batch_and_its_memory(small):
    two = small.replace({"resources.workers": 2})
    assert peak_bytes(two, on_gpu=False) < peak_bytes(small, on_gpu=False)
    micro = small.replace({"train.micro_batch_tokens": 256})
    assert peak_bytes(micro, on_gpu=False) < peak_bytes(two, on_gpu=False)


def test_activations_computed_again_are_not_kept(small):
    deep = small.replace({"model.depth": 24})
    again = deep.replace({"train.activation_checkpointing": True})
    assert peak_bytes(again, on_gpu=True) < peak_bytes(deep, on_gpu=True) / 2


def test_workers_that_train_together_are_timed_together(config, monkeypatch):
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.1)
    (found,) = timing.time_steps([config.replace({"resources.workers": 2})], at_once=1)
    assert found.step_seconds > 0


def test_the_largest_size_of_the_space_counts(data):
    data["search"] = {
        "space": {
            "model.depth": {"int": [1, 9]},
            "model.residual": {"choice": ["standard", "dca"]},
            "model.last_k": {"choice": [1, 4], "when": {"model.residual": "dca"}},
            "train.micro_batch_tokens": {"choice": [32, 256]},
            "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        }
    }
    worst = largest_trial(read_experiment(data, source="test"))
    assert (worst.model.depth, worst.model.residual, worst.model.last_k) == (9, "dca", 4)
    assert worst.train.micro_batch_tokens == 256


def test_the_largest_size_may_be_one_that_has_a_condition(data):
    data["search"] = {
        "space": {
            "model.residual": {"choice": ["standard", "dca"]},
            "model.depth": {"int": [2, 60], "when": {"model.residual": "standard"}},
        }
    }
    worst = largest_trial(read_experiment(data, source="test"))
    assert (worst.model.depth, worst.model.residual) == (60, "standard")


def test_what_does_not_fit_names_the_key_that_helps(config, monkeypatch):
    require_memory(config, HERE)
    wide = config.replace({"model.dim": 1 << 16})
    with pytest.raises(ConfigError, match=r"^model.dim: .*the machine has .*a smaller model.dim"):
        require_memory(wide, HERE)
    much = {"train.batch_tokens": 1 << 30, "train.tokens": 1 << 30}
    with pytest.raises(ConfigError, match=r"^train.micro_batch_tokens: .* GiB"):
        require_memory(config.replace(much), HERE)
    require_memory(config.replace({**much, "train.micro_batch_tokens": 4096}), HERE)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    require_memory(wide, HERE)


def test_trials_at_once_share_the_machine(config, monkeypatch):
    alone = peak_bytes(config, on_gpu=False)
    monkeypatch.setattr(memory, "machine_bytes", lambda: alone * 3 // 2)
    require_memory(config, HERE, trials=1)
    with pytest.raises(ConfigError, match=r"2 x .*resources.cpus_per_worker"):
        require_memory(config, HERE, trials=8)


def test_a_containers_limit_is_the_machines(tmp_path, monkeypatch):
    physical = machine_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    limit.write_text("1048576\n")
    assert machine_bytes() == 1 << 20
    limit.write_text("max\n")
    assert machine_bytes() >= physical
