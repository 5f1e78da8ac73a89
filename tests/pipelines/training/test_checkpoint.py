import json
import subprocess
from pathlib import Path

import pytest
import torch

from pipelines.runtime.errors import PipelineError, StorageError
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Snapshot


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder, parts, step: int, best_step: int = 1) -> None:
    checkpoint.save(folder, *parts, Snapshot(step, [{"step": step}], best_step, 1.5, "key"))


def test_what_is_saved_is_what_is_resumed(tmp_path, parts):
    save(tmp_path, parts, 1)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    snapshot = checkpoint.resume(tmp_path, model, optimizer, "key", print)
    assert snapshot == Snapshot(1, [{"step": 1}], 1, 1.5, "key")
    assert torch.equal(model.weight, parts[0].weight)
    saved, loaded = (o.state_dict()["state"] for o in (parts[1], optimizer))
    assert saved.keys() == loaded.keys()
    for index, state in saved.items():
        assert state.keys() == loaded[index].keys()
        assert all(torch.equal(state[name], loaded[index][name]) for name in state)


def test_the_newest_two_and_the_best_are_kept(tmp_path, parts):
    for step in range(1, 6):
        save(tmp_path, parts, step, best_step=min(step, 2))
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [2, 4, 5]


@pytest.mark.parametrize("damage", ["truncate", "flip", "state", "altered", "missing", "digests"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, parts, damage):
    save(tmp_path, parts, 1)
    save(tmp_path, parts, 2)
    newest = checkpoint.path_of(tmp_path, 2)
    file = newest / "tensors.safetensors"
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-5])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "state":
        (newest / "state.json").write_text("{")
    elif damage == "altered":
        state = (newest / "state.json").read_text()
        (newest / "state.json").write_text(state.replace('"seconds": 1.5', '"seconds": 2.5'))
    elif damage == "digests":
        (newest / "SHA256SUMS").unlink()
    else:
        file.unlink()
    said: list[str] = []
    assert checkpoint.resume(tmp_path, *parts, "key", said.append).step == 1
    (text,) = said
    assert text.startswith(f"{newest}: damaged checkpoint")
    with pytest.raises(PipelineError, match="damaged"):
        checkpoint.read_weights(newest)


def test_a_checkpoint_half_written_is_none(tmp_path, parts):
    save(tmp_path, parts, 1)
    (tmp_path / ".00000002").mkdir()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["00000001"]
    save(tmp_path, parts, 3)
    assert not (tmp_path / ".00000002").exists()
    assert checkpoint.resume(tmp_path / "none", *parts, "key", print) is None


def test_a_checkpoint_of_another_configuration_is_not_resumed(tmp_path, parts):
    save(tmp_path, parts, 1)
    said: list[str] = []
    assert checkpoint.resume(tmp_path, *parts, "another key", said.append) is None
    assert "another configuration" in said[0]


def test_what_lies_ahead_of_the_newest_is_dropped(tmp_path, parts):
    """Damaged, or of another configuration: it must not outlive what the run needs."""
    for step in (8, 9, 3, 4):
        save(tmp_path, parts, step, best_step=3)
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [3, 4]


def test_a_disk_that_refuses_is_one_error_and_leaves_what_was_there(tmp_path, parts):
    save(tmp_path, parts, 1)
    (tmp_path / ".00000002").write_text("no folder can be made here, and none removed")
    with pytest.raises(StorageError, match=r"00000002: the checkpoint cannot be written: .+Not a"):
        save(tmp_path, parts, 2)
    assert checkpoint.resume(tmp_path, *parts, "key", print).step == 1
    with pytest.raises(StorageError, match=r"/proc/nowhere/00000001"):
        save(Path("/proc/nowhere"), parts, 1)


def test_the_digests_are_those_of_sha256sum(tmp_path, parts):
    save(tmp_path, parts, 1)
    folder = checkpoint.path_of(tmp_path, 1)
    result = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder)
    assert result.returncode == 0


def test_a_checkpoint_holds_no_pickle(tmp_path, parts):
    save(tmp_path, parts, 1)
    folder = checkpoint.path_of(tmp_path, 1)
    names = ["SHA256SUMS", "state.json", "tensors.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    json.loads((folder / "state.json").read_text())
