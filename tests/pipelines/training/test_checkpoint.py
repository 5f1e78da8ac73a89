import errno
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pipelines.console.errors import PipelineError, StorageError
from pipelines.storage import remote
from pipelines.storage.remote import RemoteDirectory
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Snapshot, content, saving
from tests.pipelines.training.runs import KEY, forge, unsign

NAMES = ["SHA256SUMS", "state.json", "tensors.safetensors"]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder, parts, step: int, best_step: int = 1, key: str | None = None) -> None:
    snapshot = Snapshot(step, [{"step": step}], best_step, 1.5, "key")
    checkpoint.save(folder, *parts, snapshot, key=key)


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
    assert [int(path.name) for path in checkpoint.list_checkpoints(tmp_path)] == [2, 4, 5]


def test_steps_of_nine_digits_are_found_in_their_order(tmp_path, parts):
    """They were not found, and a training with so many began anew."""
    save_many(tmp_path, parts)


@pytest.mark.extended
def test_steps_of_nine_digits_are_found_in_shared_storage(shared, parts):
    save_many(shared.claimed(), parts)


def save_many(folder, parts) -> None:
    first = 10**8 - 2
    for step in range(first, first + 5):
        save(folder, parts, step, best_step=first)
    found = checkpoint.list_checkpoints(folder)
    assert [checkpoint.step_of(path) for path in found] == [first, first + 3, first + 4]
    assert checkpoint.resume(folder, *parts, "key", pytest.fail).step == first + 4


def test_a_resumed_run_keeps_no_file_of_its_checkpoint_mapped(tmp_path, parts):
    """A file server keeps a file that is removed meanwhile, and then its folder, too."""
    save(tmp_path, parts, 1)
    assert checkpoint.resume(tmp_path, *parts, "key", print).step == 1
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_checkpoint_that_cannot_be_removed_ends_no_training_and_is_removed_later(
    tmp_path, parts, monkeypatch
):
    def refuse(path, **_):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        for step in range(1, 5):
            save(tmp_path, parts, step, best_step=step)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert checkpoint.resume(tmp_path, *parts, "key", pytest.fail).step == 4
    save(tmp_path, parts, 5, best_step=5)
    assert steps(tmp_path) == [4, 5]


def test_what_others_left_beside_checkpoints_is_none_and_is_not_touched(tmp_path, parts):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "0-other").mkdir()
    (folder / "00000001").symlink_to(outside)
    for step in range(2, 6):
        save(folder, parts, step)
    assert [int(path.name) for path in checkpoint.list_checkpoints(folder)] == [4, 5]
    assert outside.is_dir()


@pytest.mark.parametrize("name", ["00000002", ".00000002", ".00000001"])
def test_a_link_or_a_file_with_the_name_of_a_checkpoint_is_replaced(tmp_path, parts, name):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "kept").touch()
    for put in (lambda path: path.symlink_to(outside), Path.touch):
        save(folder, parts, 1)
        put(folder / name)
        assert checkpoint.resume(folder, *parts, "key", print, step=2) is None
        save(folder, parts, 2)
        found = checkpoint.resume(folder, *parts, "key", print, step=2)
        assert found is not None
        assert [path.name for path in outside.iterdir()] == ["kept"]
        shutil.rmtree(folder)


def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, parts):
    save(tmp_path, parts, 1)
    (checkpoint.path_of(tmp_path, 1) / "state.json").unlink()
    os.mkfifo(checkpoint.path_of(tmp_path, 1) / "state.json")
    log = []
    assert checkpoint.resume(tmp_path, *parts, "key", log.append) is None
    assert "state.json is no file" in log[0]


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


def sign_with_another_key(path: Path) -> None:
    """As a checkpoint of another run is, whose tracking store is another's."""
    digests = (path / "SHA256SUMS").read_text()
    (path / "SIGNATURE").write_text(content._signature(digests, "f" * 32))


def replace_by_an_earlier_one(path: Path) -> None:
    """One of the same run, under the name of a later step."""
    shutil.rmtree(path)
    shutil.copytree(path.with_name("00000001"), path)


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (forge, "SIGNATURE: missing, or not made with the key of its run"),
        (unsign, "SIGNATURE: missing, or not made with the key of its run"),
        (sign_with_another_key, "SIGNATURE: missing, or not made with the key of its run"),
        (replace_by_an_earlier_one, "state.json: it is of step 1"),
    ],
)
def test_what_the_run_did_not_write_is_no_checkpoint_of_it(tmp_path, parts, alter, reason):
    """Its digests are right: without the key it is taken."""
    for step in (1, 2):
        save(tmp_path, parts, step, key=KEY)
    newest = checkpoint.path_of(tmp_path, 2)
    alter(newest)
    said: list[str] = []
    assert checkpoint.resume(tmp_path, *parts, "key", said.append, key=KEY).step == 1
    (text,) = said
    assert text.startswith(f"{newest}: damaged checkpoint: {reason}")
    assert text.endswith("; not used")
    with pytest.raises(PipelineError, match=reason):
        checkpoint.read_weights(newest, key=KEY)
    assert checkpoint.resume(tmp_path, *parts, "key", print, step=2, key=KEY) is None
    forge(checkpoint.path_of(tmp_path, 1))
    assert checkpoint.resume(tmp_path, *parts, "key", said.append, key=KEY) is None
    assert said[3:] == [f"{tmp_path}: no checkpoint can be used; training starts from step 0"]
    if alter is not replace_by_an_earlier_one:
        assert checkpoint.resume(tmp_path, *parts, "key", pytest.fail).step == 2


@pytest.mark.extended
@pytest.mark.parametrize("alter", [forge, unsign])
def test_what_the_run_did_not_write_into_shared_storage_is_passed_over(shared, parts, alter):
    mine = shared.claimed()
    for step in (1, 2):
        save(mine, parts, step, key=KEY)
    newest = checkpoint.list_checkpoints(shared)[-1]
    alter(newest)
    said: list[str] = []
    assert checkpoint.resume(shared, *parts, "key", said.append, key=KEY).step == 1
    (text,) = said
    assert text.startswith(
        f"{newest}: damaged checkpoint: SIGNATURE: missing, or not made with the key of its run"
    )
    assert checkpoint.resume(shared, *parts, "key", pytest.fail).step == 2
    save(shared.claimed(), parts, 2, key=KEY)
    assert checkpoint.resume(shared, *parts, "key", pytest.fail, key=KEY).step == 2


def test_an_earlier_checkpoint_of_the_run_under_its_own_step_is_accepted(tmp_path, parts):
    """As from a backup: the run itself wrote it."""
    save(tmp_path, parts, 1, key=KEY)
    shutil.copytree(tmp_path / "00000001", tmp_path / "kept")
    for step in (2, 3, 4):
        save(tmp_path, parts, step, best_step=4, key=KEY)
    assert steps(tmp_path) == [3, 4]
    for path in checkpoint.list_checkpoints(tmp_path):
        shutil.rmtree(path)
    (tmp_path / "kept").rename(tmp_path / "00000001")
    assert checkpoint.resume(tmp_path, *parts, "key", pytest.fail, key=KEY).step == 1


def test_a_key_is_in_no_file(tmp_path, parts):
    save(tmp_path, parts, 1, key=KEY)
    folder = checkpoint.path_of(tmp_path, 1)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, "SIGNATURE"])
    assert not [path for path in folder.iterdir() if KEY.encode() in path.read_bytes()]


def test_a_checkpoint_half_written_is_none(tmp_path, parts):
    save(tmp_path, parts, 1)
    (tmp_path / ".00000002").mkdir()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["00000001"]
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
    assert [int(path.name) for path in checkpoint.list_checkpoints(tmp_path)] == [3, 4]


def test_a_disk_that_refuses_is_one_error_and_leaves_what_was_there(tmp_path, parts, monkeypatch):
    save(tmp_path, parts, 1)

    def refuse(folder, *_):
        (folder / "model.safetensors").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_files", refuse)
        with pytest.raises(StorageError, match=r"00000002: the checkpoint cannot be .+No space"):
            save(tmp_path, parts, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
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
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    json.loads((folder / "state.json").read_text())


def steps(folder) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(folder)]


def test_what_is_saved_in_shared_storage_is_what_is_resumed_from_it(shared, parts):
    save(shared.claimed(), parts, 1)
    (path,) = checkpoint.list_checkpoints(shared)
    assert {*shared.files()} == {"owner", *(f"{path.name}/{name}" for name in NAMES)}
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    snapshot = checkpoint.resume(shared, model, optimizer, "key", print)
    assert snapshot == Snapshot(1, [{"step": 1}], 1, 1.5, "key")
    assert torch.equal(model.weight, parts[0].weight)
    weights = checkpoint.read_weights(path)
    assert torch.equal(weights["weight"], parts[0].weight)
    assert checkpoint.resume(shared / "none", *parts, "key", print) is None


def test_the_newest_two_and_the_best_are_kept_in_shared_storage(shared, parts):
    mine = shared.claimed()
    for step in range(1, 6):
        save(mine, parts, step, best_step=min(step, 2))
    assert steps(shared) == [2, 4, 5]
    save(mine, parts, 3, best_step=2)  # what lies ahead was passed over
    assert steps(shared) == [2, 3]
    assert len(shared.files()) == 1 + 2 * 3


@pytest.mark.parametrize(("uploaded", "key"), [(0, KEY), (1, KEY), (2, KEY), (3, KEY), (2, None)])
def test_an_upload_cut_short_is_no_checkpoint_and_the_next_one_clears_it_away(
    shared, parts, uploaded, key, monkeypatch
):
    mine = shared.claimed()
    save(mine, parts, 1, key=key)
    upload, calls = remote.upload, itertools.count()

    def killed(*to):
        if next(calls) == uploaded:
            raise KeyboardInterrupt
        upload(*to)

    with monkeypatch.context() as context:
        context.setattr(remote, "upload", killed)
        with pytest.raises(KeyboardInterrupt):
            save(mine, parts, 2, key=key)
    assert len([file for file in shared.files() if file.startswith("00000002")]) == uploaded
    assert steps(shared) == [1]
    assert checkpoint.resume(shared, *parts, "key", pytest.fail, key=key).step == 1
    save(shared.claimed(), parts, 3, best_step=3, key=key)
    assert steps(shared) == [1, 3]
    assert not [file for file in shared.files() if file.startswith("00000002")]


@pytest.mark.parametrize("damage", ["truncate", "altered", "missing", "digests"])
def test_a_damaged_object_is_passed_over(shared, parts, damage):
    mine = shared.claimed()
    save(mine, parts, 1)
    save(mine, parts, 2)
    newest = checkpoint.list_checkpoints(shared)[-1]
    if damage == "truncate":
        (newest / "tensors.safetensors").write_text("short")
    elif damage == "altered":
        state = (newest / "state.json").read_text()
        (newest / "state.json").write_text(state.replace('"seconds": 1.5', '"seconds": 2.5'))
    elif damage == "digests":
        (newest / "SHA256SUMS").write_text("")
    else:
        (newest / "tensors.safetensors").delete_file()
    said: list[str] = []
    assert checkpoint.resume(shared, *parts, "key", said.append).step == 1
    (text,) = said
    assert text.startswith(f"{newest}: damaged checkpoint")
    with pytest.raises(PipelineError, match="damaged"):
        checkpoint.read_weights(newest)
    assert checkpoint.resume(shared, *parts, "key", said.append, step=2) is None
    save(shared.claimed(), parts, 2)
    assert steps(shared) == [1, 2]
    assert checkpoint.resume(shared, *parts, "key", pytest.fail).step == 2


def filled(parts, value: float):
    torch.nn.init.constant_(parts[0].weight, value)
    return parts


@pytest.mark.parametrize("moment", ["its files are uploaded", "it knows what to remove"])
def test_a_writer_that_was_frozen_neither_tears_nor_removes_what_the_next_one_wrote(
    shared, parts, monkeypatch, moment
):
    """It wakes when another has gone on from its last checkpoint."""
    old = shared.claimed()
    save(old, filled(parts, 1), 1)
    upload, files, awake = remote.upload, RemoteDirectory.files, iter([False])

    def freeze() -> None:
        if next(awake, True):
            return
        begun = checkpoint.resume(shared, *parts, "key", pytest.fail).step
        new = shared.claimed()
        for step in range(begun + 1, begun + 4):
            save(new, filled(parts, 10 + step), step, best_step=begun + 1)

    def uploaded(system, path, source) -> None:
        upload(system, path, source)
        if moment == "its files are uploaded" and source.name == "tensors.safetensors":
            freeze()

    def listed(folder) -> set[str]:
        found = files(folder)
        if moment == "it knows what to remove":
            freeze()
        return found

    monkeypatch.setattr(remote, "upload", uploaded)
    monkeypatch.setattr(RemoteDirectory, "files", listed)
    with pytest.raises(PipelineError, match="another process trains here"):
        save(old, filled(parts, 2), 2)
    found = checkpoint.list_checkpoints(shared)
    assert len(found) == 3
    for path in found:
        weight = checkpoint.read_weights(path)["weight"]
        assert weight.unique() == 10 + checkpoint.step_of(path)


def test_of_two_writers_of_one_step_each_leaves_a_whole_checkpoint(shared, parts):
    """As when both looked at the owner before either wrote its digests."""
    first, second = shared.claimed(), shared.claimed()
    for writer, value in [(first, 1), (second, 2)]:
        (shared / "owner").write_text(writer.owner)
        save(writer, filled(parts, value), 5)
    assert steps(shared) == [5]  # the one who wrote last clears away the other's
    (path,) = checkpoint.list_checkpoints(shared)
    assert path.name.endswith(second.owner)
    assert checkpoint.read_weights(path)["weight"].unique() == 2


def test_shared_storage_that_is_away_is_not_taken_for_a_damaged_checkpoint(
    shared, parts, monkeypatch
):
    mine = shared.claimed()
    save(mine, parts, 1)
    save(mine, parts, 2)

    def away(*_):
        raise StorageError("away")

    monkeypatch.setattr(RemoteDirectory, "get", away)
    with pytest.raises(StorageError, match="away"):
        checkpoint.resume(shared, *parts, "key", pytest.fail)
