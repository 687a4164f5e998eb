"""A classifier beside a run: trained, resumed, refused where it cannot be, and what it does to samples."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import undiffuse as ud
from tiny import tiny, train
from undiffuse.classifying import FOLDER, ClassifierExperiment, ClassifierRecipe, load_classifier
from undiffuse.errors import InputError
from undiffuse.experiment import load_data
from undiffuse.guidance import Classifier, NoisyClassifier
from undiffuse.networks import Encoder
from undiffuse.noise import NoiseSource
from undiffuse.schedule import Cosine
from undiffuse.training import ClassifierObjective, checkpoints, read_metrics

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
SMALL = ["network.width=8", "training.batch_size=16", "training.warmup=4", "training.log_every=5"]
SMALL += ["training.checkpoint_every=6", "training.precision=float32"]


def classifier_of(run: Path, *overrides: str, steps: int = 12) -> ClassifierExperiment:
    recipe = ClassifierRecipe().changed([*SMALL, f"training.steps={steps}", *overrides])
    return ClassifierExperiment(run, recipe, torch.device("cpu"))


@pytest.fixture(scope="session")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional run of digits, saved at its start, and its classifier."""
    folder = tmp_path_factory.mktemp("classifier") / "free"
    tiny(folder, "condition=none", "sampling.guidance=1").run.save()
    list(classifier_of(folder).train())
    return folder


def test_the_command_trains_goes_on_and_says_how_right_it_is(call: Call, own_run: Path) -> None:
    command = ["train-classifier", own_run, *SMALL, "training.steps=8", "--json"]
    code, out, err = call(*command)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["steps"] == 8 and list(summary["accuracy"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    assert {"recipe.yaml", "model.safetensors", "metrics.jsonl"} <= {p.name for p in (own_run / FOLDER).iterdir()}
    code, out, err = call(*command)
    assert code == 0 and "trained already" in err
    assert json.loads(out)["accuracy"] == summary["accuracy"]
    assert sum("accuracy" in line for line in read_metrics(own_run / FOLDER)) == 1
    assert "held-out accuracy" in call(*command[:-1])[2]


def test_a_classifier_that_stops_and_goes_on_has_the_same_bits(free: Path, tmp_path: Path) -> None:
    shutil.copytree(free, tmp_path / "run", ignore=shutil.ignore_patterns(FOLDER))
    experiment = classifier_of(tmp_path / "run")
    for event in experiment.train():
        if event.step == 5:
            experiment.run.stop()
    again = classifier_of(tmp_path / "run")
    assert again.resumed and again.state.step == 5 and not again.finished
    list(again.train())
    ours, whole = (load_file(checkpoints(folder / FOLDER)[-1]) for folder in (tmp_path / "run", free))
    assert ours.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in ours.items())


def test_what_is_loaded_is_the_average_that_was_trained(free: Path) -> None:
    loaded, experiment = load_classifier(free, "cpu"), classifier_of(free)
    assert experiment.finished and loaded.classes == tuple("0123456789")
    assert loaded.schedule == ud.load(free).denoiser.schedule
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.log_prob(x, 0.4), experiment.state.average.log_prob(x, 0.4))
    assert torch.allclose(loaded.log_prob(x, 0.4).exp().sum(1), torch.ones(3))


def test_the_loss_is_the_cross_entropy_under_the_samples_own_noise() -> None:
    torch.manual_seed(0)
    encoder = Encoder(1, 3, width=8, multipliers=(1,))
    torch.nn.init.normal_(encoder.head.weight)
    classifier, objective = NoisyClassifier(encoder, Cosine(), "abc", data_std=0.5).eval(), ClassifierObjective("kind")
    x0, labels, seeds = torch.randn(4, 1, 4, 4), torch.tensor([0, 2, 1, 0]), torch.arange(4)
    draws = objective.draw(classifier, NoiseSource(seeds, x0.shape[1:]))
    assert (draws.t.diff() > 0).all()  # one in each stratum
    loss = objective(classifier, x0, {"kind": labels}, draws)
    for i, t in enumerate(draws.t.tolist()):
        alpha, sigma = float(Cosine().alpha(t)), float(Cosine().sigma(t))
        noise = NoiseSource([i], x0.shape[1:]).normal("noise")
        log_prob = classifier.log_prob(alpha * x0[i : i + 1] + sigma * noise, t)
        torch.testing.assert_close(loss[i], -log_prob[0, labels[i]], rtol=1e-4, atol=1e-5)


def test_samples_are_steered_from_the_command_line(call: Call, free: Path, run: Path, tmp_path: Path) -> None:
    common = ["sample", free, "--n", 4, "--steps", 3, "--classifier"]
    code, out, err = call(*common, 3, "--label", "7,2", "--out", tmp_path / "guided.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["classifier"] == 3
    with np.load(tmp_path / "guided.npz") as arrays:
        assert arrays["labels"].tolist() == [7, 7, 2, 2]
        guided = arrays["images"]
    model = ud.load(free)
    law = load_classifier(free)
    ours = model.sample(
        4, label=["7", "7", "2", "2"], steps=3, batch_size=3, guidance=lambda d: Classifier(d, law, 3.0)
    )
    assert np.array_equal(ours, guided)
    assert call(*common, 0, "--label", "7", "--out", tmp_path / "plain.npz")[0] == 0
    with np.load(tmp_path / "plain.npz") as arrays:
        assert np.array_equal(arrays["images"], model.sample(4, steps=3))


def test_a_conditional_run_may_have_both_guidances(call: Call, own_run: Path, tmp_path: Path) -> None:
    list(classifier_of(own_run, steps=2).train())
    out = tmp_path / "x.npz"
    code, _, err = call(
        "sample", own_run, "--n", 2, "--steps", 2, "--label", 7, "--guidance", 2, "--classifier", 1, "--out", out
    )
    assert code == 0, err
    with np.load(out) as arrays:
        assert arrays["labels"].tolist() == [7, 7]


def test_bad_input_ends_in_one_line(call: Call, refused: Refused, free: Path, run: Path, tmp_path: Path) -> None:
    refused(call("train-classifier", tmp_path / "nowhere"), "nowhere", "not a run folder")
    refused(call("train-classifier", free, "data.path=x"), "unknown key 'data'", "network, training")
    refused(call("train-classifier", free, "training.stepz=4"), "did you mean 'training.steps'")
    refused(call("train-classifier", free, "network.widht=4"), "did you mean 'width'")
    refused(call("train-classifier", free, "network=unet"), "unknown network 'unet'", "encoder")
    refused(call("train-classifier", free, *SMALL, "training.steps=13"), "another recipe", "training.steps is 12")
    refused(call("train-classifier", free, "network.multipliers=[1,1,1,1,1]"), "multiple of 16")
    out = ["--out", tmp_path / "x.png"]
    refused(call("sample", run, "--label", 3, "--classifier", 2, *out), "no classifier", "undiffuse train-classifier")
    refused(call("sample", free, "--classifier", 2, *out), "needs a class to guide to")
    refused(call("sample", free, "--classifier", 2, "--label", "cat", *out), "unknown class 'cat'")
    refused(call("sample", free, "--classifier", "nan", "--label", 3, *out), "finite")
    refused(call("sample", free, "--label", 3, *out), "no classes")
    assert not list(tmp_path.iterdir())


def test_data_without_classes_are_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "one.npz", images=images, label=np.zeros(40, np.int64))
    for name, words in (("bare", "needs data with classes.*no array 'label'"), ("one", "two classes or more")):
        arrays = ["data.source=arrays", f"data.path={tmp_path / name}.npz", "condition=none", "sampling.guidance=1"]
        tiny(tmp_path / name, *arrays)
        with pytest.raises(InputError, match=words):
            classifier_of(tmp_path / name)
        assert not (tmp_path / name / FOLDER).exists()


@pytest.mark.slow
def test_a_classifier_makes_an_unconditional_model_draw_the_digit_asked_for(tmp_path: Path) -> None:
    from undiffuse import metrics
    from undiffuse.metrics import classifier as judges

    folder = tmp_path / "run"
    wider = ["network.width=32", "training.batch_size=64", "condition=none", "sampling.guidance=1"]
    experiment = tiny(folder, *wider, steps=300)
    list(experiment.train(preview=False))
    list(classifier_of(folder, "network.width=32", "training.batch_size=128", steps=300).train())
    split = load_data(experiment.recipe.changed(["condition=label"]))
    judge = judges.train(split.train.samples, split.train.label, 10)
    model, law, labels = ud.load(folder), load_classifier(folder), torch.arange(100) // 10
    images = model.sample(100, label=labels, guidance=lambda denoiser: Classifier(denoiser, law, 4.0))
    share = metrics.label_agreement(judge, torch.from_numpy(images)[:, None], labels)["share"]
    assert share > 0.6, share  # chance is 0.1


def test_under_a_learned_schedule_the_classifier_stands_on_the_runs_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(run, "schedule=learned", "objective.weight=bound", "training.learning_rate=0.05"), until=5)
    list(classifier_of(run, steps=4).train())
    ours, theirs = load_classifier(run).schedule, ud.load(run).denoiser.schedule
    assert torch.equal(ours.heights, theirs.heights) and not torch.equal(ours.heights, torch.zeros_like(ours.heights))
    Classifier(ud.load(run).denoiser, load_classifier(run), 2.0)
