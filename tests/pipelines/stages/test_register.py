"""What the stage register is given by promote.py; the rest is in the tests of the commands."""

import pytest

from pipelines.console.errors import ConfigError
from pipelines.registry.versions import Registry
from pipelines.stages.register import _name_challenger, register_model
from pipelines.tracking.models import model_id_of
from tests.pipelines.commands import invocation
from tests.pipelines.packages import log_untrained
from tests.pipelines.registry.registered import register
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


def test_of_two_sweeps_that_register_at_once_the_newer_version_is_the_challenger(
    store, monkeypatch
):
    registry, set_alias = register(store), Registry.set_alias

    def set_late(self: Registry, alias: str, version: int) -> None:
        monkeypatch.setattr(Registry, "set_alias", set_alias)
        register(store, 2)
        _name_challenger(registry, 3)
        set_alias(self, alias, version)

    monkeypatch.setattr(Registry, "set_alias", set_late)
    _name_challenger(registry, 1)
    assert registry.aliases() == {"challenger": 3}
    _name_challenger(registry, 2)
    assert registry.aliases() == {"challenger": 3}
