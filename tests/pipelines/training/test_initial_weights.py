"""Training that starts from the weights of a trained model."""

import pytest
import torch
from safetensors.torch import save_file

from dca import build_model
from pipelines.console.errors import PipelineError
from pipelines.training import checkpoint
from pipelines.training.initial_weights import WEIGHTS
from pipelines.training.loop import train


def test_training_starts_from_the_weights_in_a_folder(run, splits, tmp_path):
    model = build_model(run.model, generator=torch.Generator().manual_seed(run.seed + 1))
    given = model.state_dict()
    folder = tmp_path / "start"
    folder.mkdir()
    save_file(given, folder / WEIGHTS)
    still = {"train.start_from": str(folder), "train.learning_rate": 1e-30}
    list(train(run.replace(still), splits, tmp_path / "run"))
    found = checkpoint.read_weights(checkpoint.list_checkpoints(tmp_path / "run")[-1])
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_weights_that_are_gone_are_an_error(run, splits, tmp_path):
    nowhere = run.replace({"train.start_from": str(tmp_path / "nowhere")})
    with pytest.raises(PipelineError, match=r"^train\.start_from: .*nowhere: is gone"):
        list(train(nowhere, splits, tmp_path / "run"))
