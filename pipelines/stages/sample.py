"""sample: text from the champion, written by generate.py as a user would call it."""

import json

from pipelines.console.errors import GoneError, PipelineError
from pipelines.console.isolated import run_isolated
from pipelines.console.text import why_ended
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.champions import Champions
from pipelines.registry.results import Promoted, Sampled
from pipelines.registry.versions import Registry
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
    """In a process of its own: the champion is loaded with its own `dca`."""
    options, uri = context.config.generate, f"models:/{model}/{champion}"
    arguments = [
        *("--json", f"--model={uri}"),
        *(f"--prompt={prompt}" for prompt in options.prompts),
        f"--max-new-tokens={options.max_new_tokens}",
        f"--temperature={options.temperature}",
        f"--top-k={options.top_k or context.config.model.vocab}",
        f"--top-p={options.top_p or 1.0}",
        f"--seed={context.config.seed}",
    ]
    child = run_isolated("pipelines.generate", arguments)
    lines = [line for line in child.stdout.split("\n") if line]
    if child.returncode or len(lines) < len(options.prompts):
        reason = why_ended(child.stderr, child.returncode)
        ways_on = Champions(Registry(context.store.client, model)).ways_on(champion)
        raise PipelineError(f"the champion, {uri}, cannot be used: {reason}; run {ways_on}")
    return [json.loads(line)["text"] for line in lines]


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
