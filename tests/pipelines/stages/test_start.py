"""The weights that a study's arms start from."""

from pipelines.experiment import Experiment
from pipelines.registry import initial_weights
from pipelines.stages import resolve_start

COPY = "file:///storage/starts/1"


def test_an_arm_has_its_start_though_it_has_options_that_only_others_use(monkeypatch):
    """By itself each of these arms would be refused."""
    monkeypatch.setattr(initial_weights, "resolve_initial_weights", lambda *_, **__: COPY)
    experiment = Experiment(experiment="e").replace(
        {
            "arms": {"cosine": {}, "wsd": {"train.schedule": "wsd"}},
            "seeds": [0, 1],
            "train.decay_fraction": 0.3,
            "train.start_from": "models:/base@champion",
        }
    )
    for arm in experiment.by_arm.values():
        assert resolve_start(arm).train.start_from == COPY
