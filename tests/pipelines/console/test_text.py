"""Text for people: one line of foreign text, the nearest valid name, values and durations."""

import errno
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.console.text import (
    counted,
    first_line,
    for_stream,
    format_duration,
    format_value,
    json_text,
    nearest,
    one_line,
    quote_value,
    reason_of,
    shown_path,
    without_controls,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        ("a b", "a b"),
        ([1, "b"], '[1, "b"]'),
        (12_345_678, "12345678"),
        (12_345_678.0, "12345678"),
        (0.000123456, "0.0001235"),
        (2.3, "2.3"),
        (float("nan"), "nan"),
        (1e300, "1e+300"),
        (np.int64(3), "3"),
        (np.bool_(False), "false"),
        (np.float64(1.23456), "1.235"),
    ],
)
def test_a_value_is_shown_as_people_write_it(value, shown):
    assert format_value(value) == shown


def test_what_would_control_a_terminal_or_hide_text_is_shown():
    title, clear, colour = "\x1b]0;owned\x07", "\x9b2J\r\b", "a\x00\x7f"
    assert without_controls(title) == r"\x1b]0;owned\x07"
    assert without_controls(clear + colour) == r"\x9b2J\r\x08a\x00\x7f"
    assert without_controls("a\u202eb\u2066c\u2028d\ufeff") == r"a\u202eb\u2066c\u2028d\ufeff"
    kept = "a\n\tÄ\xa0漢 🧑\u200d🚀\ufffd"
    assert without_controls(kept) == kept


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_is_spared_from_controls():
    assert for_stream("\x1b[1m", Terminal()) == r"\x1b[1m"
    assert for_stream("\x1b[1m", io.StringIO()) == for_stream("\x1b[1m", None) == "\x1b[1m"


def test_the_first_line_of_an_error_is_short_and_printable():
    assert first_line(ValueError("\n a\x1b[1m\nSELECT 1")) == "a\\x1b[1m"
    assert len(first_line(ValueError("a" * 900))) == 200
    assert first_line(ValueError(" \n")) == "ValueError"


@pytest.mark.parametrize(
    ("count", "noun", "shown"),
    [
        (1, "trial", "1 trial"),
        (0, "trial", "0 trials"),
        (1234567, "byte", "1,234,567 bytes"),
        (1.0, "GPU", "1 GPU"),
        (0.5, "GPU", "0.5 GPUs"),
        (4.0, "CPU", "4 CPUs"),
    ],
)
def test_one_of_something_is_no_plural(count, noun, shown):
    assert counted(count, noun) == shown


def test_no_message_joins_a_number_that_may_be_one_with_a_plural():
    joined = re.compile(
        r"\{(?![A-Z_]+[}:])[^{}]*\} (?:trial|seed|size|step|evaluation|training|worker|arm|point"
        r"|file|block|pair|CPU|GPU|time|run|version)s\b"
    )
    sources = {path: path.read_text() for path in (ROOT / "pipelines").rglob("*.py")}
    found = [f"{path}: {one}" for path, text in sources.items() for one in joined.findall(text)]
    assert found == []


def test_a_path_is_shown_from_the_current_folder_if_it_lies_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a" / "b.py") == "a/b.py"
    assert shown_path(tmp_path.parent / "b.py") == str(tmp_path.parent / "b.py")


def test_more_digits_of_a_fraction_are_shown_on_request():
    assert format_value(2.3456789, digits=6) == "2.34568"


def test_a_value_without_a_limit_of_digits_is_exact():
    shown = [format_value(value, digits=None) for value in (0.1, 0.012345678901, 1.0, None, "dca")]
    assert shown == ["0.1", "0.012345678901", "1.0", "null", "dca"]


def test_a_quoted_value_distinguishes_text_from_numbers_and_is_short():
    assert [quote_value("1"), quote_value(1)] == ['"1"', "1"]
    assert len(quote_value("x" * 100)) == 60
    assert quote_value("x" * 100).endswith("...")


def test_foreign_text_is_one_line_of_at_most_500_characters():
    assert one_line("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
    assert len(one_line("x" * 501)) == 500


def test_an_error_of_the_system_is_shown_without_its_number():
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/a\nb")
    assert reason_of(error) == "No such file or directory"
    assert reason_of(error, with_file=True) == "/a\\nb: No such file or directory"
    assert reason_of(OSError("gone"), with_file=True) == "gone"
    assert [reason_of(ValueError("a\nb")), reason_of(ValueError())] == ["a\\nb", "ValueError"]


def test_the_nearest_name_is_a_close_one_or_none():
    assert nearest("dpeth", ["dim", "depth"]) == "depth"
    assert nearest("something", ["dim", "depth"]) == ""
    kinds = ["standard", "static-hyper", "hyper_connections", "Hyper-static"]
    assert nearest("hyper", ["other", *kinds[:3]]) == "hyper_connections"
    assert nearest("hyp", kinds) == "Hyper-static"
    assert nearest("hy", kinds) == ""


@pytest.mark.parametrize(("seconds", "shown"), [(59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_a_duration_has_hours_only_if_it_lasts_one(seconds, shown):
    assert format_duration(seconds) == shown


def test_text_at_a_limit_is_whole_or_cut():
    assert one_line("x" * 499) == "x" * 499
    assert one_line("x" * 500) == "x" * 497 + "..."  # the limit may have cut it
    assert one_line("x" * 9, limit=10) == "x" * 9
    assert one_line("x" * 11, limit=10) == "xxxxxxx..."
    assert one_line("\n" * 6, limit=10) == r"\n\n\n\..."
    assert quote_value("x" * 58) == f'"{"x" * 58}"'
    assert quote_value("x" * 59) == f'"{"x" * 56}...'


def test_a_whole_number_is_shown_in_full_up_to_fifteen_digits():
    assert format_value(123_456_789_012_345.0) == "123456789012345"
    assert format_value(-123_456_789_012_345.0) == "-123456789012345"
    assert format_value(1e15) == "1e+15"
    assert format_value(-1e15) == "-1e+15"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (60, "1:00"), (3599.4, "59:59"), (3600, "1:00:00")],
)
def test_a_duration_at_a_full_minute_or_hour(seconds, shown):
    assert format_duration(seconds) == shown


def test_json_for_other_programs_has_null_for_what_is_no_number():
    """As the bits per byte of a model that has diverged; NaN is no JSON."""
    row = {"a": [1.5, math.nan, (math.inf, "nan")], "b": {"c": -math.inf}, "d": Path("e"), "f": 1}
    text = json_text(row)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [1.5, None, [None, "nan"]],
        "b": {"c": None},
        "d": "e",
        "f": 1,
    }
    assert json_text([1], indent=1) == "[\n 1\n]"
