"""evaluate: the candidate and common compressors on the test split, in bits per byte.

And the share of the test split that the training text has too.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.overlap import overlap_share
from pipelines.data.splits import sealed_test, train_val_splits
from pipelines.engine.results import StageResults, label
from pipelines.engine.stage import Context, Ended, Instance, Stage
from pipelines.experiment import Experiment
from pipelines.registry.results import Diverged, Fitted, Tested, Untested
from pipelines.registry.score import score
from pipelines.storage.files import File, local_copy, temporary_copy
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import (
    BASELINE_METRIC,
    EVALUATE_KIND,
    OVERLAP_METRIC,
    SCORE_FILE,
    TEST_BITS_METRIC,
)


def evaluate(context: Context[Experiment], needs: StageResults) -> Tested | Untested:
    """Bits per byte of the packaged model, read back from the store, and of the baselines."""
    with _opened(context, needs) as text:
        return _evaluate(context, needs, text)


def evaluate_together(
    instances: Sequence[Instance[Experiment]], ended: Ended[Tested | Untested]
) -> None:
    """The same of all trainings of a study, one after the other: their speed is measured too.

    What is of the text alone is computed once.
    """
    with _opened(*instances[0]) as text:
        for place, instance in enumerate(instances):
            try:
                outcome: Tested | Untested | Exception = _evaluate(*instance, text)
            except Exception as error:
                outcome = error
            ended(place, outcome)


class _Text:
    """The test split, and what is computed of it without a model."""

    def __init__(self, context: Context[Experiment], train: File, test: Path) -> None:
        self.path = test
        self._progress, self._train = context.progress, train

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Bits per byte of common compressors."""
        from pipelines.training.evaluation import compressors  # with PyTorch

        look = lambda: "  evaluate: common compressors"  # noqa: E731
        with self._progress.watching(look, stage=EVALUATE_KIND):
            return compressors(self.path)

    @cached_property
    def overlap(self) -> float:
        """The share that the training text has too."""
        look = lambda: "  evaluate: what the training text has too"  # noqa: E731
        with self._progress.watching(look, stage=EVALUATE_KIND):
            return overlap_share(local_copy(self._train), self.path)


@contextmanager
def _opened(context: Context[Experiment], needs: StageResults) -> Iterator[_Text]:
    fingerprint = needs[PreparedCorpus].fingerprint
    train = train_val_splits(context.storage, fingerprint).train
    with ExitStack() as kept:
        with context.progress.waiting("evaluate: copying the test split", stage=EVALUATE_KIND):
            test = kept.enter_context(temporary_copy(sealed_test(context.storage, fingerprint)))
        yield _Text(context, train, test)


def _evaluate(context: Context[Experiment], needs: StageResults, text: _Text) -> Tested | Untested:
    if needs.get(Diverged):
        return Untested()
    corpus, store, run_id = needs[PreparedCorpus], context.store, context.run_id
    model_id = model_id_of(needs[Fitted].model_uri)
    store.log_corpus(run_id, corpus, test=sealed_test(context.storage, corpus.fingerprint))
    store.log_use(run_id, model_id)
    name = label(EVALUATE_KIND, context.values)
    with context.progress.working(f"{name}: the test split"):
        found = score(store.models, model_id, text.path, context.progress, name)
        baselines, overlap = text.baselines, text.overlap
    file = SCORE_FILE.format(corpus.fingerprint, found.seq_len)
    store.models.write_json(model_id, file, asdict(found))
    store.log_metrics(
        run_id,
        {TEST_BITS_METRIC: found.bits_per_byte},
        model_id=model_id,
        dataset_name=f"{corpus.name} test",
        dataset_digest=corpus.fingerprint,
    )
    others = {BASELINE_METRIC.format(key.replace(" ", "_")): v for key, v in baselines.items()}
    store.log_metrics(run_id, {**others, OVERLAP_METRIC: overlap})
    return Tested(found.bits_per_byte, corpus.fingerprint, baselines, overlap)


STAGE: Stage[Experiment, Tested | Untested] = Stage(
    name=EVALUATE_KIND,
    result=Tested | Untested,
    run=evaluate,
    run_together=evaluate_together,
    depends_on=("corpus", "fit"),
    modules=lambda _: ("pipelines.stages.evaluate",),
    over=("arm", "seed"),
)
