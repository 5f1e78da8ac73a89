from pathlib import Path

import pytest

from pipelines.reporting.screen import pareto_lines, screen_lines

OUTPUTS = {
    "corpus": {"name": "files", "bytes": {"test": 3000}},
    "search": {"trials": {"complete": 2, "pruned": 1, "failed": 0}},
    "select": {
        "trial": 1,
        "objective": 2.25,
        "values": {"train.learning_rate": 0.012345678, "model.last_k": None},
        "front": [],
    },
    "fit": {
        "parameters": 12345,
        "tokens": 65536,
        "workers": 2,
        "seconds": 61.0,
        "val_bits_per_byte": 2.2,
    },
    "evaluate": {"baselines": {"gzip": 3.1, "lzma": 2.0}, "test_bits_per_byte": 2.2},
    "register": {"version": 3},
    "promote": {"model": "dca-gpt", "champion": "3", "decision": "promoted: the first"},
    "sample": {},
}


def shown(experiment, outputs: dict, page: Path | None = Path("report.html")) -> list[str]:
    where = {"page": page, "storage": "/runs", "script": lambda name: Path("pipelines") / name}
    return screen_lines(experiment, outputs, "def generated", **where)


def test_the_screen_has_the_result_the_text_and_the_next_commands(experiment):
    lines = shown(experiment, OUTPUTS)
    assert lines[:4] == [
        "tiny: 3 trials (2 complete, 1 pruned)",
        "winner   trial 1, 2.2500 bits per byte: train.learning_rate=0.012345678, "
        "model.last_k=null",
        "trained  12,345 parameters on 65,536 bytes with 2 workers in 1:01, validation 2.2000 bits "
        "per byte",
        "gate     version 3 promoted: the first",
    ]
    start = lines.index("bits per byte of the test split (3,000 bytes of files)")
    assert [line.split()[-1] for line in lines[start + 1 : start + 4]] == ["lzma", "3", "gzip"]
    assert "def generated" in lines
    assert "champion  models:/dca-gpt@champion (version 3)" in lines
    assert "report    report.html" in lines
    assert "python pipelines/generate.py --model dca-gpt --prompt" in lines[-1]


def test_without_a_champion_the_commands_use_the_version(experiment):
    promote = OUTPUTS["promote"] | {"champion": None}
    lines = shown(experiment, OUTPUTS | {"promote": promote})
    (champion,) = [line for line in lines if line.startswith("champion")]
    assert champion.endswith("python pipelines/promote.py promote --model dca-gpt 3")
    assert "--model dca-gpt/3 --prompt" in lines[-1]


def test_without_a_page_its_line_is_left_out(experiment):
    assert not any(line.startswith("report ") for line in shown(experiment, OUTPUTS, None))


@pytest.mark.parametrize(
    ("second", "lines"),
    [
        (None, []),
        (
            "bytes_per_second",
            [
                "",
                "Pareto front of bits per byte and bytes per second: the trials not dominated",
                "    2.0000         30,000  trial 2",
                "    2.5000         40,000  trial 3",
            ],
        ),
    ],
)
def test_the_screen_shows_the_front_where_there_are_two_objectives(experiment, second, lines):
    search = {"second_objective": second, "scheduler": {"name": "none"}}
    config = experiment.replace({"search": search})
    assert pareto_lines(config, [(2, 2.0, 30_000.0), (3, 2.5, 40_000.0)]) == lines
