import pytest

from pipelines.experiment import Experiment
from tests.pipelines.search.trials import SPACE


@pytest.fixture
def searched(experiment: Experiment) -> Experiment:
    """The small experiment with a conditional space, and no retries."""
    search = {"space": SPACE, "trials": 100}
    return experiment.replace({"search": search, "failures.retries": 0})
