"""The model registry: versions, aliases, and who was champion when.

The champion is MLflow's alias `champion`. Why it moved is a log: the versions of a second
registered model, NAME-champions, whose numbers the registry hands out once each, in order. An entry
says which entry it follows. Of two that follow the same one the first counts and the other is void,
for whoever reads the log: so two promoters on two machines cannot both win, no lock is held, and a
process killed anywhere leaves nothing to clean up. The alias is moved after the entry is written;
if that was cut short, whoever comes next moves it.
"""

import re

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.console.errors import ConfigError
from pipelines.console.text import one_line
from pipelines.registry.versions import CHAMPION, Registry
from pipelines.tracking.models import logged_model


def resolve_model(client: MlflowClient, text: str, *, name: str) -> tuple[str, str]:
    """The id of the logged model that a text names, and how to call it.

    Texts are NAME, NAME/VERSION, NAME@ALIAS, each also behind models:/; a number, `latest` or
    @ALIAS of the registered model `name`; models:/m-ID or m-ID; runs:/RUN/model or a run's id. A
    bare name means its champion. Raises ConfigError.
    """
    model = re.fullmatch(r"(?:models:/)?(m-[0-9a-f]{32})", text)
    run = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/.*)?", text)
    try:
        if model:
            client.get_logged_model(model[1])
            return model[1], f"models:/{model[1]}"
        if run:
            client.get_run(run[1])
            found = logged_model(run[1])
            if found is None:
                raise ConfigError(f"{text}: that run has logged no model")
            return found, f"runs:/{run[1]} (models:/{found})"
    except MlflowException as error:
        raise ConfigError(f"{text}: {str(error).splitlines()[0]}") from None
    parts = re.fullmatch(r"(?:models:/)?([^/@:]*)([/@]?)([^/@:]*)", text)
    if parts is None or not (parts[1] or parts[2]) or bool(parts[2]) != bool(parts[3]):
        raise ConfigError(
            f"{one_line(text) or 'no model'}: expected NAME, NAME/VERSION, NAME@ALIAS, "
            "models:/..., runs:/RUN/model with the 32 digits of a run, or the id of a run or of a "
            "logged model"
        )
    registered, which = parts[1] or name, parts[3] or CHAMPION
    if not parts[2] and (registered.isdecimal() or registered == "latest"):
        registered, which = name, registered
    registry = Registry(client, registered)
    version = registry.find(which)
    aliases = sorted(alias for alias, number in registry.aliases().items() if number == version)
    label = f"models:/{registry.name}/{version}"
    return registry.model_id(version), label + (f" ({', '.join(aliases)})" if aliases else "")
