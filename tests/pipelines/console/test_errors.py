"""Problems as objects, and how they are written."""

import pickle

from pipelines.console.errors import ConfigError, Problem


def test_a_problem_is_written_with_what_it_has():
    assert str(Problem("bad")) == "bad"
    assert str(Problem("bad", "a.b")) == "a.b: bad"
    assert str(Problem("bad", source="e.yaml")) == "e.yaml: bad"
    assert str(Problem("bad", "a.b", "e.yaml", "a.c")) == "e.yaml: a.b: bad; did you mean a.c?"


def test_a_problem_at_another_key_keeps_where_it_was_in_its_message():
    assert Problem("bad", "a.b", "e.yaml", "a.c").at("c") == Problem(
        "e.yaml: a.b: bad", "c", nearest="a.c"
    )
    assert Problem("bad").at("c") == Problem("bad", "c")


def test_a_problem_is_one_line_whatever_it_quotes():
    line = str(Problem("a\nb" * 10_000, "k\x1b[0m" * 10_000, "f\n" * 10_000, "n\n" * 10_000))
    assert line.isprintable()
    assert len(line) < 3000


def test_a_long_file_name_does_not_hide_what_is_wrong_with_it():
    assert str(Problem(f"{'x' * 500}: no such file")).endswith(": no such file")


def test_an_error_has_its_problems_and_writes_each_on_a_line():
    error = ConfigError(Problem("bad", "a.b"), "worse")
    assert error.problems == [Problem("bad", "a.b"), Problem("worse")]
    assert str(error) == "a.b: bad\nworse"


def test_an_error_keeps_its_problems_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError(Problem("bad", "a.b", "e.yaml", "a.c"))))
    assert error.problems == [Problem("bad", "a.b", "e.yaml", "a.c")]


def test_a_message_has_room_for_a_path_and_what_is_wrong():
    assert str(Problem("x " * 499)) == "x " * 499
    assert str(Problem("x " * 1000)) == "x " * 498 + "x..."
    assert str(Problem("m", "k/" * 300, "s/" * 300)) == f"{'s/' * 248}s...: {'k/' * 248}k...: m"


def test_of_a_number_with_thousands_of_digits_the_first_are_shown_and_of_a_path_all():
    digits, path = "9" * 5000, "/".join(["a" * 200, "b" * 255, "c"])
    shown = str(Problem(f"no such key: {digits} of {path}", digits))
    assert shown == f"{'9' * 57}...: no such key: {'9' * 57}... of {path}"


def test_a_secret_is_no_secret_in_parts():
    shown = str(Problem(f"http://user:{'x' * 300}@host/ token={'y' * 300}"))
    assert shown == "http://***@host/ token=***"


def test_a_problem_of_another_key_names_the_one_that_is_wrong():
    problem = Problem("bad", "a.b", "e.yaml", "a.c").at("x")
    assert problem == Problem("e.yaml: a.b: bad", "x", "", "a.c")
    assert str(problem) == "x: e.yaml: a.b: bad; did you mean a.c?"
