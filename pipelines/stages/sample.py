"""sample: text from the champion, written by generate.py as a user would call it."""

import json
import os
from pathlib import Path

from pipelines.console.errors import (
    DISK_ERRORS,
    ConfigError,
    DamagedError,
    GoneError,
    PipelineError,
)
from pipelines.console.isolated import run_isolated
from pipelines.console.text import why_ended
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.champions import Champions
from pipelines.registry.package import fetch_model
from pipelines.registry.results import Promoted, Sampled
from pipelines.registry.versions import Registry
from pipelines.storage.scratch import scratch_folder
from pipelines.tracking.schema import SAMPLE_KIND, SAMPLES_FILE
from pipelines.tracking.store import Store

SEPARATOR = "\n\n" + 20 * "-" + "\n\n"


def sample(context: Context[Experiment], needs: StageResults) -> Sampled:
    """Continue the configured prompts; the texts are an artifact of the stage's run."""
    promoted = needs[Promoted]
    if promoted.champion is None:
        context.store.log_text(context.run_id, "no champion, no sample", SAMPLES_FILE)
        return Sampled(context.run_id)
    uri = f"models:/{promoted.model}/{promoted.champion}"
    with (
        context.progress.working("sample: generating"),
        context.progress.watching(lambda: "  sample: generating", stage="sample"),
    ):
        texts = _generate(context, promoted.model, promoted.champion)
    context.store.log_text(context.run_id, SEPARATOR.join(texts), SAMPLES_FILE)
    return Sampled(context.run_id, uri)


def _generate(context: Context[Experiment], model: str, champion: int) -> list[str]:
    """In a process of its own: the champion is loaded with its own `dca`.

    It is fetched before, by a client that waits for a store that is away: what fails then is the
    champion.
    """
    uri, registry = f"models:/{model}/{champion}", Registry(context.store.client, model)
    try:
        with scratch_folder() as scratch:
            model_id = registry.model_id(champion)
            folder = fetch_model(context.store.models, model_id, scratch / "model")
            return _texts(context.config, folder, uri)
    except (ConfigError, DamagedError) as error:  # the former if it is no logged model
        ways_on = Champions(registry).ways_on(champion)
        message = f"the champion, {uri}, cannot be used: {error}; run {ways_on}"
        raise PipelineError(message) from None


def _texts(config: Experiment, folder: Path, uri: str) -> list[str]:
    """The texts of the model in a folder.

    Raises DamagedError if its code fails, PipelineError if something else ends its process.
    """
    options = config.generate
    arguments = [
        *("--json", f"--model={folder}"),
        *(f"--prompt={prompt}" for prompt in options.prompts),
        f"--max-new-tokens={options.max_new_tokens}",
        f"--temperature={options.temperature}",
        f"--top-k={options.top_k or config.model.vocab}",
        f"--top-p={options.top_p or 1.0}",
        f"--seed={config.seed}",
    ]
    child = run_isolated("pipelines.generate", arguments)
    lines = [line for line in child.stdout.split("\n") if line]
    if child.returncode or len(lines) < len(options.prompts):
        reason = why_ended(child.stderr, child.returncode)
        if _is_of_the_machine(child.returncode, reason):
            raise PipelineError(f"{uri}: {reason}")
        raise DamagedError(reason.replace(str(folder), uri))
    return [json.loads(line)["text"] for line in lines]


def _is_of_the_machine(code: int, reason: str) -> bool:
    """Whether a process was killed, as where memory is short, or met a full disk."""
    return code < 0 or any(os.strerror(number) in reason for number in DISK_ERRORS)


def _verify(store: Store, sampled: Sampled) -> None:
    if sampled.model_uri is not None and not store.models.exists(sampled.model_uri):
        raise GoneError(f"{sampled.model_uri} does not exist any more")


STAGE = Stage(
    name=SAMPLE_KIND,
    result=Sampled,
    run=sample,
    depends_on=("promote",),
    config_keys=("seed", "generate"),
    modules=lambda _: ("pipelines.stages.sample", "pipelines.generate"),
    verify=_verify,
)
