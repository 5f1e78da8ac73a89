"""Passwords and tokens in the environment reach no screen, log, file, tag or artifact."""

from pathlib import Path

import pytest

from tests.pipelines.commands import CANARY, SECRETS, Folder, files_with_canary
from tests.pipelines.packages import isolated_forked

ENVIRONMENT = {
    **SECRETS,
    **dict.fromkeys(("http_proxy", "https_proxy"), f"http://user:{CANARY}@127.0.0.1:9"),
    "MLFLOW_TRACKING_USERNAME": "user",
    "AWS_ACCESS_KEY_ID": "AKIA0KEYOFTESTS",
    "no_proxy": "127.0.0.1,localhost",
}


@pytest.mark.extended
@pytest.mark.usefixtures("local_tune")
def test_a_sweep_on_a_server_with_a_password_writes_it_nowhere(
    tmp_path, text, tracking_address, tracking_folder, s3, capfd, caplog, monkeypatch
):
    isolated_forked(monkeypatch)
    folder = Folder(tmp_path / "work", text, fresh=True)
    uri = tracking_address.replace("://", f"://user:{CANARY}@")
    folder.environment |= ENVIRONMENT | {"MLFLOW_TRACKING_URI": uri}
    sweep = (
        "sweep.py",
        "tiny.yaml",
        "experiment=canary",
        "promote.model=canary",
        f"storage='{s3}'",
    )
    sweep += ("search.trials=1", "fit.resources.workers=1", "train.tokens=4096", "fit.tokens=4096")
    screens = [run(folder, *sweep), run(folder, *sweep, "--json", "--until", "promote")]
    screens.append(run(folder, "promote.py", "list", "--model", "canary"))
    assert "runs      http://***@127.0.0.1" in screens[0]
    page = next(folder.path.glob("reports/canary/*.html")).read_text()
    assert "http://***@127.0.0.1" in page
    assert CANARY not in "".join([*screens, *capfd.readouterr(), caplog.text])
    objects = tmp_path / "objects"
    objects.mkdir()
    save_objects(s3, objects)
    assert len(list(objects.iterdir())) > 3
    assert files_with_canary([tmp_path, tracking_folder]) == []


def run(folder: Folder, *command: str) -> str:
    """What a command that succeeds prints."""
    code, out, err = folder.run(*command)
    assert code == 0, err
    return out + err


def save_objects(uri: str, folder: Path) -> None:
    """Copy all objects below a URI, flat, and their names."""
    from pyarrow import fs

    system, root = fs.FileSystem.from_uri(uri)
    found = system.get_file_info(fs.FileSelector(root, recursive=True))
    for number, info in enumerate(one for one in found if one.is_file):
        content = system.open_input_stream(info.path).read()
        (folder / str(number)).write_bytes(info.path.encode() + content)


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("MLFLOW_TRACKING_URI", f"http://user:{CANARY}@127.0.0.1:9", "http://***@127.0.0.1:9"),
        ("MLFLOW_TRACKING_URI", f"http://127.0.0.1:9?token={CANARY}", "http://127.0.0.1:9?token="),
        ("MLFLOW_TRACKING_URI", f"http://user:{CANARY}/x@127.0.0.1:9", "http://***@127.0.0.1:9"),
        ("MLFLOW_TRACKING_URI", f"postgresql://user:{CANARY}@127.0.0.1:9/db", "//***@127.0.0.1:9"),
        ("RAY_ADDRESS", f"user:{CANARY}@127.0.0.1:9", "RAY_ADDRESS=***@127.0.0.1:9"),
    ],
)
def test_an_address_that_does_not_answer_is_shown_without_its_password(
    variable, value, shown, tmp_path, text
):
    folder = Folder(tmp_path, text)
    folder.environment[variable] = value
    code, out, err = folder.run("sweep.py", "tiny.yaml")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert shown in err
    assert CANARY not in out + err


@pytest.mark.parametrize(
    "change",
    [
        f"storage='s3://AKIA:{CANARY}/a@bucket/x'",
        f"storage='s3://bucket/x?secret_key={CANARY}'",
        f"train.start_from='s3://AKIA:{CANARY}@bucket/x'",
        f"data.path='http://user:{CANARY}@host/x'",
        f"tracking='http://user:{CANARY}@host/x'",
    ],
)
def test_a_place_that_is_refused_is_shown_without_its_key(change, tmp_path, text):
    code, out, err = Folder(tmp_path, text).run("sweep.py", "tiny.yaml", change)
    assert code == 2
    assert CANARY not in out + err
