"""evaluate: the candidate on the sealed test split, once, beside the compressors everybody has."""

from collections.abc import Mapping

from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.runtime.tracking import load_packaged
from pipelines.training.data import open_bytes, sealed_test
from pipelines.training.evaluation import bits_per_byte, compressors
from pipelines.training.loop import pick_device


def evaluate(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Bits per byte of the packaged model, read back from the store, and of the baselines."""
    fingerprint = needs["corpus"]["fingerprint"]
    path = sealed_test(context.storage, fingerprint)
    digest, name = fingerprint, needs["corpus"]["name"]
    context.store.log_corpus(context.run_id, name, digest, path, "test")
    with context.progress.working("evaluate: the test split"):
        score = test_bits_per_byte(context, needs["fit"]["model_uri"], fingerprint)
        baselines = compressors(path)
    metrics = {"test_bits_per_byte": score}
    metrics |= {f"{key.replace(' ', '_')}_bits_per_byte": v for key, v in baselines.items()}
    context.store.log_metrics(context.run_id, metrics)
    return {"test_bits_per_byte": score, "fingerprint": fingerprint, "baselines": baselines}


def test_bits_per_byte(context: Context, model_uri: str, fingerprint: str) -> float:
    """A packaged model's bits per byte on a whole test split, at its own training context."""
    packaged = load_packaged(model_uri)
    data = open_bytes(sealed_test(context.storage, fingerprint))
    model = packaged.model.to(pick_device())
    return bits_per_byte(model, data, seq_len=packaged.config["train"]["seq_len"])


STAGE = Stage(
    name="evaluate",
    run=evaluate,
    needs=("corpus", "fit"),
    sources=("dca", "pipelines/training/evaluation.py", "pipelines/stages/evaluate.py"),
)
