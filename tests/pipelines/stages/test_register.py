"""What the stage register is given by promote.py; the rest is in the tests of the commands."""

import pytest

from pipelines.console.errors import ConfigError
from pipelines.stages.register import register_model
from pipelines.tracking.models import model_id_of
from tests.pipelines.commands import invocation
from tests.pipelines.packages import log_untrained
from tests.pipelines.stored import purge


@pytest.mark.parametrize("packaged", [False, True])
def test_a_model_without_the_run_that_trained_it_is_not_registered(store, experiment, packaged):
    if packaged:
        run, uri = log_untrained(store, experiment)
        model_id = model_id_of(uri)
        purge(store, run)
    else:
        model_id = store.client.create_logged_model(store.experiment_id).model_id
    with pytest.raises(ConfigError, match=r"^it: expected a model of train\.py or sweep\.py$"):
        register_model(store.models, model_id, "it", [], None, invocation())
