"""The validation loss of each noise level, and the alarm where it rises while the training loss falls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tiny import tiny, train
from undiffuse import InputError
from undiffuse.data import digits
from undiffuse.exact import Gaussian
from undiffuse.schedule import Cosine
from undiffuse.training import loss_by_level, read_metrics
from undiffuse.training.levels import alarm

VARIANCE = 0.3


def gaussian(schedule):
    return Gaussian(schedule, torch.zeros(40).double(), torch.full((40,), VARIANCE).double())


def batches(data, count, size):
    x0 = data.draw(count, torch.Generator().manual_seed(0))
    return [(x0[i : i + size], {}, torch.arange(i, min(i + size, count))) for i in range(0, count, size)]


def test_of_gaussian_data_it_is_what_the_noise_leaves_open(any_schedule):
    """E |noise_hat - noise|^2 / D = 1 - sigma^2 / (alpha^2 var + sigma^2) = snr var / (1 + snr var)."""
    data = gaussian(any_schedule)
    rows = loss_by_level(data, batches(data, 400, 100), levels=4)
    snr = torch.tensor([row["log_snr"] for row in rows]).double().exp()
    expected = snr * VARIANCE / (1 + snr * VARIANCE)
    assert_close(torch.tensor([row["loss"] for row in rows]).double(), expected, rtol=0.1, atol=1e-12)
    assert [row["n"] for row in rows] == [100] * 4
    assert all(0 < row["standard_error"] < 0.1 * row["loss"] for row in rows)
    assert bool((snr.diff() > 0).all())


def test_it_is_the_same_at_every_call_and_whatever_the_batches():
    """30 samples are no multiple of 8 levels."""
    data = gaussian(Cosine())
    first, second, third = (loss_by_level(data, batches(data, 90, size)) for size in (90, 90, 30))
    assert first == second
    assert_close([row["loss"] for row in third], [row["loss"] for row in first], rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="1 level or more, not 0"):
        loss_by_level(data, batches(data, 9, 9), 0)


def log(course, losses=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5), before=(1.4, 1.3, 1.2, 1.1)):
    """A log with a validation after each training loss: one level follows `course`, the other falls."""
    lines = []
    for i, (value, loss) in enumerate(zip((*before, *course), (*before, *losses), strict=False)):
        lines.append({"step": 10 * i + 5, "loss": loss})
        rows = [{"log_snr": -3.0, "loss": value}, {"log_snr": 3.0, "loss": 1.0 / (i + 1)}]
        lines.append({"step": 10 * i + 10, "validation_loss": 1.0, "validation_levels": rows})
    return lines


def test_it_alarms_where_one_level_rises_and_training_falls():
    found = alarm(log([1.0, 0.9, 0.95, 1.0, 1.1]))
    assert found is not None and "log-SNR -3 (1.22 times its lowest)" in found and "step 90" in found


@pytest.mark.parametrize(
    "lines",
    [
        log([1.0, 0.9, 0.95, 1.0]),  # not often enough
        log([1.0, 0.9, 0.95, 1.0, 1.1], before=(1.1,)),  # too young
        log([1.0, 0.9, 0.95, 0.94, 1.1]),  # not in a row
        log([1.0, 0.9, 0.901, 0.902, 0.903]),  # not enough
        log([1.0, 0.9, 0.8, 0.7, 0.6]),
        log([1.0, 0.9, 0.95, 1.0, 1.1], losses=(1.0, 0.9, 0.9, 0.9, 0.95)),  # training diverges too
        [*log([1.0, 0.9, 0.95, 1.0, 1.1]), {"step": 90, "alarm": "said"}],
        [line for line in log([1.0, 0.9, 0.95, 1.0, 1.1]) if "loss" not in line],
        [],
    ],
)
def test_else_it_does_not(lines):
    assert alarm(lines) is None


def test_a_run_logs_its_levels_and_the_classifier_has_none(tmp_path: Path):
    train(tiny(tmp_path / "run"))
    lines = [line for line in read_metrics(tmp_path / "run") if "validation_loss" in line]
    assert [line["step"] for line in lines] == [10, 12]
    for line in lines:
        assert [set(row) for row in line["validation_levels"]] == [{"log_snr", "loss", "standard_error", "n"}] * 8
    assert json.dumps(lines[0], allow_nan=False)


@pytest.mark.slow
def test_a_run_that_learns_its_samples_by_heart_is_told_once_and_resumes_to_the_same_log(tmp_path: Path):
    """Twenty digits."""
    held, n = digits.load().held_out, 220
    marks = np.arange(n) >= 20
    np.savez(tmp_path / "few.npz", images=held.samples[:n, 0].numpy(), label=held.label[:n].numpy(), split=marks)
    few = ["data.source=arrays", f"data.path={tmp_path / 'few.npz'}", "training.validate_every=12"]
    few += ["network.dropout=0.0", "training.learning_rate=0.003"]
    with pytest.warns(UserWarning, match="rises at log-SNR"):
        train(tiny(tmp_path / "whole", *few, steps=150))
    said = [line for line in read_metrics(tmp_path / "whole") if "alarm" in line]
    assert len(said) == 1 and said[0]["step"] < 150
    train(tiny(tmp_path / "halves", *few, steps=150), until=65)
    with pytest.warns(UserWarning, match="rises at log-SNR"):
        train(tiny(tmp_path / "halves", *few, steps=150))
    logs = [
        [line for line in read_metrics(tmp_path / name) if "validation_levels" in line or "alarm" in line]
        for name in ("whole", "halves")
    ]
    assert logs[0] == logs[1]
