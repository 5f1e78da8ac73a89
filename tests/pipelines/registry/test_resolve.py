import pytest

from pipelines.console.errors import ConfigError
from pipelines.registry.champions import Champions
from pipelines.registry.resolve import resolve_model
from tests.pipelines.registry.registered import force, register


def test_every_way_to_name_a_model_leads_to_it(store):
    registry = register(store, 2)
    force(Champions(registry), 2)
    model_id = registry.model_id(2)
    named = [
        *("tiny", "tiny@champion", "tiny/2", "tiny/latest", "2", "latest", "@champion"),
        *("models:/tiny/2", "models:/tiny@champion", "champion"),
    ]
    for text in named:
        label = "models:/tiny/2 (champion)"
        assert resolve_model(store.client, text, name="tiny") == (model_id, label), text
    for text in (model_id, f"models:/{model_id}"):
        assert resolve_model(store.client, text, name="tiny") == (model_id, f"models:/{model_id}")
    wrong_names = ("models:/tiny/9", "tiny@x", "nobody", "m-" + 32 * "0", 32 * "0", "runs:/x")
    for wrong in (*wrong_names, "", "@", "tiny@", "tiny/", "models:/", "http://x/y", "a\nb"):
        with pytest.raises(ConfigError):
            resolve_model(store.client, wrong, name="tiny")
    with pytest.raises(ConfigError, match="that run has logged no model"):
        resolve_model(store.client, f"runs:/{registry.get(1).run_id}/model", name="tiny")
