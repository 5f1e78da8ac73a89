import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dca import ModelConfig, build_model
from pipelines.console.errors import ConfigError, DamagedError, PipelineError
from pipelines.console.progress import Progress
from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.experiment import Experiment, read_experiment
from pipelines.registry.initial_weights import resolve_initial_weights
from pipelines.stages.corpus import CorpusStage
from pipelines.storage.digests import format_digests, plain_files
from pipelines.storage.location import Storage, storage_folder
from pipelines.sweep import _resolve_inputs
from pipelines.tracking.schema import PACKAGE_FOLDER
from pipelines.training import loop, trainer
from pipelines.training.initial_weights import read_initial_weights


@pytest.fixture
def trained(data, tmp_path) -> Path:
    """A `standard` model as it is packaged."""
    folder = tmp_path / "model" / PACKAGE_FOLDER
    folder.mkdir(parents=True)
    experiment = experiment_of(data, {"residual": "standard"})
    model = build_model(experiment.model, generator=torch.Generator().manual_seed(7))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(experiment.model_dump(mode="json")))
    return tmp_path / "model"


@pytest.fixture
def corpus(experiment: Experiment, tmp_path) -> TrainValSplits:
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, tmp_path)
    return train_val_splits(tmp_path, found.fingerprint)


def experiment_of(
    data: dict, model: dict, source: Path | str | None = None, **changes
) -> Experiment:
    train = {**data["train"], "start_from": str(source) if source else None}
    model = {**data["model"], **model}
    return read_experiment({**data, **changes, "model": model, "train": train}, source="test")


def start(experiment: Experiment, **options) -> Experiment:
    """The experiment with `train.start_from` resolved."""
    copy = resolve_initial_weights(
        experiment.train.start_from,
        experiment.model,
        storage_folder(experiment.storage),
        registered=experiment.promote.model,
        **options,
    )
    return experiment.replace({"train.start_from": copy})


def test_training_starts_with_the_function_of_the_retrofitted_model(
    data, corpus, trained, tmp_path
):
    experiment = start(experiment_of(data, {"residual": "dca"}, trained))
    run = trainer.Trainer(experiment.training_run(), corpus, tmp_path / "run", print)
    standard = build_model(experiment_of(data, {"residual": "standard"}).model)
    standard.load_state_dict(read_initial_weights(experiment.train.start_from))
    ids = torch.arange(32)[None]
    torch.testing.assert_close(run.model(ids), standard(ids), rtol=1e-4, atol=1e-5)


def test_a_resumed_training_goes_on_from_its_checkpoint(data, corpus, trained, tmp_path):
    experiment = start(experiment_of(data, {"residual": "dca"}, trained))
    first = loop.train(experiment.training_run(), corpus, tmp_path / "run", print)
    next(first)
    first.close()
    resumed = trainer.Trainer(experiment.training_run(), corpus, tmp_path / "run", print)
    assert resumed.step > 0
    weights = read_initial_weights(experiment.train.start_from)
    assert not torch.equal(resumed.model.head.weight, weights["head.weight"])


def test_a_resolved_start_outlives_its_source(data, trained):
    experiment = start(experiment_of(data, {}, trained))
    assert Path(experiment.train.start_from).is_relative_to(Path(data["storage"]).absolute())
    before = read_initial_weights(experiment.train.start_from)
    (trained / PACKAGE_FOLDER / "model.safetensors").write_bytes(b"")
    after = read_initial_weights(experiment.train.start_from)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_start_is_copied_into_shared_storage_and_found_there_again(data, trained, shared):
    data["storage"] = str(shared)
    planned = start(experiment_of(data, {}, trained), write=False)
    assert shared.files() == set()
    experiment = start(experiment_of(data, {}, trained))
    assert experiment == planned
    assert not Storage.of(experiment.train.start_from).is_local
    before = load_file(trained / PACKAGE_FOLDER / "model.safetensors")
    (trained / PACKAGE_FOLDER / "model.safetensors").unlink()
    after = read_initial_weights(experiment.train.start_from)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert start(experiment) == experiment
    assert len(shared.files()) == 4
    shared.remove()
    with pytest.raises(PipelineError, match=r"train\.start_from: .*: is gone"):
        read_initial_weights(experiment.train.start_from)
    with pytest.raises(ConfigError, match=r"train\.start_from: .*expected a models:/ URI"):
        start(experiment)


def test_the_start_of_a_study_must_suit_every_arm(data, trained):
    arms = {"standard": {"model.residual": "standard"}, "dca": {"model.residual": "dca"}}
    resolved = _resolve_inputs(
        experiment_of(data, {}, trained, arms=arms), CorpusStage(), Progress(), write=True
    )
    assert resolved.arm_names == ("standard", "dca")
    assert resolved == start(experiment_of(data, {}, trained, arms=arms))
    arms["wide"] = {"model.dim": 64}
    with pytest.raises(ConfigError, match=r"^arms\.wide: model\.dim: expected 16, as train\.start"):
        _resolve_inputs(
            experiment_of(data, {}, trained, arms=arms), CorpusStage(), Progress(), write=False
        )
    arms["wide"] = {"search.space.model.dim": {"choice": [16, 32]}}
    with pytest.raises(ConfigError, match=r"^arms\.wide: search\.space\.model\.dim: not with"):
        _resolve_inputs(
            experiment_of(data, {}, trained, arms=arms), CorpusStage(), Progress(), write=False
        )


def test_a_copy_cut_short_by_a_kill_is_not_taken_for_the_start(data, trained, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            start(experiment_of(data, {}, trained))
    experiment = start(experiment_of(data, {}, trained))
    assert read_initial_weights(experiment.train.start_from)


@pytest.mark.parametrize(
    "sizes", [{"depth": 10**9}, {"dim": 2**24}, {"dim": 2 * 10**12}, {"ff_mult": 10**9}]
)
def test_a_start_of_absurd_sizes_is_refused_before_memory_is_taken(data, trained, sizes, capsys):
    path = trained / PACKAGE_FOLDER / "config.json"
    config = json.loads(path.read_text())
    config["model"] |= sizes
    path.write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=r"expected a model of this project: "):
        start(experiment_of(data, {}, trained))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert not Path(data["storage"]).exists()


def test_a_copy_that_was_edited_is_refused_and_made_again_by_the_next_command(data, trained):
    experiment = start(experiment_of(data, {}, trained))
    copy = Path(experiment.train.start_from) / "model.safetensors"
    before = copy.read_bytes()
    copy.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"^train\.start_from: .*model\.safetensors was altered"):
        read_initial_weights(experiment.train.start_from)
    assert start(experiment_of(data, {}, trained)) == experiment
    assert copy.read_bytes() == before
    assert read_initial_weights(experiment.train.start_from)


@pytest.mark.parametrize("digest", [False, True])
def test_a_copy_in_shared_storage_that_was_edited_is_made_again(data, trained, tmp_path, digest):
    """Or its digest beside it, by which the nodes check theirs."""
    data["storage"] = f"file://{tmp_path}/shared"
    experiment = start(experiment_of(data, {}, trained))
    copy = Path(experiment.train.start_from.removeprefix("file://")) / "model.safetensors"
    edited = copy.with_name(f"{copy.name}.sha256") if digest else copy
    before = edited.read_bytes()
    edited.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    with pytest.raises(DamagedError, match="damaged: size or sha256"):  # not to be tried again
        read_initial_weights(experiment.train.start_from)
    assert start(experiment_of(data, {}, trained)) == experiment
    assert edited.read_bytes() == before
    assert read_initial_weights(experiment.train.start_from)


def test_a_plan_writes_nothing_and_means_the_same(data, trained):
    planned = start(experiment_of(data, {}, trained), write=False)
    assert not Path(data["storage"]).exists()
    assert planned == start(experiment_of(data, {}, trained))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"depth": 3}, r"model\.depth: expected 2, as train\.start_from=.* has it, got 3"),
        ({"tied_embeddings": True}, r"model\.tied_embeddings: expected false, .* got true"),
        ({"attention_windows": [8]}, r"model\.attention_windows: expected \[null\], .* got \[8\]"),
        ({"kv_heads": 1}, r"model\.kv_heads: expected null, .* got 1"),
        ({"qk_norm": True}, r"model\.qk_norm: expected false, .* got true"),
        ({"activation": "swiglu"}, r'model\.activation: expected "gelu", .* got "swiglu"'),
        ({"logit_softcap": 30}, r"model\.logit_softcap: expected null, .* got 30"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(data, trained, model, message):
    with pytest.raises(ConfigError, match=message):
        start(experiment_of(data, model, trained))


def test_a_search_over_what_the_start_fixes_is_refused(data, trained):
    experiment = experiment_of(data, {}, trained)
    with pytest.raises(ConfigError, match=r"search\.space\.model\.dim: not with train\.start_from"):
        start(experiment, searched={"model.dim", "model.residual"})
    assert start(experiment, searched={"model.residual", "model.dca.last_k"})


def test_streams_other_than_those_of_the_start_are_refused(data, trained):
    path = trained / PACKAGE_FOLDER / "config.json"
    experiment = experiment_of(data, {"residual": "hyper_connections"})
    path.write_text(json.dumps(experiment.model_dump(mode="json")))
    save_file(build_model(experiment.model).state_dict(), path.with_name("model.safetensors"))
    with pytest.raises(
        ConfigError, match=r"model\.hyper_connections\.streams: expected 4, .* got 2"
    ):
        start(
            experiment_of(
                data,
                {"residual": "hyper_connections", "hyper_connections": {"streams": 2}},
                trained,
            )
        )


@pytest.mark.parametrize("description", ["{}", "[]", "1", "not JSON", '{"model": {"dim": "x"}}'])
def test_a_folder_of_something_else_is_refused(data, trained, description):
    (trained / PACKAGE_FOLDER / "config.json").write_text(description)
    with pytest.raises(ConfigError, match="expected a model of this project"):
        start(experiment_of(data, {}, trained))


def test_damaged_weights_are_refused(data, trained):
    path = trained / PACKAGE_FOLDER / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="expected a model of this project"):
        start(experiment_of(data, {}, trained))


@pytest.mark.parametrize(("given", "whole"), [("", True), (PACKAGE_FOLDER, True), ("", False)])
def test_weights_that_are_not_as_they_were_packaged_are_refused(data, trained, given, whole):
    """A byte that changes no shape."""
    folder = trained / PACKAGE_FOLDER
    if whole:
        (trained / "MLmodel").write_text("")
    digests = format_digests({name: trained / name for name in plain_files(trained)})
    (folder / "SHA256SUMS").write_text(digests)
    experiment = start(experiment_of(data, {}, trained / given))
    path = folder / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"^train\.start_from: .*model.safetensors was altered"):
        start(experiment_of(data, {}, trained / given))
    copies = Path(experiment.train.start_from).parent
    assert len(list(copies.iterdir())) == 1


def test_the_folder_of_a_package_and_that_of_its_weights_are_the_same_start(data, trained):
    inside = start(experiment_of(data, {}, trained / PACKAGE_FOLDER))
    assert inside == start(experiment_of(data, {}, trained))


@pytest.mark.parametrize("above", [".", "artifacts"])
def test_a_folder_above_the_only_model_is_refused(data, trained, above):
    folder = trained.parent if above == "." else trained / above
    with pytest.raises(
        ConfigError, match=r"train\.start_from: .*or the folder of a packaged model"
    ):
        start(experiment_of(data, {}, folder))
    assert not Path(data["storage"]).exists()


def test_a_folder_without_a_model_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.start_from: .*expected a models:/ URI"):
        start(experiment_of(data, {}, tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s4://bucket/x", "expected a folder, or a URI"),
        ("./none", "./none: no such folder"),
    ],
)
def test_what_names_no_model_is_one_problem_of_its_key(tmp_path, source, message):
    with pytest.raises(ConfigError) as raised:
        resolve_initial_weights(source, ModelConfig(), tmp_path, registered="dca-gpt")
    (problem,) = raised.value.problems
    assert problem.key == "train.start_from"
    assert problem.message.startswith(message)


def test_a_start_in_a_store_that_does_not_exist_makes_none(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(ConfigError, match=r"there is no .*none\.db"):
        start(experiment_of(data, {}, "models:/dca-gpt@champion"))
    assert not (tmp_path / "none.db").exists()
