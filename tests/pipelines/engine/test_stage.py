from pathlib import Path

from pipelines.console.progress import Progress
from pipelines.engine.stage import Invocation, Stage


def test_another_command_lies_beside_the_one_that_was_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress = Progress()
    here = Invocation.of(str(tmp_path / "pipelines" / "sweep.py"), ["--fresh"], progress)
    assert here.argv == ("pipelines/sweep.py", "--fresh")
    assert here.script("generate.py") == Path("pipelines/generate.py")
    elsewhere = Invocation.of("/other/sweep.py", (), progress)
    assert elsewhere.script("generate.py") == Path("/other/generate.py")


def test_a_stage_is_cached_unless_it_says_otherwise():
    stage = Stage("a", int, run=lambda *_: 1)
    assert stage.cached
    assert stage.modules(None) == ()
    assert stage.verify(None, 1) is None
