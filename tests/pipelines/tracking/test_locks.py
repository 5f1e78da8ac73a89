import os

import pytest

from pipelines.console.errors import PipelineError
from pipelines.tracking.locks import exclusive_lock


def test_one_process_at_a_time_does_the_same_work(store):
    with (
        exclusive_lock("a"),
        exclusive_lock("b"),
        pytest.raises(PipelineError, match=f"a: already running .process {os.getpid()}: .*; wait"),
        exclusive_lock("a"),
    ):
        pass
    with exclusive_lock("a"):
        pass
