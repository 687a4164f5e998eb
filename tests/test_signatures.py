"""The shapes and dtypes in the algebra's signatures, checked at run time by jaxtyping and beartype on real calls.

In a process of its own, because the checks make every call of the algebra about ten times slower.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = [
    "test_schedule.py", "test_prediction.py", "test_denoiser.py", "test_noise.py", "test_objective.py",
    "test_transition.py", "test_minima.py", "test_bound.py", "test_learned_schedule.py", "test_exact.py",
    "guidance", "conditioning", "networks", "editing", "likelihood",
]  # fmt: skip


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "-x", "--tb=short", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {**os.environ, "UNDIFFUSE_CHECK_SIGNATURES": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, env=environment, check=False)


@pytest.mark.slow
def test_what_is_passed_around_is_what_the_signatures_say():
    result = run(*(TESTS / name for name in FILES))
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
def test_every_sampler_keeps_to_its_signatures():
    result = run(TESTS / "samplers" / "test_contract.py", "-k", "bf16 or grids_of_their_own")
    assert result.returncode == 0, result.stdout[-3000:]


def test_a_wrong_shape_is_caught():
    code = """
import conftest, pytest, torch
from undiffuse.samplers import named
from undiffuse.schedule import Cosine
with pytest.raises(Exception, match="Float64"):
    named("ddim").rows(Cosine(), torch.zeros(3, dtype=torch.float32))
"""
    environment = {**os.environ, "UNDIFFUSE_CHECK_SIGNATURES": "1", "PYTHONPATH": str(TESTS)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
