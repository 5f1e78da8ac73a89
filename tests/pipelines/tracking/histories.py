"""Histories of runs, made and read back."""

from pipelines.tracking.store import Store


def rows(*steps: int) -> list[dict]:
    return [
        {"step": step, "time": 1e9 + step, "train_bits_per_byte": float(step), "tokens": step}
        for step in steps
    ]


def steps_of(store: Store, run: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run, "train_bits_per_byte")]
