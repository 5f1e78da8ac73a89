"""What does not fit into the memory of the machine is refused."""

import pytest

from pipelines.cluster import memory
from pipelines.cluster.capacity import Node
from pipelines.cluster.memory import machine_bytes, require_memory
from pipelines.console.errors import ConfigError
from pipelines.training.memory import peak_bytes

HERE = [Node("here", 2)]


def test_what_does_not_fit_names_the_key_that_helps(run, monkeypatch):
    require_memory(run, HERE)
    wide = run.replace({"model.dim": 1 << 16})
    with pytest.raises(ConfigError, match=r"^model.dim: .*the machine has .*a smaller model.dim"):
        require_memory(wide, HERE)
    much = {"train.batch_tokens": 1 << 30, "train.tokens": 1 << 30}
    with pytest.raises(ConfigError, match=r"^train.micro_batch_tokens: .* GiB"):
        require_memory(run.replace(much), HERE)
    require_memory(run.replace({**much, "train.micro_batch_tokens": 4096}), HERE)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    require_memory(wide, HERE)


def test_trials_at_once_share_the_machine(run, monkeypatch):
    alone = peak_bytes(run, on_gpu=False)
    monkeypatch.setattr(memory, "machine_bytes", lambda: alone * 3 // 2)
    require_memory(run, HERE, trials=1)
    with pytest.raises(ConfigError, match=r"2 x .*resources.cpus_per_worker"):
        require_memory(run, HERE, trials=8)


def test_a_containers_limit_is_the_machines(tmp_path, monkeypatch):
    physical = machine_bytes()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    limit.write_text("1048576\n")
    assert machine_bytes() == 1 << 20
    limit.write_text("max\n")
    assert machine_bytes() >= physical
