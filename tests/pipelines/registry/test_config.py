import pytest

from pipelines.registry import config, packaged_model
from pipelines.registry.config import GenerateConfig, PromoteConfig
from tests.sections import fields, shipped_fields


@pytest.mark.parametrize("section", [PromoteConfig, GenerateConfig])
def test_defaults_and_limits_are_those_of_the_shipped_schema(section):
    assert fields(section) == shipped_fields(section)


def test_the_log_of_another_models_champions_is_no_model():
    assert PromoteConfig(model="champions").model == "champions"
    with pytest.raises(ValueError, match="a-champions would be the log of another model's"):
        PromoteConfig(model="a-champions")


def test_what_a_packaged_model_refuses_is_refused_before_the_pipeline_runs():
    assert config.MAX_BYTES == packaged_model.MAX_BYTES
    longest = config.MAX_BYTES // 2 * "é"
    assert GenerateConfig(prompts=[longest], max_new_tokens=config.MAX_BYTES)
    for wrong in ({"prompts": [f"{longest}x"]}, {"max_new_tokens": config.MAX_BYTES + 1}):
        with pytest.raises(ValueError, match="65536"):
            GenerateConfig(**wrong)


def test_a_sample_without_a_prompt_is_refused_before_the_pipeline_runs():
    with pytest.raises(ValueError, match="at least 1 item"):
        GenerateConfig(prompts=[])
