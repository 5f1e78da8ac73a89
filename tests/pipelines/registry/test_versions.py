import json
import re
from functools import partial

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipelines.compat.mlflow import MODEL_VERSIONS_TAG
from pipelines.console.errors import ConfigError
from pipelines.registry.resolve import resolve_model
from pipelines.registry.versions import Registry
from pipelines.storage.project import ROOT, command_line
from pipelines.tracking.schema import SCHEMA_TAG, SCHEMA_VERSION
from tests.pipelines.registry.registered import register


def test_registering_twice_makes_one_version(store):
    registry = register(store)
    uri, run = registry.get(1).source, registry.get(1).run_id
    assert registry.register(uri, run, {"a": "1"}) == 1
    assert registry.register(uri, run, {"a": "2"}) == 1
    assert registry.get(1).tags == {SCHEMA_TAG: str(SCHEMA_VERSION), "number": "0", "a": "2"}


def test_a_version_is_found_by_number_alias_or_as_the_latest(store):
    registry = register(store, 3)
    registry.set_alias("candidate", 2)
    assert [registry.find(text) for text in ("3", "candidate", "@candidate", "latest")] == [
        *(3, 2, 2, 3)
    ]
    for wrong in ("4", "champion", "x\ny", ""):
        with pytest.raises(ConfigError, match="versions: 1 to 3; aliases: candidate") as raised:
            registry.find(wrong)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="no such registered model; registered: tiny"):
        Registry(store.client, "huge").find("1")


def test_a_version_is_on_the_page_of_its_logged_model_once(store):
    registry = register(store)
    uri, run = registry.get(1).source, registry.get(1).run_id
    other = Registry(store.client, "other")
    for _ in range(2):
        other.register(uri, run, {})
        registry.register(uri, run, {})
    model_id = registry.model_id(1)
    tags = store.client.get_logged_model(model_id).tags
    assert json.loads(tags[MODEL_VERSIONS_TAG]) == [
        {"name": "tiny", "version": "1"},
        {"name": "other", "version": "1"},
    ]
    for edited in ("{", "1", '["a"]', '[{"name": "tiny"}]'):
        store.client.set_logged_model_tags(model_id, {MODEL_VERSIONS_TAG: edited})
        registry.register(uri, run, {})
        tags = store.client.get_logged_model(model_id).tags
        assert json.loads(tags[MODEL_VERSIONS_TAG]) == [{"name": "tiny", "version": "1"}]


def test_a_misspelt_name_has_the_nearest_one(store):
    register(store)
    with pytest.raises(ConfigError, match="registered: tiny; did you mean tiny"):
        Registry(store.client, "tinny").versions()


def test_a_name_that_no_search_can_have_is_refused_whether_it_is_registered_or_not(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    registry = Registry(store.client, "it's")
    sweep = re.escape(command_line(ROOT / "pipelines/sweep.py"))
    with pytest.raises(ConfigError, match=f"model; registered: none yet; {sweep} makes one"):
        registry.versions()
    store.client.create_registered_model("it's")
    with pytest.raises(ConfigError, match="models:/it's: expected a name without ', at which"):
        registry.find("1")


def test_a_name_that_a_server_with_grants_refuses_may_be_misspelt(store, monkeypatch):
    register(store)

    def refuse(_: str) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(store.client._client, "get_registered_model", refuse)
    expected = "no such registered model that this user may read; registered: tiny; did you mean"
    with pytest.raises(ConfigError, match=expected):
        Registry(store.client, "tinny").versions()


def test_names_and_their_aliases_are_found_on_every_page(store, monkeypatch):
    registry = register(store)
    registry.set_alias("best", 1)
    for name in ("a", "z"):
        store.client.create_registered_model(name)
    search = partial(store.client._client.search_registered_models, max_results=1)
    monkeypatch.setattr(store.client._client, "search_registered_models", search)
    with pytest.raises(ConfigError, match="registered: a, tiny, z; did you mean tiny"):
        Registry(store.client, "tinny").versions()
    assert resolve_model(store.client, "best", name="tiny")[1] == "models:/tiny/1 (best)"


def test_a_tag_of_a_version_has_no_secret(store):
    registry = register(store)
    registry.tag(1, {"gate": "see http://user:CANARY@host and --password CANARY"})
    assert registry.get(1).tags["gate"] == "see http://***@host and --password ***"
