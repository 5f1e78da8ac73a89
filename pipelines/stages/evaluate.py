"""evaluate: the candidate and common compressors on the test split, in bits per byte.

And the share of the test split that the training text has too.
"""

from dataclasses import asdict

from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.overlap import overlap_share
from pipelines.data.splits import sealed_test, train_val_splits
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.results import Fitted, Tested
from pipelines.registry.score import score
from pipelines.storage.files import local_copy, temporary_copy
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import (
    BASELINE_METRIC,
    EVALUATE_KIND,
    OVERLAP_METRIC,
    SCORE_FILE,
    TEST_BITS_METRIC,
)


def evaluate(context: Context[Experiment], needs: StageResults) -> Tested:
    """Bits per byte of the packaged model, read back from the store, and of the baselines."""
    from pipelines.training.evaluation import compressors  # with PyTorch

    corpus = needs[PreparedCorpus]
    test = sealed_test(context.storage, corpus.fingerprint)
    model_id = model_id_of(needs[Fitted].model_uri)
    context.store.log_corpus(context.run_id, corpus, test=test)
    context.store.log_use(context.run_id, model_id)
    with context.progress.working("evaluate: the test split"), temporary_copy(test) as path:
        found = score(context.store.models, model_id, path, context.progress, "evaluate")
        with context.progress.watching(lambda: "  evaluate: common compressors", stage="evaluate"):
            baselines = compressors(path)
        train = train_val_splits(context.storage, corpus.fingerprint).train
        look = lambda: "  evaluate: what the training text has too"  # noqa: E731
        with context.progress.watching(look, stage="evaluate"):
            overlap = overlap_share(local_copy(train), path)
    file = SCORE_FILE.format(corpus.fingerprint, found.seq_len)
    context.store.models.write_json(model_id, file, asdict(found))
    context.store.log_metrics(
        context.run_id,
        {TEST_BITS_METRIC: found.bits_per_byte},
        model_id=model_id,
        dataset_name=f"{corpus.name} test",
        dataset_digest=corpus.fingerprint,
    )
    others = {BASELINE_METRIC.format(key.replace(" ", "_")): v for key, v in baselines.items()}
    context.store.log_metrics(context.run_id, {**others, OVERLAP_METRIC: overlap})
    return Tested(found.bits_per_byte, corpus.fingerprint, baselines, overlap)


STAGE = Stage(
    name=EVALUATE_KIND,
    result=Tested,
    run=evaluate,
    depends_on=("corpus", "fit"),
    modules=lambda _: ("pipelines.stages.evaluate",),
    over=("arm", "seed"),
)
