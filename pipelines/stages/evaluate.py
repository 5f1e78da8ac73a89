"""evaluate: bits per byte of the candidate and of common compressors on the test split."""

from collections.abc import Mapping
from dataclasses import asdict

from pipelines.data.splits import sealed_test
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.registry.score import FILE, score
from pipelines.storage.files import temporary_copy
from pipelines.tracking.models import model_id_of
from pipelines.training.evaluation import compressors


def evaluate(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Bits per byte of the packaged model, read back from the store, and of the baselines."""
    fingerprint = needs["corpus"]["fingerprint"]
    file = sealed_test(context.storage, fingerprint)
    model_id = model_id_of(needs["fit"]["model_uri"])
    context.store.log_corpus(context.run_id, needs["corpus"], test=file)
    context.store.log_use(context.run_id, model_id)
    with context.progress.working("evaluate: the test split"), temporary_copy(file) as path:
        found = score(context.store.models, model_id, path)
        baselines = compressors(path)
    context.store.models.write_json(model_id, FILE.format(fingerprint), asdict(found))
    context.store.log_metrics(
        context.run_id,
        {"test_bits_per_byte": found.bits_per_byte},
        model_id=model_id,
        dataset_name=f"{needs['corpus']['name']} test",
        dataset_digest=fingerprint,
    )
    others = {f"{key.replace(' ', '_')}_bits_per_byte": v for key, v in baselines.items()}
    context.store.log_metrics(context.run_id, others)
    return {
        "test_bits_per_byte": found.bits_per_byte,
        "fingerprint": fingerprint,
        "baselines": baselines,
    }


STAGE = Stage(
    name="evaluate",
    run=evaluate,
    depends_on=("corpus", "fit"),
    modules=lambda _: ("pipelines.stages.evaluate",),
)
