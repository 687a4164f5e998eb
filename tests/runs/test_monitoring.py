"""Metrics on the way: the same numbers as measured by hand, through features that a resumed run keeps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tiny import TINY, tiny, train
from undiffuse import InputError, load, metrics
from undiffuse.classifying import ClassifierRecipe
from undiffuse.evaluation import as_tensor
from undiffuse.examples import centred, conditions_in_turn
from undiffuse.metrics import Classifier
from undiffuse.training import read_metrics
from undiffuse.weights import description

MEASURED = (
    "training.metrics=[frechet-distance, recall, label-agreement]",
    "training.metrics_every=4",
    "training.metrics_samples=30",
    "training.best=frechet-distance",
    "training.learning_rate=0.01",
    "sampling.steps=4",
)


def lines(folder: Path) -> dict[int, dict]:
    """What was measured by step, but for the time that it took."""
    found = [line for line in read_metrics(folder) if "metrics_samples" in line]
    assert all(line.pop("metrics_seconds") > 0 for line in found)
    return {line["step"]: line for line in found}


@pytest.fixture(scope="module", autouse=True)
def _quick(request):
    """A classifier of one pass over the data: what it is worth is not what is tested here."""
    patch = pytest.MonkeyPatch()
    patch.setattr("undiffuse.metrics.classifier.FEWEST_STEPS", 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "whole"
    train(tiny(folder, *MEASURED))
    return folder


def test_the_log_holds_what_is_measured_by_hand(whole: Path) -> None:
    found = lines(whole)
    assert list(found) == [4, 8, 12]
    assert set(found[12]) >= {"frechet-distance", "frechet-distance-error", "recall", "label-agreement"}
    assert "precision" not in found[12] and found[12]["metrics_samples"] == 30
    model, split = load(whole), tiny(whole, *MEASURED).split
    classifier = Classifier.load(whole / "features.safetensors")
    condition = conditions_in_turn(model, split, 30)
    pictures = as_tensor(model.sample(30, seed=0, **condition))
    real = centred(split.held_out, model.shape, slice(None))
    ours, theirs = classifier.features(pictures), classifier.features(real)
    assert found[12]["frechet-distance"] == pytest.approx(metrics.frechet_distance(ours, theirs), rel=1e-4)
    assert found[12]["recall"] == pytest.approx(metrics.precision_recall(theirs, ours)["recall"], rel=1e-4)
    right = float((classifier.predict(pictures) == condition["label"]).double().mean())
    assert found[12]["label-agreement"] == pytest.approx(right, rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_measures_the_same_and_keeps_the_same_best(whole: Path, tmp_path: Path) -> None:
    died = tmp_path / "died"
    for event in tiny(died, *MEASURED).train(preview=False):
        if event.step == 10:
            break  # its checkpoint is of step 6, its best may be of step 8
    train(tiny(died, *MEASURED))
    assert lines(died) == lines(whole)
    for name in ("model.safetensors", "best.safetensors", "features.safetensors"):
        ours, theirs = ((folder / name) for folder in (died, whole))
        if name == "model.safetensors":  # which says the seconds, too
            ours, theirs = (
                torch.cat([v.flatten() for v in load(f.parent).denoiser.parameters()]) for f in (ours, theirs)
            )
            assert torch.equal(ours, theirs)
        else:
            assert ours.read_bytes() == theirs.read_bytes()
    values = {step: line["frechet-distance"] for step, line in lines(whole).items()}
    about = description(whole / "best.safetensors")
    assert about == {
        "step": min(values, key=values.__getitem__),
        "metric": "frechet-distance",
        "value": min(values.values()),
        "metrics_samples": 30,
    }


@pytest.mark.slow
def test_without_classes_pixels_are_looked_at_and_training_samples_where_a_metric_asks(call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*TINY, "condition=none", "training.steps=4", "sampling.steps=3", f"run={folder}", "--json"]
    settings += ["training.metrics=kid, memorisation", "training.metrics_samples=20", "training.best=kid"]
    code, out, err = call("train", "digits", *settings)
    assert code == 0, err
    assert set(lines(folder)[4]) >= {"kid", "kid-error", "memorisation-ratio", "suspicious-share"}
    assert not (folder / "features.safetensors").exists()
    assert json.loads(out)["best"]["step"] == 4 and "best kid" in err
    assert call("sample", folder, "--step", "best", "--n", 1, "--steps", 1, "--out", tmp_path / "x.png")[0] == 0


def test_a_damaged_classifier_is_found_before_any_work(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "features.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"features\.safetensors"):
        tiny(folder, *MEASURED)


def test_measuring_changes_no_bit_of_the_training_and_takes_no_time_of_it(whole: Path, tmp_path: Path, call) -> None:
    train(tiny(tmp_path / "plain", "training.learning_rate=0.01", "sampling.steps=4"))
    ours, theirs = (load(folder).denoiser.state_dict() for folder in (tmp_path / "plain", whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    _, out, _ = call("info", whole)
    assert "frechet-distance" in next(line for line in out.splitlines() if line.split()[:1] == ["best"])


def test_a_budget_in_minutes_is_one_of_training(tmp_path: Path, monkeypatch) -> None:
    """By a clock that a step moves by 0.2 s: metrics of a minute each leave steps, pace and seconds as they are."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("undiffuse.training.clock.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    experiment = tiny(tmp_path / "run", "training.minutes=0.05", "training.warmup=2", steps=None)
    samples, conditions, seeds = next(iter(experiment.held_out()))
    measured: list[int] = []

    def batch(step: int):
        clock.seconds += 0.2
        return samples[:16], {name: values[:16] for name, values in conditions.items()}, seeds[:16]

    def measure(step: int) -> dict[str, float]:
        clock.seconds += 60
        measured.append(step)
        return {"slow": 1.0, "metrics_samples": 2}

    run = experiment.run
    run.plan = replace(run.plan, metrics_every=4)
    events = list(run.train(batch, lambda: iter([batch(0)]), measure=measure))
    assert run.state.total == 14 and measured == [4, 8, 12, 14]  # 0.95 * 3 s at 0.2 s a step
    assert round(events[0].images_per_second) == 16 / 0.2 and run.state.seconds < 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.metrics=[frechet-distanze]"], "did you mean 'frechet-distance'"),
        (["training.metrics=[fid]"], "Inception-v3"),
        (["training.metrics=[recall]", "training.metrics_samples=2"], "of 2 samples"),
        (["training.metrics=[diversity]", "training.metrics_samples=10"], "a class with 2 samples and 2 real ones"),
        (["training.metrics=[label-agreement]", "condition=none"], "a classifier of the labels"),
        (["training.metrics=[recall]", "training.best=precision"], "measured are recall"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path: Path, overrides, words) -> None:
    with pytest.raises(InputError, match=words):
        tiny(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_one_sample_more_than_classes_has_a_diversity(tmp_path: Path) -> None:
    experiment = tiny(tmp_path / "run", "training.metrics=[diversity]", "training.metrics_samples=11")
    assert experiment.monitor is not None and experiment.monitor.numbers == ["diversity", "real-diversity"]


def test_a_classifier_has_no_metrics_of_samples() -> None:
    with pytest.raises(InputError, match="this is a classifier"):
        ClassifierRecipe().changed(["training.metrics=[frechet-distance]"])
