import pytest

from pipelines.console.errors import PipelineError
from pipelines.storage import writer_lock


def test_a_folder_has_one_writer_who_finds_it_made(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "LOCK_SECONDS", 0.1)
    folder = tmp_path / "run"
    with writer_lock.writer_lock(folder) as mine:
        assert mine == folder
        assert [path.name for path in folder.iterdir()] == ["lock"]
        with (
            pytest.raises(PipelineError, match="another process trains here"),
            writer_lock.writer_lock(folder),
        ):
            pass
    with writer_lock.writer_lock(folder):
        pass
