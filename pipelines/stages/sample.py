"""sample: text from the champion, loaded from the registry as any consumer would."""

from collections.abc import Mapping

from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.runtime.tracking import load_packaged

FILE = "samples.txt"
SEPARATOR = "\n\n" + 20 * "-" + "\n\n"


def sample(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Continue the configured prompts; the texts are an artifact of the stage's run."""
    options = context.config.generate.model_dump()
    prompts = options.pop("prompts")
    uri = f"models:/{needs['promote']['model']}/{needs['promote']['champion']}"
    with context.progress.working("sample: generating"):
        packaged = load_packaged(uri)
        seed = context.config.seed
        texts = [p + "".join(packaged.continuation(p, seed=seed, **options)) for p in prompts]
    context.store.log_text(context.run_id, SEPARATOR.join(texts), FILE)
    return {"model_uri": uri, "run_id": context.run_id}


STAGE = Stage(
    name="sample",
    run=sample,
    needs=("promote",),
    reads=("seed", "generate"),
    sources=("dca", "pipelines/stages/sample.py"),
)
