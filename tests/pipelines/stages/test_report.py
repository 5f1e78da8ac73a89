from types import SimpleNamespace

import pytest

from pipelines.stages.report import _front


@pytest.mark.parametrize(
    ("second", "shown"),
    [
        (None, []),
        (
            "bytes_per_second",
            [
                "",
                "bits per byte against bytes per second: no trial is better in both",
                "    2.0000         30,000  trial 2",
                "    2.5000         40,000  trial 3",
            ],
        ),
    ],
)
def test_the_screen_shows_the_front_where_there_are_two_objectives(config, second, shown):
    search = {"second_objective": second, "scheduler": {"name": "none"}}
    context = SimpleNamespace(config=config.replace({"search": search}))
    front = [[2, 2.0, 30_000.0], [3, 2.5, 40_000.0]]
    assert _front(context, {"select": {"front": front}}) == shown
