import pytest

from pipelines.console.errors import DamagedError
from pipelines.search.results import read_numbers, write_numbers


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([0], "0"),
        ([3, 1, 2], "1-3"),
        ([0, 1, 3], "0-1,3"),
        ([5, 7, 9, 10, 11, 20], "5,7,9-11,20"),
    ],
)
def test_numbers_are_written_as_ranges_and_read_back(numbers, text):
    assert write_numbers(numbers) == text
    assert read_numbers(text) == set(numbers)


@pytest.mark.parametrize("text", ["0-x", "a", "1-2-3"])
def test_numbers_that_were_edited_are_named(text):
    with pytest.raises(
        DamagedError, match=f"result of a search was edited: trials {text}; --fresh"
    ):
        read_numbers(text)
