import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr
from torch.utils._python_dispatch import TorchDispatchMode

from dca import build_model, registry
from dca import model as model_module
from dca.architectures.gpt import GPT
from pipelines.cluster.trial import Trial
from pipelines.console.errors import DivergedError, PipelineError
from pipelines.data.batches import open_bytes
from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.storage import writer_lock
from pipelines.training import checkpoint, loop, step, trainer
from pipelines.training.config import MAX_TIMEOUT_SECONDS, TrainingRun
from pipelines.training.evaluation import bits_per_byte
from pipelines.training.loop import train
from pipelines.training.optimizer import build_optimizer
from tests.pipelines.training.runs import KEY, STUCK, forge, history, tensors, unsign


def test_it_learns_and_reports_every_evaluation(run, splits, tmp_path):
    rows = [rows[-1] for rows in train(run, splits, tmp_path / "run", print)]
    assert [row["step"] for row in rows] == run.train.eval_steps
    assert [row["tokens"] for row in rows] == [256 * step for step in run.train.eval_steps]
    bits = [row["val_bits_per_byte"] for row in rows]
    assert bits[-1] < bits[0] - 1
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_the_memory_reported_is_that_of_the_run_and_not_of_one_before(run, splits, tmp_path):
    ballast = torch.ones(2**27)
    del ballast
    rows = [row for rows in train(run, splits, tmp_path / "run", print) for row in rows]
    peaks = [row["peak_memory_bytes"] for row in rows]
    now = 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    assert now / 2 < peaks[-1] < now + 2**28


GOLDEN = {"train_bits_per_byte": 4.73098, "val_bits_per_byte": 4.68645}


def test_the_first_steps_give_the_golden_numbers(run, splits, tmp_path):
    """Fix the code, or, if training is meant to have changed, update the numbers."""
    last = history(train(run, splits, tmp_path / "run", print))[-1]
    assert {key: last[key] for key in GOLDEN} == pytest.approx(GOLDEN, rel=1e-3)


def resumed_as_whole(run, splits, folder, *, stop_after=1):
    """Require that a run, stopped after some evaluations and resumed, is bitwise the whole one.

    Returns its history and the tensors of its last checkpoint.
    """
    whole = history(train(run, splits, folder / "whole", print))
    first = train(run, splits, folder / "parts", print)
    for _ in range(stop_after):
        next(first)
    first.close()
    assert history(train(run, splits, folder / "parts", print)) == whole
    ours, theirs = tensors(folder / "parts"), tensors(folder / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    return whole, ours


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stopped_and_resumed_it_is_bitwise_the_run_that_never_stopped(
    run, splits, tmp_path, stop_after
):
    _, ours = resumed_as_whole(run, splits, tmp_path, stop_after=stop_after)
    assert any(name.startswith("optimizer.") for name in ours)


PARTS = {"qk_norm": True, "kv_heads": 1, "activation": "swiglu", "logit_softcap": 30.0}
PARTS = {f"model.{name}": value for name, value in {**PARTS, "zero_init": True}.items()}


@pytest.mark.parametrize(("stop_after", "parts"), [(1, {}), (3, PARTS)])
def test_trained_by_muon_a_resumed_run_is_bitwise_the_whole_one(
    run, splits, tmp_path, stop_after, parts
):
    run = run.replace({"train.optimizer": "muon", **parts})
    _, ours = resumed_as_whole(run, splits, tmp_path, stop_after=stop_after)
    assert any(name.endswith(".momentum") for name in ours)


@pytest.mark.extended
@pytest.mark.parametrize("residual", registry.residual.names)
def test_with_any_residual_kind_a_resumed_run_is_bitwise_the_whole_one(
    run, splits, tmp_path, residual
):
    short = {"train.tokens": 1024, "train.evals": 2}
    run = run.replace({"model.residual": residual, "model.dim": 32, **short})
    _, ours = resumed_as_whole(run, splits, tmp_path)
    assert any(name.startswith("optimizer.") for name in ours)


@pytest.mark.extended
@pytest.mark.parametrize("residual", ["standard", "dca"])
def test_in_bfloat16_a_resumed_run_is_bitwise_the_whole_one_and_its_state_is_float32(
    run, splits, tmp_path, residual
):
    changes = {"model.residual": residual, "train.micro_batch_tokens": 64, "train.tokens": 1024}
    run = run.replace(changes)
    single = history(train(run, splits, tmp_path / "single", print))[-1]
    run = run.replace({"train.precision": "bfloat16"})
    whole, ours = resumed_as_whole(run, splits, tmp_path)
    assert {value.dtype for value in ours.values()} == {torch.float32}
    for metric in ("train_bits_per_byte", "val_bits_per_byte"):
        assert whole[-1][metric] != single[metric]
        assert whole[-1][metric] == pytest.approx(single[metric], rel=2e-2)


def test_weights_are_converted_to_bfloat16_once_per_step(run, splits, tmp_path):
    """Not for every micro-batch; but what is stacked from views of weights is."""
    batch, micro = run.train.batch_tokens, run.train.seq_len
    counts = []
    for size in (batch, micro):
        changes = {"model.residual": "standard", "train.micro_batch_tokens": size}
        made = trainer.Trainer(
            run.replace(changes | {"train.precision": "bfloat16"}),
            *(splits, tmp_path / str(size), print),
        )
        weights = {weight.data_ptr() for weight in made.model.parameters()}
        with Converted(weights) as converted:
            made.make_step(0, torch.zeros(()))
        counts.append(converted.count)
    assert counts[0] == counts[1] == 4 * run.model.depth + 1


class Converted(TorchDispatchMode):
    """Counts the conversions of these tensors, by their place, to bfloat16."""

    def __init__(self, places: set[int]) -> None:
        super().__init__()
        self.places, self.count = places, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("dtype") == torch.bfloat16 and args[0].data_ptr() in self.places:
            self.count += 1
        return func(*args, **kwargs)


@pytest.mark.extended
@pytest.mark.parametrize("alter", [forge, unsign])
def test_resumed_where_storage_was_altered_a_run_is_bitwise_the_whole_one(
    run, splits, tmp_path, alter
):
    whole = history(train(run, splits, tmp_path / "whole", print))
    first = train(run, splits, tmp_path / "parts", print, key=KEY)
    next(first)
    next(first)
    first.close()
    newest = checkpoint.list_checkpoints(tmp_path / "parts")[-1]
    alter(newest)
    said: list[str] = []
    assert history(train(run, splits, tmp_path / "parts", said.append, key=KEY)) == whole
    refused, resumed = said
    assert refused.startswith(f"{newest}: damaged checkpoint: SIGNATURE")
    assert resumed == "resumes from step 4/16"
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_dropout_too_a_resumed_run_is_bitwise_the_whole_one(
    run, splits, tmp_path, checkpointing
):
    """Whatever random numbers were drawn meanwhile; activations computed again change no bit."""
    changes = {"model.dropout": 0.3, "train.micro_batch_tokens": 64, "train.tokens": 1024}
    run = run.replace(changes)
    whole = history(train(run, splits, tmp_path / "whole", print))
    run = run.replace({"train.activation_checkpointing": checkpointing})
    first = train(run, splits, tmp_path / "parts", print)
    next(first)
    first.close()
    torch.manual_seed(7)
    assert history(train(run, splits, tmp_path / "parts", print)) == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_activations_are_computed_again_where_the_configuration_says_so(
    run, splits, tmp_path, monkeypatch
):
    calls: list[int] = []
    again = model_module.checkpoint
    monkeypatch.setattr(
        model_module, "checkpoint", lambda *a, **k: calls.append(1) or again(*a, **k)
    )
    next(train(run, splits, tmp_path / "kept", print))
    assert calls == []
    run = run.replace({"train.activation_checkpointing": True})
    next(train(run, splits, tmp_path / "again", print))
    assert len(calls) >= run.model.depth * run.train.eval_steps[0]


@pytest.mark.extended
@pytest.mark.slow
def test_compiled_and_resumed_a_run_trains_and_averages_as_an_eager_one(
    run, splits, tmp_path, monkeypatch
):
    """A compiler that gives every graph back as it is stands for the one of PyTorch."""
    run = run.replace({"train.ema_decay": 0.9})
    eager = history(train(run, splits, tmp_path / "eager", print))
    graphs: list[torch.fx.GraphModule] = []
    compiled = GPT.compile
    monkeypatch.setattr(
        GPT, "compile", lambda model: compiled(model, backend=lambda g, _: graphs.append(g) or g)
    )
    run = run.replace({"train.compile": True})
    torch._dynamo.reset()
    first = train(run, splits, tmp_path / "compiled", print)
    next(first)
    first.close()
    trained = len(graphs)
    rows = history(train(run, splits, tmp_path / "compiled", print))
    assert 0 < trained < len(graphs)
    assert rows[-1].keys() == eager[-1].keys()
    assert list(rows[-1].values()) == pytest.approx(list(eager[-1].values()), rel=1e-3)
    assert tensors(tmp_path / "compiled").keys() == tensors(tmp_path / "eager").keys()


def test_every_seed_step_and_rank_drops_other_features():
    seeds = {step.step_seed(*at) for at in itertools.product(range(2), range(11), range(2))}
    assert len(seeds) == 2 * 11 * 2


@pytest.mark.parametrize("residual", registry.residual.names)
def test_what_a_residual_kind_adds_does_not_decay(run, residual):
    model = build_model(run.replace({"model.residual": residual}).model)
    decayed, *_ = build_optimizer(model, run.train).param_groups
    matrices = ("qkv", "out", "up", "down", "head")
    expected = [p for n, p in model.named_parameters() if n.split(".")[-2] in matrices]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in expected}


@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_between_evaluations_it_goes_on_from_a_checkpoint_there(
    run, splits, tmp_path, stop_after, monkeypatch
):
    """Bitwise; two rows make an evaluation, and the killed run ends after an odd number of them."""
    whole = history(train(run, splits, tmp_path / "whole", print))
    often = run.replace({"failures.checkpoint_seconds": 1e-6})
    train_until, calls = trainer.Trainer._train_until, itertools.count()

    def killed(trainer, stop):
        if next(calls) == stop_after:
            raise KeyboardInterrupt
        return train_until(trainer, stop)

    monkeypatch.setattr(trainer.Trainer, "_train_until", killed)
    with pytest.raises(KeyboardInterrupt):
        list(train(often, splits, tmp_path / "parts", print))
    monkeypatch.undo()
    (newest, *_) = reversed(checkpoint.list_checkpoints(tmp_path / "parts"))
    assert int(newest.name) == 2 * stop_after
    resumed = list(train(often, splits, tmp_path / "parts", print))
    assert all("val_bits_per_byte" in rows[-1] for rows in resumed)
    assert history(resumed) == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def shared_splits(run: TrainingRun, shared) -> TrainValSplits:
    found = measure_corpus(run.data, seq_len=run.train.seq_len)
    write_splits(run.data, found, shared)
    return train_val_splits(shared, found.fingerprint)


def test_resumed_from_shared_storage_a_run_is_bitwise_one_in_a_folder_that_never_stopped(
    run, splits, shared_splits, shared, tmp_path
):
    """Also if who can write the storage has replaced the newest checkpoint."""
    whole = history(train(run, splits, tmp_path / "whole", print))
    first = train(run, shared_splits, shared / "fits" / "1", print, key=KEY)
    next(first)
    next(first)
    first.close()
    forge(checkpoint.list_checkpoints(shared / "fits" / "1")[-1])
    said: list[str] = []
    resumed = train(run, shared_splits, shared / "fits" / "1", said.append, key=KEY)
    assert history(resumed) == whole
    assert "damaged checkpoint: SIGNATURE" in said[0]
    assert said[1:] == ["resumes from step 4/16"]
    ours, theirs = tensors(shared / "fits" / "1"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_in_shared_storage_who_comes_later_goes_on_and_the_other_stops(run, shared_splits, shared):
    first = train(run, shared_splits, shared / "run", print)
    next(first)
    second = train(run, shared_splits, shared / "run", print)
    rows = history([next(second)])
    with pytest.raises(PipelineError, match=r"run.*: another process trains here"):
        next(first)
    assert [row["step"] for row in rows + history(second)][-1] == run.train.steps
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(shared / "run")] == [12, 16]


def test_one_process_trains_in_a_folder(run, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "LOCK_SECONDS", 0.1)
    first = train(run, splits, tmp_path / "run", print)
    next(first)
    with pytest.raises(PipelineError, match="run: another process trains here"):
        next(train(run, splits, tmp_path / "run", print))
    first.close()
    assert next(train(run, splits, tmp_path / "run", print))


HANGS = """
import time
from pipelines.training.loop import with_watchdog

def rows():
    yield ["first"]
    time.sleep(60)

for row in with_watchdog(rows(), 1):
    print(row, flush=True)
"""


@pytest.mark.process
def test_a_process_that_yields_nothing_for_too_long_ends_itself_and_says_where():
    result = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "['first']\n")
    assert "in rows" in result.stderr


def test_a_watch_ends_with_what_it_watches(run, splits, tmp_path):
    rows = [["a"], ["b"]]
    for seconds in (None, MAX_TIMEOUT_SECONDS):
        assert list(loop.with_watchdog((row for row in rows), seconds)) == rows
    watched = loop.with_watchdog(train(run, splits, tmp_path / "run", print), 600)
    assert history(watched)[-1]["step"] == run.train.steps


def test_a_finished_run_only_replays_its_history(run, splits, tmp_path):
    whole = history(train(run, splits, tmp_path / "run", print))
    again = list(train(run, splits, tmp_path / "run", print))
    assert len(again) == 1
    assert history(again) == whole


def test_accumulated_gradients_are_those_of_the_whole_batch(run, splits, tmp_path):
    whole = history(train(run, splits, tmp_path / "whole", print))
    parts = run.replace({"train.micro_batch_tokens": 64})
    accumulated = history(train(parts, splits, tmp_path / "parts", print))
    for a, b in zip(accumulated, whole, strict=True):
        assert a["train_bits_per_byte"] == pytest.approx(b["train_bits_per_byte"], rel=1e-3)


def test_a_non_finite_gradient_stops_the_run_before_the_update(run, splits, tmp_path, monkeypatch):
    backward, calls = step.OptimizerStep._backward, itertools.count()

    def poisoned(make_step, ids):
        loss = backward(make_step, ids)
        if next(calls) == 6:
            make_step.model.head.weight.grad[0, 0] = math.nan
        return loss

    monkeypatch.setattr(step.OptimizerStep, "_backward", poisoned)
    steps = run.replace({"train.evals": 1, "train.log_every_steps": 16})
    training = trainer.Trainer(steps, splits, tmp_path / "run", print)
    with pytest.raises(DivergedError, match="diverged at step 7"):
        training.train_to_next_evaluation()
    assert all(parameter.isfinite().all() for parameter in training.model.parameters())
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {6}
    assert checkpoint.list_checkpoints(tmp_path / "run") == []


def test_training_ends_when_its_patience_is_over_and_says_so(run, splits, tmp_path):
    said: list[str] = []
    rows = list(train(run.replace(STUCK), splits, tmp_path / "run", said.append))
    assert [part[-1]["step"] for part in rows] == [4, 8]
    best = "no better val_bits_per_byte in train.patience = 1 evaluation"
    assert said == [f"ends at step 8/16: {best}"]


def test_a_resumed_run_has_the_patience_of_one_that_never_stopped(run, splits, tmp_path):
    stuck = run.replace(STUCK | {"train.patience": 2})
    first = train(stuck, splits, tmp_path / "run", print)
    next(first)
    next(first)
    first.close()
    resumed = list(train(stuck, splits, tmp_path / "run", print))
    assert [part[-1]["step"] for part in resumed] == [8, 12]
    (again,) = train(stuck, splits, tmp_path / "run", print)
    assert again[-1]["step"] == 12


def test_a_trial_that_lost_its_patience_is_finished(run, splits, tmp_path):
    trial = Trial.__new__(Trial)  # without Tune's bookkeeping
    values = {"train.learning_rate": 1e-30}
    base = run.replace({"train.patience": 1})
    config = {"group": "a", "folder": "trial", "values": values, "key": SecretStr(KEY)}
    trial.setup(config, {"a": (base, tmp_path)}, splits)
    first, last = trial.step(), trial.step()
    assert [first["finished"], last["finished"], last["done"]] == [False, True, True]
    assert last["tokens"] == 8 * run.train.batch_tokens
    assert "train.patience" in last["notes"][0]
    trial.cleanup()


AVERAGED = {"train.ema_decay": 0.9}


def test_averaging_changes_what_is_evaluated_and_not_what_is_trained(run, splits, tmp_path):
    plain = history(train(run, splits, tmp_path / "plain", print))
    averaged = history(train(run.replace(AVERAGED), splits, tmp_path / "averaged", print))
    for ours, theirs in zip(averaged, plain, strict=True):
        evaluated = ours.pop("val_bits_per_byte"), theirs.pop("val_bits_per_byte")
        assert ours == theirs
        assert evaluated[0] is None or evaluated[0] != evaluated[1]
    ours, theirs = tensors(tmp_path / "averaged"), tensors(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_averaged_weights_are_the_ones_that_are_packaged(run, splits, tmp_path):
    rows = history(train(run.replace(AVERAGED), splits, tmp_path, print))
    model = build_model(run.model)
    model.load_state_dict(checkpoint.read_weights(checkpoint.list_checkpoints(tmp_path)[-1]))
    data = open_bytes(splits.validation)
    assert bits_per_byte(model, data, seq_len=32, tokens=512) == rows[-1]["val_bits_per_byte"]
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_an_average_that_forgets_at_once_is_of_the_last_weights(run, splits, tmp_path):
    plain = history(train(run, splits, tmp_path / "plain", print))
    forgetful = run.replace({"train.ema_decay": 1e-6})
    averaged = history(train(forgetful, splits, tmp_path / "averaged", print))
    ours, theirs = (rows[-1]["val_bits_per_byte"] for rows in (averaged, plain))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_averaged_weights_resume_bitwise(run, splits, tmp_path):
    averaged = run.replace(AVERAGED)
    whole = history(train(averaged, splits, tmp_path / "whole", print))
    first = train(averaged, splits, tmp_path / "parts", print)
    next(first)
    first.close()
    assert history(train(averaged, splits, tmp_path / "parts", print)) == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert sum(name.startswith("average.") for name in ours) > 10
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_utilisation_is_of_all_that_the_device_could_do(run, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "peak_flops", lambda _: 1e12)
    row = next(train(run, splits, tmp_path / "known", print))[-1]
    needed = 3 * run.model.flops_per_token(32) * row["tokens_per_second"]
    assert row["mfu"] == pytest.approx(needed / 1e12)
    alone, two = (trainer.utilisation_of(run, torch.device("cpu"), n)(1e3) for n in (1, 2))
    assert alone["mfu"] == 2 * two["mfu"] > 0
    monkeypatch.undo()
    assert "mfu" not in next(train(run, splits, tmp_path / "unknown", print))[-1]


def test_a_worker_that_cannot_read_the_checkpoint_of_the_first_stops(run, splits, tmp_path):
    first = train(run, splits, tmp_path / "run", print)
    next(first)
    first.close()
    model = build_model(run.model)
    optimizer = build_optimizer(model, run.train)
    said: list[str] = []
    key = trainer.Trainer(run, splits, tmp_path / "run", print).config_digest
    resume = functools.partial(
        checkpoint.resume, tmp_path / "run", model, optimizer, key, said.append
    )
    assert resume(step=4).step == 4
    assert resume(step=8) is None
    assert "00000008: damaged checkpoint" in said[0]


def test_the_number_of_threads_is_that_of_before_once_training_ends_or_is_stopped(
    run, splits, tmp_path
):
    before = torch.get_num_threads()
    torch.set_num_threads(run.resources.cpus_per_worker + 1)
    try:
        history(train(run, splits, tmp_path / "whole", print))
        assert torch.get_num_threads() == run.resources.cpus_per_worker + 1
        stopped = train(run, splits, tmp_path / "stopped", print)
        next(stopped)
        assert torch.get_num_threads() == run.resources.cpus_per_worker
        stopped.close()
        assert torch.get_num_threads() == run.resources.cpus_per_worker + 1
    finally:
        torch.set_num_threads(before)
