import pytest

from pipelines.registry.config import GenerateConfig, PromoteConfig
from tests.sections import fields, shipped_fields


@pytest.mark.parametrize("section", [PromoteConfig, GenerateConfig])
def test_defaults_and_limits_are_those_of_the_shipped_schema(section):
    assert fields(section) == shipped_fields(section)


def test_the_log_of_another_models_champions_is_no_model():
    assert PromoteConfig(model="champions").model == "champions"
    with pytest.raises(ValueError, match="a-champions would be the log of another model's"):
        PromoteConfig(model="a-champions")
