"""The evaluation and the report of a small run: every picture there, every number with its sample size."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import undiffuse
from undiffuse import evaluation, metrics, report
from undiffuse.data.dataset import turns
from undiffuse.errors import InputError
from undiffuse.examples import balanced
from undiffuse.experiment import load_experiment_data

JUDGE = evaluation.Judge
JUDGES: list[evaluation.Judge] = []


def remembered(*arguments: Any) -> evaluation.Judge:
    """The judge of an evaluation, kept: to train another takes seconds."""
    JUDGES.append(JUDGE(*arguments))
    return JUDGES[-1]


@pytest.fixture(scope="module")
def result(run: Path) -> evaluation.Evaluation:
    patch = pytest.MonkeyPatch()
    patch.setattr(base, "FULL_STEPS", 12)
    patch.setattr(evaluation, "SWEEP", tuple((name, sampler, grid, (2, 3)) for name, sampler, grid, _ in curves.SWEEP))
    patch.setattr(base, "Judge", remembered)
    patch.setattr(curves, "CURVE", (1.0, 3.0))
    patch.setattr(curves, "CURVE_FEWEST", 20)
    made = evaluation.evaluate(run, n=40, sweep_n=20)
    patch.undo()
    return made


def test_every_number_has_its_sample_size(result: evaluation.Evaluation) -> None:
    numbers = result.numbers
    assert numbers["samples"]["n"] == 40
    assert numbers["frechet_distance"]["n"] == 40
    assert numbers["frechet_distance"]["held_out_n"] == 359
    assert numbers["label_agreement"]["n"] == 40
    assert numbers["sweep"]["n"] == 20
    assert {row["evaluations"] for row in numbers["sweep"]["rows"]} == {2, 3}
    assert numbers["trained"]["train_samples"] + numbers["trained"]["held_out_samples"] == 1797
    assert "trained on 1,438 real training images" in numbers["measured_through"]


def test_the_report_is_one_file_with_its_pictures_inside(run: Path, result: evaluation.Evaluation) -> None:
    path = report.write(run, result)
    page = path.read_text()
    assert json.loads((run / "evaluation.json").read_text()) == json.loads(json.dumps(result.numbers))
    assert page.count("data:image/png;base64,") == len(result.pictures) == 11
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "This is not FID" in page and "20 samples a row, seeds 0-19, by dpm++ in 20 steps" in page


@pytest.mark.slow
def test_an_early_deadline_shrinks_the_sweep(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "FULL_STEPS", 2)
    monkeypatch.setattr(curves, "SWEEP", curves.SWEEP[:1])
    made = evaluation.evaluate(run, n=10, sweep_n=70, deadline=0.0)
    assert made.numbers["sweep"]["n"] == 50
    assert made.numbers["guidance"]["rows"] == [] and "guidance_curve" not in made.pictures
    assert "Not measured: it takes 100 samples a scale" in report.to_html(made)


def test_the_guidance_curve_is_measured_on_the_same_seeds_and_classes(run: Path, result: evaluation.Evaluation) -> None:
    curve = result.numbers["guidance"]
    assert curve["n"] == 20 and [row["scale"] for row in curve["rows"]] == [1.0, 3.0]
    model, split, judge = undiffuse.load(run), load_experiment_data(run)[1], JUDGES[0]
    labels = torch.arange(20) % 10
    images = evaluation.channels_first(model.sample(20, seed=0, label=labels, guidance=3.0))
    assert judge.classifier is not None
    held_out = judge.features(judge.held_out[balanced(split.held_out, 20)])
    found, row = metrics.precision_recall(held_out, judge.features(images)), curve["rows"][1]
    assert row["accuracy"] == pytest.approx(float((judge.classifier.predict(images) == labels).float().mean()))
    assert (row["precision"], row["recall"]) == (pytest.approx(found["precision"]), pytest.approx(found["recall"]))
    assert row["frechet_distance"] == pytest.approx(judge.distance(images), abs=1e-3)
    real = metrics.precision_recall(held_out, judge.features(judge.shuffled_train[:20]))
    assert curve["training"]["recall"] == pytest.approx(real["recall"])


def test_one_sample_is_too_few(run: Path) -> None:
    with pytest.raises(InputError, match="at least 2 samples, not 1"):
        evaluation.evaluate(run, n=1)


def test_real_images_are_drawn_with_classes_in_turn() -> None:
    """Each draw of real images has every class equally often, as the samples it is compared with."""
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 1, 2, 1, 2, 1, 2])
    order = torch.argsort(turns(labels), stable=True)
    for draw in labels[order].split(3):
        assert sorted(draw.tolist()) == [0, 1, 2]
