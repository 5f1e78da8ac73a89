"""Runs the tests of the Triton kernels, each file in a process: Triton chooses once, when it is
imported, between compiling and interpreting."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]


def failures(file: str, environment: dict[str, str], cases: str) -> str:
    """What a file of tests prints if it fails, in a process of its own; nothing if it passes."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", file]
    command += ["-m", cases]
    done = subprocess.run(
        command,
        cwd=FOLDER.parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr if done.returncode else ""


EXHAUSTIVE = pytest.mark.parametrize(
    "cases", ["not faults", pytest.param("faults", marks=pytest.mark.faults)]
)
"""Cases that stand for all, and all others."""


@EXHAUSTIVE
def test_kernels_compute_the_equations(cases):
    """On a GPU if there is one, else in Triton's interpreter."""
    environment = {"TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    assert not failures(str(FOLDER / "mix_triton_cases.py"), environment, cases)


@pytest.mark.extended
@EXHAUSTIVE
def test_kernels_compile_once_per_stack_size(tmp_path, cases):
    """For a GPU that need not be there."""
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    assert not failures(str(FOLDER / "mix_triton_compiles.py"), environment, cases)
