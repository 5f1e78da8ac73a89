import pytest

from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.training.config import TrainingRun


@pytest.fixture
def splits(run: TrainingRun, tmp_path) -> TrainValSplits:
    corpus = measure_corpus(run.data, seq_len=run.train.seq_len)
    write_splits(run.data, corpus, tmp_path)
    return train_val_splits(tmp_path, corpus.fingerprint)
