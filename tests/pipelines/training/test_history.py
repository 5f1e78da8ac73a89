import pytest

from pipelines.training.history import best_row, finished


def test_the_best_row_is_the_earliest_smallest_evaluated_one():
    rows = [
        {"step": 1, "train_bits_per_byte": 0.5},
        {"step": 2, "train_bits_per_byte": 3.0, "val_bits_per_byte": 1.0},
        {"step": 3, "train_bits_per_byte": 2.0, "val_bits_per_byte": 1.0},
    ]
    assert best_row(rows, "val_bits_per_byte")["step"] == 2
    assert best_row(rows, "train_bits_per_byte")["step"] == 3


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ([], 1, False),
        ([3, 2, 1], 1, False),
        ([3, 2, 2], 1, True),
        ([3, 3, 2], 2, False),
        ([1, 2, 3], None, False),
        ([1, 2, 3], 2, True),
        ([1, 2, 3, 0], None, True),
    ],
)
def test_patience_counts_evaluations_since_the_best(run, values, patience, ended):
    steps = zip(run.train.eval_steps, values, strict=False)
    history = [{"step": step, "val_bits_per_byte": bits} for step, bits in steps]
    history += [{"step": 1 + row["step"]} for row in history[-1:]]  # of the next evaluation
    assert finished(history, run.replace({"train.patience": patience}).train) == ended
