"""Two trainings timed in turns."""

import pytest

from pipelines.training import timing
from pipelines.training.timing import times_in_turns, worker_share


@pytest.mark.extended
@pytest.mark.slow
def test_a_deeper_model_takes_longer_in_every_round(run, splits, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.02)
    rounds = times_in_turns(run, run.replace({"model.depth": 12}), splits, 2)
    assert len(rounds) == 2
    assert all(0 < small < 0.75 * large for small, large in rounds)


@pytest.mark.extended
@pytest.mark.slow
def test_which_goes_first_alternates_and_each_is_in_memory_alone(run, splits, monkeypatch):
    alive, order = set(), []

    class Trainer(timing.Trainer):
        def __init__(self, config, *rest):
            assert not alive
            alive.add(id(self))
            order.append(config.model.depth)
            super().__init__(config, *rest)

        def __del__(self):
            alive.discard(id(self))

    monkeypatch.setattr(timing, "Trainer", Trainer)
    short = run.replace({"train.tokens": 256})
    times_in_turns(short, run.replace({"model.depth": 1}), splits, 2)
    assert order == [2, 1, 1, 2]


def test_of_several_workers_one_is_timed_with_its_share(run):
    two = run.replace({"resources.workers": 2, "train.micro_batch_tokens": 64})
    share = worker_share(two)
    assert (share.resources.workers, share.train.batch_tokens) == (1, 128)
    assert (share.train.micro_batch_tokens, share.train.steps) == (64, two.train.steps)
    assert worker_share(two.replace({"resources.workers": 4})).train.micro_batch_tokens == 64
    assert worker_share(two.replace({"resources.workers": 8})).train.micro_batch_tokens is None
