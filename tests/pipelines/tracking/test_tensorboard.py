import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from pipelines.console.errors import StorageError
from pipelines.engine import dag
from pipelines.experiment import Experiment
from pipelines.stages import sweep_stages, train
from pipelines.stages.corpus import CorpusStage
from pipelines.tracking.tensorboard import EventFiles
from pipelines.tracking.writer import Writer


def rows(*steps: int) -> list[dict]:
    return [{"step": n, "time": 1e9 + n, "train_bits_per_byte": n / 2} for n in steps]


def read(folder: Path) -> list[tuple[int, float, dict[str, float]]]:
    """Step, time and values of every event of the one file in a folder (TFRecord framing)."""
    (file,) = folder.iterdir()
    data, events = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert events.pop(0).file_version == "brain.Event:2"
    return [(e.step, e.wall_time, {v.tag: v.simple_value for v in e.summary.value}) for e in events]


def event(step: int) -> tuple[int, float, dict[str, float]]:
    return step, 1e9 + step, {"train_bits_per_byte": step / 2}


def test_a_run_that_is_resumed_has_every_row_once(tmp_path):
    killed = EventFiles(tmp_path, "e")
    killed.write("run", rows(1, 2))
    killed.write("run", rows(1, 2, 3))  # tried again within the command: it replays
    killed.write("other", rows(1))
    assert read(tmp_path / "tensorboard/e/run") == [event(1), event(2), event(3)]
    again = EventFiles(tmp_path, "e")
    again.write("run", rows(1, 2, 3, 4))
    again.write("run", rows(5))
    again.close()
    assert read(tmp_path / "tensorboard/e/run") == [event(n) for n in range(1, 6)]
    assert read(tmp_path / "tensorboard/e/other") == [event(1)]
    killed.close()


def test_a_disk_that_refuses_is_one_error(tmp_path):
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(StorageError, match=r"tensorboard/e/run: cannot be written: .*Not a dir"):
        EventFiles(tmp_path, "e").write("run", rows(1))


def test_what_goes_to_mlflow_goes_to_the_event_files_too(store, tmp_path):
    run = store.create("trial", "k", "e trial 0")
    for _ in range(2):
        events = EventFiles(tmp_path, "e")
        writer = Writer(store, events)
        writer.write(run, rows(1, 2, 3))
        writer.finish(run, "FINISHED", {})
        still_open: list[list[str]] = []
        writer.enqueue(lambda: still_open.append(list(events._files)))  # noqa: B023
        writer.close()
        assert still_open == [[]]
    assert read(tmp_path / f"tensorboard/e/e trial 0 {run[:8]}") == [event(n) for n in (1, 2, 3)]
    assert sorted(store.history(run, "train_bits_per_byte")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("e, data.path=/a/b", "e, data.path=_a_b"), ("é" * 200, "é" * 123)],
)
def test_a_name_that_no_folder_can_have_is_changed(store, tmp_path, name, expected):
    run = store.create("trial", "k", name)
    writer = Writer(store, EventFiles(tmp_path, "e"))
    writer.write(run, rows(1))
    writer.close()
    assert read(tmp_path / f"tensorboard/e/{expected} {run[:8]}") == [event(1)]


def test_no_stage_depends_on_it(experiment: Experiment, tracking):
    other = experiment.replace({"tensorboard": True})
    for stages in (sweep_stages(CorpusStage()), [CorpusStage().stage, train.STAGE]):
        plans = [dag.plan(stages, one, until=None, fresh=False) for one in (experiment, other)]
        keys = [[one.key for one in plan] for plan in plans]
        assert keys[0] == keys[1] != [None] * len(stages)
    for stage in sweep_stages(CorpusStage()):
        assert not any(key.startswith("tensorboard") for key in stage.config_keys)
