import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dca import build_model
from dca import model as model_module
from dca import registry
from dca.architectures.gpt import GPT
from pipelines.console.errors import PipelineError
from pipelines.data.batches import open_bytes
from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.experiment import Experiment
from pipelines.search.trial import Trial
from pipelines.storage import writer_lock
from pipelines.storage.location import storage_folder
from pipelines.training import checkpoint, loop, step, trainer
from pipelines.training.evaluation import bits_per_byte, compressors
from pipelines.training.history import best_row, finished
from pipelines.training.loop import train
from pipelines.training.optimizer import build_optimizer
from pipelines.training.trainer import DivergedError
from tests.pipelines import forked

UNTIMED = (
    "step",
    "tokens",
    "train_bits_per_byte",
    "learning_rate",
    "grad_norm",
    "val_bits_per_byte",
)


@pytest.fixture
def corpus(config: Experiment, tmp_path) -> TrainValSplits:
    found = measure_corpus(config.data, seq_len=config.train.seq_len)
    write_splits(config.data, found, tmp_path)
    return train_val_splits(tmp_path, found.fingerprint)


def history(run) -> list[dict]:
    return [{key: row.get(key) for key in UNTIMED} for rows in run for row in rows]


def tensors(folder) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.list_checkpoints(folder)[-1])[1]


def test_it_learns_and_reports_every_evaluation(config, corpus, tmp_path):
    rows = [rows[-1] for rows in train(config, corpus, tmp_path / "run", print)]
    assert [row["step"] for row in rows] == config.train.eval_steps
    assert [row["tokens"] for row in rows] == [256 * step for step in config.train.eval_steps]
    bits = [row["val_bits_per_byte"] for row in rows]
    assert bits[-1] < bits[0] - 1
    assert all(row["tokens_per_second"] > 0 for row in rows)


def test_the_memory_reported_is_that_of_the_run_and_not_of_one_before(config, corpus, tmp_path):
    ballast = torch.ones(2**27)
    del ballast
    rows = [row for rows in train(config, corpus, tmp_path / "run", print) for row in rows]
    peaks = [row["peak_memory_bytes"] for row in rows]
    now = 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
    assert now / 2 < peaks[-1] < now + 2**28


GOLDEN = {"train_bits_per_byte": 4.73098, "val_bits_per_byte": 4.68645}


def test_the_first_steps_give_the_golden_numbers(config, corpus, tmp_path):
    """Fix the code, or, if training is meant to have changed, update the numbers."""
    last = history(train(config, corpus, tmp_path / "run", print))[-1]
    assert {key: last[key] for key in GOLDEN} == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stopped_and_resumed_it_is_bitwise_the_run_that_never_stopped(
    config, corpus, tmp_path, stop_after
):
    whole = history(train(config, corpus, tmp_path / "whole", print))
    first = train(config, corpus, tmp_path / "parts", print)
    for _ in range(stop_after):
        next(first)
    first.close()
    replayed = history(train(config, corpus, tmp_path / "parts", print))
    assert replayed == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("optimizer.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_dropout_too_a_resumed_run_is_bitwise_the_whole_one(
    config, corpus, tmp_path, checkpointing
):
    """Whatever random numbers were drawn meanwhile; activations computed again change no bit."""
    changes = {"model.dropout": 0.3, "train.micro_batch_tokens": 64}
    config = config.replace(changes)
    whole = history(train(config, corpus, tmp_path / "whole", print))
    config = config.replace({"train.activation_checkpointing": checkpointing})
    first = train(config, corpus, tmp_path / "parts", print)
    next(first)
    first.close()
    torch.manual_seed(7)
    assert history(train(config, corpus, tmp_path / "parts", print)) == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_activations_are_computed_again_where_the_configuration_says_so(
    config, corpus, tmp_path, monkeypatch
):
    calls: list[int] = []
    again = model_module.checkpoint
    monkeypatch.setattr(
        model_module, "checkpoint", lambda *a, **k: calls.append(1) or again(*a, **k)
    )
    next(train(config, corpus, tmp_path / "kept", print))
    assert calls == []
    config = config.replace({"train.activation_checkpointing": True})
    next(train(config, corpus, tmp_path / "again", print))
    assert len(calls) >= config.model.depth * config.train.eval_steps[0]


def test_compiled_and_resumed_a_run_trains_and_averages_as_an_eager_one(
    config, corpus, tmp_path, monkeypatch
):
    """A compiler that gives every graph back as it is stands for the one of PyTorch."""
    config = config.replace({"train.ema_decay": 0.9})
    eager = history(train(config, corpus, tmp_path / "eager", print))
    graphs: list[torch.fx.GraphModule] = []
    compiled = GPT.compile
    monkeypatch.setattr(
        GPT, "compile", lambda model: compiled(model, backend=lambda g, _: graphs.append(g) or g)
    )
    config = config.replace({"train.compile": True})
    torch._dynamo.reset()
    first = train(config, corpus, tmp_path / "compiled", print)
    next(first)
    first.close()
    trained = len(graphs)
    rows = history(train(config, corpus, tmp_path / "compiled", print))
    assert 0 < trained < len(graphs)
    assert rows[-1].keys() == eager[-1].keys()
    assert list(rows[-1].values()) == pytest.approx(list(eager[-1].values()), rel=1e-3)
    assert tensors(tmp_path / "compiled").keys() == tensors(tmp_path / "eager").keys()


def test_every_seed_step_and_rank_drops_other_features():
    seeds = {step.step_seed(*at) for at in itertools.product(range(2), range(11), range(2))}
    assert len(seeds) == 2 * 11 * 2


@pytest.mark.parametrize("residual", registry.residual.names)
def test_what_a_residual_kind_adds_does_not_decay(config, residual):
    model = build_model(config.replace({"model.residual": residual}).model)
    decayed, *_ = build_optimizer(model, config.train).param_groups
    matrices = ("qkv", "out", "up", "down", "head")
    expected = [p for n, p in model.named_parameters() if n.split(".")[-2] in matrices]
    assert {id(p) for p in decayed["params"]} == {id(p) for p in expected}


@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_between_evaluations_it_goes_on_from_a_checkpoint_there(
    config, corpus, tmp_path, stop_after, monkeypatch
):
    """Bitwise; two rows make an evaluation, and the killed run ends after an odd number of them."""
    whole = history(train(config, corpus, tmp_path / "whole", print))
    often = config.replace({"failures.checkpoint_seconds": 1e-6})
    train_until, calls = trainer.Trainer._train_until, itertools.count()

    def killed(run, stop):
        if next(calls) == stop_after:
            raise KeyboardInterrupt
        return train_until(run, stop)

    monkeypatch.setattr(trainer.Trainer, "_train_until", killed)
    with pytest.raises(KeyboardInterrupt):
        list(train(often, corpus, tmp_path / "parts", print))
    monkeypatch.undo()
    (newest, *_) = reversed(checkpoint.list_checkpoints(tmp_path / "parts"))
    assert int(newest.name) == 2 * stop_after
    resumed = list(train(often, corpus, tmp_path / "parts", print))
    assert all("val_bits_per_byte" in rows[-1] for rows in resumed)
    assert history(resumed) == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def shared_corpus(config: Experiment, shared) -> TrainValSplits:
    found = measure_corpus(config.data, seq_len=config.train.seq_len)
    write_splits(config.data, found, shared)
    return train_val_splits(shared, found.fingerprint)


def test_resumed_from_shared_storage_a_run_is_bitwise_one_in_a_folder_that_never_stopped(
    config, corpus, shared_corpus, shared, tmp_path
):
    whole = history(train(config, corpus, tmp_path / "whole", print))
    first = train(config, shared_corpus, shared / "fits" / "1", print)
    next(first)
    next(first)
    first.close()
    assert history(train(config, shared_corpus, shared / "fits" / "1", print)) == whole
    ours, theirs = tensors(shared / "fits" / "1"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_in_shared_storage_who_comes_later_goes_on_and_the_other_stops(
    config, shared_corpus, shared
):
    first = train(config, shared_corpus, shared / "run", print)
    next(first)
    second = train(config, shared_corpus, shared / "run", print)
    rows = history([next(second)])
    with pytest.raises(PipelineError, match=r"run.*: another process trains here"):
        next(first)
    assert [row["step"] for row in rows + history(second)][-1] == config.train.steps
    assert [checkpoint.step_of(p) for p in checkpoint.list_checkpoints(shared / "run")] == [12, 16]


def test_one_process_trains_in_a_folder(config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "LOCK_SECONDS", 0.1)
    first = train(config, corpus, tmp_path / "run", print)
    next(first)
    with pytest.raises(PipelineError, match="run: another process trains here"):
        next(train(config, corpus, tmp_path / "run", print))
    first.close()
    assert next(train(config, corpus, tmp_path / "run", print))


HANGS = """
import time
from pipelines.training.loop import with_watchdog

def rows():
    yield ["first"]
    time.sleep(60)

for row in with_watchdog(rows(), 1):
    print(row, flush=True)
"""


def test_a_process_that_yields_nothing_for_too_long_ends_itself_and_says_where():
    result = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "['first']\n")
    assert "in rows" in result.stderr


def test_a_watch_ends_with_what_it_watches(config, corpus, tmp_path):
    rows = [["a"], ["b"]]
    assert list(loop.with_watchdog((row for row in rows), None)) == rows
    watched = loop.with_watchdog(train(config, corpus, tmp_path / "run", print), 600)
    assert history(watched)[-1]["step"] == config.train.steps


def test_a_finished_run_only_replays_its_history(config, corpus, tmp_path):
    whole = history(train(config, corpus, tmp_path / "run", print))
    again = list(train(config, corpus, tmp_path / "run", print))
    assert len(again) == 1
    assert history(again) == whole


def test_accumulated_gradients_are_those_of_the_whole_batch(config, corpus, tmp_path):
    whole = history(train(config, corpus, tmp_path / "whole", print))
    parts = config.replace({"train.micro_batch_tokens": 64})
    accumulated = history(train(parts, corpus, tmp_path / "parts", print))
    for a, b in zip(accumulated, whole, strict=True):
        assert a["train_bits_per_byte"] == pytest.approx(b["train_bits_per_byte"], rel=1e-3)


def test_a_non_finite_gradient_stops_the_run_before_the_update(
    config, corpus, tmp_path, monkeypatch
):
    backward, calls = step.OptimizerStep._backward, itertools.count()

    def poisoned(make_step, ids):
        loss = backward(make_step, ids)
        if next(calls) == 6:
            make_step.model.head.weight.grad[0, 0] = math.nan
        return loss

    monkeypatch.setattr(step.OptimizerStep, "_backward", poisoned)
    steps = config.replace({"train.evals": 1, "train.log_every_steps": 16})
    run = trainer.Trainer(steps, corpus, tmp_path / "run", print)
    with pytest.raises(DivergedError, match="diverged at step 7"):
        run.train_to_next_evaluation()
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert {int(state["step"]) for state in run.optimizer.state.values()} == {6}
    assert checkpoint.list_checkpoints(tmp_path / "run") == []


STUCK = {"train.learning_rate": 1e-30, "train.patience": 1}
"""Nothing is learned: the second evaluation, of four, is the last."""


def test_training_ends_when_its_patience_is_over_and_says_so(config, corpus, tmp_path):
    said: list[str] = []
    rows = list(train(config.replace(STUCK), corpus, tmp_path / "run", said.append))
    assert [part[-1]["step"] for part in rows] == [4, 8]
    best = "no better val_bits_per_byte in train.patience = 1 evaluations"
    assert said == [f"ends at step 8/16: {best}"]


def test_a_resumed_run_has_the_patience_of_one_that_never_stopped(config, corpus, tmp_path):
    stuck = config.replace(STUCK | {"train.patience": 2})
    first = train(stuck, corpus, tmp_path / "run", print)
    next(first)
    next(first)
    first.close()
    resumed = list(train(stuck, corpus, tmp_path / "run", print))
    assert [part[-1]["step"] for part in resumed] == [8, 12]
    (again,) = train(stuck, corpus, tmp_path / "run", print)
    assert again[-1]["step"] == 12


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ([], 1, False),
        ([3, 2, 1], 1, False),
        ([3, 2, 2], 1, True),
        ([3, 3, 2], 2, False),
        ([1, 2, 3], None, False),
        ([1, 2, 3], 2, True),
        ([1, 2, 3, 0], None, True),
    ],
)
def test_patience_counts_evaluations_since_the_best(config, values, patience, ended):
    steps = zip(config.train.eval_steps, values, strict=False)
    history = [{"step": step, "val_bits_per_byte": bits} for step, bits in steps]
    history += [{"step": 1 + row["step"]} for row in history[-1:]]  # of the next evaluation
    assert finished(history, config.replace({"train.patience": patience}).train) == ended


def test_a_trial_that_lost_its_patience_is_finished(config, corpus, tmp_path):
    trial = Trial.__new__(Trial)  # without Tune's bookkeeping
    values = {"train.learning_rate": 1e-30}
    base = config.replace({"train.patience": 1})
    trial.setup({"number": 0, "values": values}, base, corpus, tmp_path)
    first, last = trial.step(), trial.step()
    assert [first["finished"], last["finished"], last["done"]] == [False, True, True]
    assert last["tokens"] == 8 * config.train.batch_tokens
    assert "train.patience" in last["notes"][0]
    trial.cleanup()


AVERAGED = {"train.ema_decay": 0.9}


def test_averaging_changes_what_is_evaluated_and_not_what_is_trained(config, corpus, tmp_path):
    plain = history(train(config, corpus, tmp_path / "plain", print))
    averaged = history(train(config.replace(AVERAGED), corpus, tmp_path / "averaged", print))
    for ours, theirs in zip(averaged, plain, strict=True):
        evaluated = ours.pop("val_bits_per_byte"), theirs.pop("val_bits_per_byte")
        assert ours == theirs
        assert evaluated[0] is None or evaluated[0] != evaluated[1]
    ours, theirs = tensors(tmp_path / "averaged"), tensors(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_averaged_weights_are_the_ones_that_are_packaged(config, corpus, tmp_path):
    rows = history(train(config.replace(AVERAGED), corpus, tmp_path, print))
    model = build_model(config.model)
    model.load_state_dict(checkpoint.read_weights(checkpoint.list_checkpoints(tmp_path)[-1]))
    data = open_bytes(corpus.validation)
    assert bits_per_byte(model, data, seq_len=32, tokens=512) == rows[-1]["val_bits_per_byte"]
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_an_average_that_forgets_at_once_is_of_the_last_weights(config, corpus, tmp_path):
    plain = history(train(config, corpus, tmp_path / "plain", print))
    forgetful = config.replace({"train.ema_decay": 1e-6})
    averaged = history(train(forgetful, corpus, tmp_path / "averaged", print))
    ours, theirs = (rows[-1]["val_bits_per_byte"] for rows in (averaged, plain))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_averaged_weights_resume_bitwise(config, corpus, tmp_path):
    averaged = config.replace(AVERAGED)
    whole = history(train(averaged, corpus, tmp_path / "whole", print))
    first = train(averaged, corpus, tmp_path / "parts", print)
    next(first)
    first.close()
    assert history(train(averaged, corpus, tmp_path / "parts", print)) == whole
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert sum(name.startswith("average.") for name in ours) > 10
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_utilisation_is_of_all_that_the_device_could_do(config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "peak_flops", lambda _: 1e12)
    row = next(train(config, corpus, tmp_path / "known", print))[-1]
    needed = 3 * config.model.flops_per_token(32) * row["tokens_per_second"]
    assert row["mfu"] == pytest.approx(needed / 1e12)
    alone, two = (trainer.utilisation_of(config, torch.device("cpu"), n)(1e3) for n in (1, 2))
    assert alone["mfu"] == 2 * two["mfu"] > 0
    monkeypatch.undo()
    assert "mfu" not in next(train(config, corpus, tmp_path / "unknown", print))[-1]


TOLERANCE = 1e-5
"""Of sums in another order, after 16 steps."""


class Uniform(torch.nn.Module):
    """Predicts every byte with the same probability."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(()))

    def forward(self, ids_bt: torch.Tensor) -> torch.Tensor:
        return self.logit.expand(*ids_bt.shape, 256)


def test_a_model_that_knows_nothing_needs_eight_bits_per_byte(corpus):
    data = open_bytes(corpus.validation)
    assert bits_per_byte(Uniform(), data, seq_len=32) == pytest.approx(8)
    assert bits_per_byte(Uniform(), data, seq_len=32, tokens=1) == pytest.approx(8)


def test_evaluation_in_any_batch_size_gives_the_same_number(config, corpus):
    model, data = build_model(config.model), open_bytes(corpus.validation)
    whole = bits_per_byte(model, data, seq_len=32, batch=1000)
    assert bits_per_byte(model, data, seq_len=32, batch=7) == pytest.approx(whole, rel=TOLERANCE)
    assert model.training


def test_compressors_and_entropy_of_a_known_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(range(4)) * 1000)
    bits = compressors(path)
    assert bits["order-0 entropy"] == pytest.approx(2)
    assert max(bits["gzip"], bits["bz2"], bits["xz"]) < 0.3


def test_the_best_row_is_the_earliest_smallest_evaluated_one():
    rows = [
        {"step": 1, "train_bits_per_byte": 0.5},
        {"step": 2, "train_bits_per_byte": 3.0, "val_bits_per_byte": 1.0},
        {"step": 3, "train_bits_per_byte": 2.0, "val_bits_per_byte": 1.0},
    ]
    assert best_row(rows, "val_bits_per_byte")["step"] == 2
    assert best_row(rows, "train_bits_per_byte")["step"] == 3


def _worker(
    rank: int,
    world: int,
    config: Experiment,
    corpus: TrainValSplits,
    folder: Path,
    group: Path,
    stop: int,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)  # it has that of the process it was forked from
    torch.distributed.init_process_group("gloo", f"file://{group}", rank=rank, world_size=world)
    run = train(config, corpus, folder, lambda _: None)
    for _ in itertools.islice(run, stop):
        pass
    run.close()
    torch.distributed.destroy_process_group()
    # The model, in a reference cycle, still holds the group, whose threads may hold tensors when
    # Python finalizes: they then abort the process (pytorch/pytorch#179291).
    os._exit(0)


def together(
    config: Experiment,
    corpus: TrainValSplits,
    folder: Path,
    group: Path,
    *,
    stop: int = 9,
    workers: int = 2,
) -> None:
    """Train with some workers, for some evaluations."""
    work = (workers, config, corpus, folder, group, stop, dict(os.environ))
    torch.multiprocessing.start_processes(_worker, work, workers, start_method=forked.METHOD)


def test_two_workers_resumed_are_bitwise_two_that_never_stopped(config, corpus, tmp_path):
    """The newest checkpoint is damaged: both must go on from the one before it. With averaged
    weights, of which every worker has its own."""
    config = config.replace({"train.ema_decay": 0.9})
    together(config, corpus, tmp_path / "whole", tmp_path / "a")
    together(config, corpus, tmp_path / "parts", tmp_path / "b", stop=2)
    newest = checkpoint.list_checkpoints(tmp_path / "parts")[-1]
    (newest / "state.json").write_text("{}")
    together(config, corpus, tmp_path / "parts", tmp_path / "c")
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_worker_that_cannot_read_the_checkpoint_of_the_first_stops(config, corpus, tmp_path):
    run = train(config, corpus, tmp_path / "run", print)
    next(run)
    run.close()
    model = build_model(config.model)
    optimizer = build_optimizer(model, config.train)
    said: list[str] = []
    key = trainer.Trainer(config, corpus, tmp_path / "run", print).config_digest
    resume = functools.partial(
        checkpoint.resume, tmp_path / "run", model, optimizer, key, said.append
    )
    assert resume(step=4).step == 4
    assert resume(step=8) is None
    assert "00000008: damaged checkpoint" in said[0]


def test_two_workers_go_on_from_the_same_object(config, s3, tmp_path):
    config = config.replace({"storage": s3})
    shared = storage_folder(config.storage)
    found = measure_corpus(config.data, seq_len=config.train.seq_len)
    write_splits(config.data, found, shared)
    files = train_val_splits(shared, found.fingerprint)
    first = train(config, files, shared / "run", print)
    begun = [next(first)[-1]["step"], next(first)[-1]["step"]]
    first.close()
    together(config, files, shared / "run", tmp_path / "group")
    (rows,) = train(config, files, shared / "run", print)
    evaluated = [row["step"] for row in rows if "val_bits_per_byte" in row]
    assert evaluated == config.train.eval_steps
    assert evaluated[:2] == begun


def test_two_workers_lose_patience_together(config, corpus, tmp_path):
    stuck = config.replace(STUCK)
    together(stuck, corpus, tmp_path / "run", tmp_path / "group")
    assert [int(path.name) for path in checkpoint.list_checkpoints(tmp_path / "run")] == [4, 8]
    (rows,) = train(stuck, corpus, tmp_path / "run", print)
    assert rows[-1]["step"] == 8


def test_any_number_of_workers_trains_as_one_does(config, corpus, tmp_path):
    """Four share 8 sequences evenly, three do not; the last run goes from two to three, as one
    does whose nodes come and go."""
    config = config.replace({"train.micro_batch_tokens": 64})
    alone = history(train(config, corpus, tmp_path / "alone", print))
    together(config, corpus, tmp_path / "4", tmp_path / "group-4", workers=4)
    together(config, corpus, tmp_path / "2-3", tmp_path / "group-2", workers=2, stop=2)
    together(config, corpus, tmp_path / "2-3", tmp_path / "group-3", workers=3)
    for name in ("4", "2-3"):
        several = history(train(config, corpus, tmp_path / name, print))
        assert [row["step"] for row in several] == [row["step"] for row in alone]
        for ours, theirs in zip(several, alone, strict=True):
            for metric in ("train_bits_per_byte", "grad_norm"):
                assert ours[metric] == pytest.approx(theirs[metric], rel=TOLERANCE)
        last = several[-1]["val_bits_per_byte"]
        assert last == pytest.approx(alone[-1]["val_bits_per_byte"], rel=TOLERANCE)
