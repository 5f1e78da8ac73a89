import json

import pytest
import torch

from pipelines.runtime.errors import PipelineError
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
    snapshot = checkpoint.resume(tmp_path, model, optimizer, "key")
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


@pytest.mark.parametrize("damage", ["truncate", "flip", "state", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path, parts, damage, capsys
):
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
    else:
        file.unlink()
    model, optimizer = parts
    assert checkpoint.resume(tmp_path, model, optimizer, "key").step == 1
    assert f"{newest}: damaged checkpoint" in capsys.readouterr().out
    with pytest.raises(PipelineError, match="damaged"):
        checkpoint.read_weights(newest)


def test_a_checkpoint_half_written_is_none(tmp_path, parts):
    save(tmp_path, parts, 1)
    (tmp_path / ".00000002.77").mkdir()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["00000001"]
    save(tmp_path, parts, 3)
    assert not (tmp_path / ".00000002.77").exists()
    assert checkpoint.resume(tmp_path / "none", *parts, "key") is None


def test_a_checkpoint_of_another_configuration_is_not_resumed(tmp_path, parts, capsys):
    save(tmp_path, parts, 1)
    assert checkpoint.resume(tmp_path, *parts, "another key") is None
    assert "another configuration" in capsys.readouterr().out


def test_a_checkpoint_holds_no_pickle(tmp_path, parts):
    save(tmp_path, parts, 1)
    folder = checkpoint.path_of(tmp_path, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "tensors.safetensors"]
    json.loads((folder / "state.json").read_text())
