import pytest

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
