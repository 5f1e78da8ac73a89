"""Which logged model a text of the user means.

Used by generate.py, by train.py --from-version and by train.start_from.
"""

import re

from mlflow.exceptions import MlflowException

from pipelines.compat.mlflow import MODEL_ID, RUN_ID, all_pages
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import first_line
from pipelines.registry.champions import CHAMPION
from pipelines.registry.versions import LATEST, Registry
from pipelines.tracking.client import RetryingClient
from pipelines.tracking.models import ModelStore


def resolve_model(client: RetryingClient, text: str, *, name: str) -> tuple[str, str]:
    """The id of the logged model that a text names, and a label for people.

    Texts are NAME, NAME/VERSION, NAME@ALIAS, each also behind models:/; a number, `latest` or
    @ALIAS of the registered model `name`; models:/m-ID or m-ID; runs:/RUN/model or a run's id. A
    bare name means its champion, or that alias of `name` if no model has it. Raises ConfigError.
    """
    model = re.fullmatch(rf"(?:models:/)?({MODEL_ID})", text)
    run = re.fullmatch(rf"(?:runs:/)?({RUN_ID})(?:/.*)?", text)
    try:
        if model:
            client.get_logged_model(model[1])
            return model[1], f"models:/{model[1]}"
        if run:
            return _of_run(client, run[1], text)
    except MlflowException as error:
        raise ConfigError(Problem(first_line(error), source=text)) from None
    return _of_version(client, text, name)


def _of_run(client: RetryingClient, run_id: str, text: str) -> tuple[str, str]:
    found = ModelStore(client).logged_by(run_id)
    if found is None:
        raise ConfigError(Problem("that run has logged no model", source=text))
    return found, f"runs:/{run_id} (models:/{found})"


def _of_version(client: RetryingClient, text: str, name: str) -> tuple[str, str]:
    parts = re.fullmatch(r"(?:models:/)?([^/@:]*)([/@]?)([^/@:]*)", text)
    if parts is None or not (parts[1] or parts[2]) or bool(parts[2]) != bool(parts[3]):
        message = (
            "expected NAME, NAME/VERSION, NAME@ALIAS, models:/..., runs:/RUN/model with the 32 "
            "digits of a run, or the id of a run or of a logged model"
        )
        raise ConfigError(Problem(message, source=text or "no model"))
    registered, which = parts[1] or name, parts[3] or CHAMPION
    if not parts[2] and (registered.isdecimal() or registered == LATEST):
        registered, which = name, registered
    names = {model.name: model for model in all_pages(client.search_registered_models)}
    if text not in names and name in names and text in names[name].aliases:
        registered, which = name, text
    registry = Registry(client, registered)
    version = registry.find(which)
    aliases = sorted(alias for alias, number in registry.aliases().items() if number == version)
    label = f"models:/{registry.name}/{version}"
    return registry.model_id(version), label + (f" ({', '.join(aliases)})" if aliases else "")
