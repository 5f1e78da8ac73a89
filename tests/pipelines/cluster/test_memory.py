"""What does not fit into the memory of the machine is refused."""

from types import SimpleNamespace

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


def test_what_takes_most_is_the_key_to_change(run, monkeypatch):
    """The micro batch, if it takes more than the model's state: here they are nearly equal."""
    state, found = 16 * run.model.parameter_count(), []
    monkeypatch.setattr(memory, "machine_bytes", lambda: 0)
    for activations in (state, state + 1):
        sizes = iter([10**9 + activations, 10**9])
        monkeypatch.setattr(memory, "peak_bytes", lambda *_, sizes=sizes, **__: next(sizes))
        with pytest.raises(ConfigError) as error:
            require_memory(run, HERE)
        found.append(error.value.problems[0].key)
    assert found == ["model.dim", "train.micro_batch_tokens"]


@pytest.mark.parametrize(
    ("gpus", "trials", "together"), [(1, 8, 1), (0.5, 8, 2), (0.5, 1, 1), (2, 8, 1), (0.3, 8, 3)]
)
def test_trials_that_share_a_gpu_share_its_memory(run, monkeypatch, gpus, trials, together):
    run = run.replace({"train.micro_batch_tokens": run.train.batch_tokens})
    each = peak_bytes(run, on_gpu=True)
    node = [Node("here", 64, 8)]
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: True)
    shared = run.replace({"resources.gpus_per_worker": gpus})
    for room, fits in ((together * each, True), (together * each - 1, False)):
        device = SimpleNamespace(total_memory=room)
        monkeypatch.setattr(memory.torch.cuda, "get_device_properties", lambda _, one=device: one)
        if fits:
            require_memory(shared, node, trials=trials)
        else:
            with pytest.raises(ConfigError, match=rf"{together} x .* the GPU has"):
                require_memory(shared, node, trials=trials)


def test_a_gpu_needs_to_hold_the_smallest_forward_pass_unless_its_size_is_given(run, monkeypatch):
    """Training makes them as large as fit."""
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: True)
    sizes = {"train.batch_tokens": 4096, "train.eval_tokens": 32}
    run = run.replace(sizes | {"resources.gpus_per_worker": 1})
    least = peak_bytes(run.replace({"train.micro_batch_tokens": 32}), on_gpu=True)
    node = [Node("here", 64, 8)]
    for room, fits in ((least, True), (least - 1, False)):
        device = SimpleNamespace(total_memory=room)
        monkeypatch.setattr(memory.torch.cuda, "get_device_properties", lambda _, one=device: one)
        if fits:
            require_memory(run, node)
            continue
        with pytest.raises(ConfigError, match=r"32 bytes of text at once .* smaller model.dim"):
            require_memory(run, node)


def test_processes_of_one_machine_share_the_pages_of_libraries(run, monkeypatch):
    each = peak_bytes(run, on_gpu=False)
    need = 200 * 2**20 + 2 * (each - 200 * 2**20)
    monkeypatch.setattr(memory, "machine_bytes", lambda: need)
    require_memory(run, HERE, trials=2)
    monkeypatch.setattr(memory, "machine_bytes", lambda: need - 1)
    with pytest.raises(ConfigError) as error:
        require_memory(run, HERE, trials=2)
    gigabytes = f"{need / 2**30:.1f} GiB"
    assert f"2 x {each / 2**30:.1f} GiB need about {gigabytes}; the machine has" in str(error.value)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 0)
    with pytest.raises(ConfigError) as error:
        require_memory(run, HERE, trials=1)
    assert "fewer at once" not in str(error.value)


def test_a_training_without_a_gpu_needs_the_machines_memory_although_there_is_a_gpu(
    run, monkeypatch
):
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 0)
    with pytest.raises(ConfigError, match="the machine has"):
        require_memory(run, HERE)


def test_a_range_of_workers_needs_the_memory_of_those_that_fit_the_machine(run, monkeypatch):
    elastic = run.replace({"resources.workers": [1, 8]})
    each = peak_bytes(elastic, on_gpu=False)
    four = memory.SHARED_BYTES + 4 * (each - memory.SHARED_BYTES)
    monkeypatch.setattr(memory, "machine_bytes", lambda: four)
    for trials in (1, 8):
        require_memory(elastic, [Node("here", 4)], trials=trials)
        with pytest.raises(ConfigError, match=r"5 x .* need about"):
            require_memory(elastic, [Node("here", 5)], trials=trials)
