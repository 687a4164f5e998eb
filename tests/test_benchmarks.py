"""A small race and a short measurement of overhead, so that the benchmarks are known to run."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_small_race_is_won_where_the_full_one_is(tmp_path):
    out = tmp_path / "race.json"
    printed = run("sampler_race.py", "--problems", "ring", "--schedules", "linear", "--counts", "8", "--out", out)
    assert len(re.findall(r"^ring linear", printed, re.M)) == 1
    for row in json.loads(out.read_text())["rows"]:
        assert row["ours"] <= 1 and row["best fit"] <= 0.5 and row["fitted"] <= 0.7


def test_the_overhead_is_measured(tmp_path):
    out = tmp_path / "overhead.json"
    run("sampler_overhead.py", "--repeats", 2, "--out", out)
    rows = json.loads(out.read_text())
    assert all(row["ratio"] > 0 for row in rows if "ratio" in row) and any(row["sampler"] == "noise" for row in rows)


def test_the_decoding_of_a_folder_is_measured(tmp_path):
    out = tmp_path / "data.json"
    small = ["--pictures", 20, "--width", 200, "--height", 100, "--sizes", 16, "--workers", "0,1"]
    run("data.py", *small, "--batch", 4, "--batches", 1, "--repeats", 1, "--out", out)
    found = json.loads(out.read_text())
    assert [row["workers"] for row in found["images_per_second"]] == [0, 1]
    assert all(row[side] > 0 for row in found["images_per_second"] for side in ("ours", "ours, whole", "by hand"))
    assert found["fractions"][0]["rms"] == 0 and found["about"]["torch"]


def test_the_gpu_benchmark_runs_anywhere_at_toy_sizes():
    printed = run("gpu.py", "--smoke", "--no-save")
    rows = re.findall(
        r"^\| (dit-b/2|adm-64) \| (training|sampling) \| (ours|diffusers) \| (yes|no) \| [\d,.]+ \|", printed, re.M
    )
    assert len(set(rows)) == len(rows) == 16
    cosines = re.findall(r"cosine of gradients': ([\d.]+)", printed)
    assert len(cosines) == 4 and all(float(cosine) > 0.999 for cosine in cosines)
    apart = re.findall(r"'samples apart': {'compiled': ([\d.e-]+), 'float32': ([\d.e-]+)}", printed)
    assert len(apart) == 2  # compiled calls round otherwise: about as much as bf16 does
    assert all(float(compiled) <= max(3 * float(wide), 1e-3) for compiled, wide in apart)


def test_our_gradients_are_those_of_diffusers():
    assert "bfloat16 cosine" in run("training_step.py", "--check")  # it stops where they are not


def test_sampling_is_measured_and_agrees_with_diffusers():
    printed = run("sampling.py", "--batch", 2, "--steps", 10, "--rounds", 1, "--no-save")
    assert len(re.findall(r"^\| (?:DDIM|DPMSolverMultistep)Scheduler \| 2 \| ours", printed, re.M)) >= 2


def test_the_time_of_a_step_is_divided():
    printed = run("profile_step.py", "--batch", 2, "--steps", 1)
    shares = [float(share) for share in re.findall(r"\| ([\d.]+) % \|$", printed, re.M)]
    assert 198 < sum(shares) < 202  # of two models


@pytest.mark.skipif(find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
def test_the_metrics_are_timed_beside_torchmetrics():
    printed = run("metrics.py", "--n", 200, "--features", 32, "--rounds", 1, "--no-save")
    values = re.findall(r"^\| (?:ours|torchmetrics) \| [\d.]+ \| ([\d.]+) \|", printed, re.M)
    assert len(values) == 2 and float(values[0]) == pytest.approx(float(values[1]), rel=1e-4)
    assert re.search(r"^ratio [\d.]+", printed, re.M)
