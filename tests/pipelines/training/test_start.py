import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dca import build_model
from pipelines.runtime.config import Config, validate
from pipelines.runtime.errors import ConfigError
from pipelines.training import loop
from pipelines.training.data import Development, development, measure, prepare
from pipelines.training.start import pin, read_start


@pytest.fixture
def trained(data, tmp_path) -> Path:
    """A `standard` model as it is packaged."""
    folder = tmp_path / "model" / "artifacts"
    folder.mkdir(parents=True)
    config = config_of(data, {"residual": "standard"})
    model = build_model(config.model, generator=torch.Generator().manual_seed(7))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    return tmp_path / "model"


@pytest.fixture
def corpus(config: Config, tmp_path) -> Development:
    found = measure(config.data, seq_len=config.train.seq_len)
    prepare(config.data, found, tmp_path)
    return development(tmp_path, found.fingerprint)


def config_of(data: dict, model: dict, start: Path | str | None = None, **changes) -> Config:
    train = {**data["train"], "start_from": str(start) if start else None}
    model = {**data["model"], **model}
    return validate({**data, **changes, "model": model, "train": train}, source="test")


def test_training_starts_with_the_function_of_the_retrofitted_model(
    data, corpus, trained, tmp_path
):
    config = pin(config_of(data, {"residual": "dca"}, trained))
    run = loop._Run(config, corpus, tmp_path / "run")
    standard = build_model(config_of(data, {"residual": "standard"}).model)
    standard.load_state_dict(read_start(config.train.start_from))
    ids = torch.arange(32)[None]
    torch.testing.assert_close(run.model(ids), standard(ids), rtol=1e-4, atol=1e-5)


def test_a_resumed_training_goes_on_from_its_checkpoint(data, corpus, trained, tmp_path):
    config = pin(config_of(data, {"residual": "dca"}, trained))
    first = loop.train(config, corpus, tmp_path / "run")
    next(first)
    first.close()
    resumed = loop._Run(config, corpus, tmp_path / "run")
    assert resumed.step > 0
    weights = read_start(config.train.start_from)
    assert not torch.equal(resumed.model.head.weight, weights["head.weight"])


def test_a_pinned_start_outlives_its_source(data, trained):
    config = pin(config_of(data, {}, trained))
    assert Path(config.train.start_from).is_relative_to(Path(data["storage"]).absolute())
    before = read_start(config.train.start_from)
    (trained / "artifacts" / "model.safetensors").write_bytes(b"")
    after = read_start(config.train.start_from)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("model", "search", "message"),
    [
        ({"depth": 3}, {}, "model.depth: expected 2, as .* got 3"),
        ({}, {"space": {"model.dim": {"choice": [16, 32]}}}, "search.space.model.dim: .*dim=16"),
    ],
)
def test_weights_that_do_not_fit_are_refused(data, trained, model, search, message):
    with pytest.raises(ConfigError, match=message):
        pin(config_of(data, model, trained, search=search))


def test_a_folder_without_a_model_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.start_from: .*expected a models:/ URI"):
        pin(config_of(data, {}, tmp_path))
