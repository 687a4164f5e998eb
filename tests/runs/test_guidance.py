"""Guidance as users ask for it: options of `sample`, and functions in `Pipeline.sample`."""

from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from tiny import tiny, train
from undiffuse import InputError
from undiffuse.guidance import (
    Autoguidance,
    ClassifierFree,
    Composed,
    DynamicThreshold,
    Interval,
    Masked,
    Misfit,
    Posterior,
    Rescaled,
    Steered,
)


def picture(call, run: Path, out: Path, *options: object) -> np.ndarray:
    code, _, err = call(
        "sample", run, "--n", 4, "--label", "3", "--steps", 6, "--guidance", 3, "--out", out, "--overwrite", *options
    )
    assert code == 0, err
    with np.load(out) as file:
        return file["images"]


def test_options_are_the_guidance_that_python_has(call, run: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out.npz", ud.load(run)
    ways = {
        (): lambda d: ClassifierFree(d, 3.0),
        ("--sequential",): lambda d: ClassifierFree(d, 3.0),
        ("--negative", "label=5"): lambda d: ClassifierFree(d, 3.0, negative={"label": 5}),
        ("--interval", "-2,5", "--rescale", 0.7): lambda d: Interval(Rescaled(ClassifierFree(d, 3.0), 0.7), -2, 5),
        ("--threshold", "dynamic:0.9"): lambda d: DynamicThreshold(ClassifierFree(d, 3.0), 0.9),
    }
    made = {}
    for options, way in ways.items():
        made[options] = picture(call, run, out, *options)
        expected = model.sample(4, label=3, steps=6, guidance=way)
        assert np.abs(made[options].astype(int) - expected).max() <= 1
    plain = made.pop(()).astype(int)
    assert np.abs(made.pop(("--sequential",)) - plain).max() <= 1
    assert all(np.abs(other - plain).max() > 1 for other in made.values())


def test_an_early_snapshot_guides(call, refused, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.npz"
    train(tiny(run, "training.snapshot_every=4"))
    early, model = ud.load(run, step=4), ud.load(run)
    found = picture(call, run, out, "--weak", f"{run}@4")
    expected = model.sample(4, label=3, steps=6, guidance=lambda d: Autoguidance(d, early.denoiser, 3.0))
    assert np.array_equal(found, expected)
    assert np.array_equal(found, picture(call, run, out, "--weak", "@4"))
    assert not np.array_equal(found, picture(call, run, out, "--weak", run))
    refused(
        call("sample", run, "--label", 3, "--weak", f"{run}@5", "--out", out, "--overwrite"), "no snapshot of step 5"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weak", "@4", "--guidance", 1], ["--guidance 1 not at all"]),
        (["--weak", "@4", "--guidance", 2, "--sequential"], ["leave --sequential out"]),
        (["--negative", "1", "--guidance", 2], ["--negative has the form NAME=VALUE"]),
        (["--interval", "-2", "--guidance", 2], ["--interval takes two", "'-2'"]),
        (["--interval", "5,-2", "--guidance", 2], ["low < high"]),
        (["--interval", "-2,5", "--guidance", 1], ["there is none", "--guidance above 1"]),
        (["--rescale", 1.5, "--guidance", 2], ["between 0 and 1"]),
        (["--threshold", "hard"], ["static, dynamic"]),
        (["--negative", "lable=3", "--guidance", 2], ["did you mean 'label'"]),
        (["--negative", "label=3", "--guidance", 1], ["--guidance above 1"]),
        (["--weak", "nowhere", "--guidance", 2], ["nowhere is not a run folder"]),
    ],
)
def test_what_cannot_guide_is_refused_in_one_line(call, refused, run: Path, tmp_path: Path, options, words) -> None:
    refused(call("sample", run, "--n", 2, "--label", 1, "--out", tmp_path / "x.npz", *options), *words)
    assert not (tmp_path / "x.npz").exists()


def test_scales_per_sample_are_the_samples_own_in_any_batch(run: Path) -> None:
    model, scales = ud.load(run), torch.tensor([0.0, 1.0, 3.0])
    each = model.sample(3, label=[1, 2, 3], steps=4, guidance=lambda d: ClassifierFree(d, scales), batch_size=2)
    for i, scale in enumerate(scales.tolist()):
        alone = model.sample(1, seed=i, label=i + 1, steps=4, guidance=scale if scale != 1 else 1.0)
        assert np.abs(each[i].astype(int) - alone[0]).max() <= 1


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (lambda d: ClassifierFree(d, torch.ones(3)), "holds 3 values of weights for 8 samples"),
        (lambda d: ClassifierFree(d, torch.ones(16)), "holds 16 values of weights for 8 samples"),
        (lambda d: Steered(d, Misfit(lambda x: x, torch.zeros(3, 1, 8, 8)), 1.0), "holds 3 values of distance for 8"),
        (
            lambda d: Posterior(d, Masked(torch.ones(3, 1, 8, 8)), torch.zeros(1, 1, 8, 8)),
            "holds 3 values of measure for 8",
        ),
        (lambda d: ClassifierFree(d, 2.0, negative={"label": [1, 2, 3]}), "holds 3 values of negative for 8"),
        (lambda d: Composed(d, [({"label": [1, 2, 3]}, 2.0)]), "holds 3 values of parts for 8"),
        (lambda d: None, "gives a denoiser, not None"),
        (torch.full((8,), 3.0), "go into one, lambda denoiser"),
        ("3", "a number or a function"),
    ],
)
def test_what_is_held_for_other_samples_is_refused(run: Path, guidance, message) -> None:
    given = {} if callable(guidance) and isinstance(guidance(ud.load(run).denoiser), Composed) else {"label": 1}
    with pytest.raises(InputError, match=message):
        ud.load(run).sample(8, steps=2, guidance=guidance, batch_size=4, **given)


def test_a_negative_or_a_part_for_each_sample_is_its_own_in_any_batch(run: Path) -> None:
    model, labels = ud.load(run), [1, 2, 3]
    ways = (
        ({"label": [4, 5, 6]}, lambda d: ClassifierFree(d, 2.0, negative={"label": labels})),
        ({}, lambda d: Composed(d, [({"label": labels}, 2.0), ({"label": 7}, 0.5)])),
    )
    for given, way in ways:
        whole, parts = (model.sample(3, steps=3, guidance=way, batch_size=size, **given) for size in (3, 2))
        assert np.array_equal(whole, parts)


def test_a_scale_without_a_condition_is_refused_beside_other_options(call, refused, run: Path, tmp_path: Path) -> None:
    options = ["sample", run, "--n", 2, "--out", tmp_path / "x.npz", "--guidance", 3]
    refused(call(*options, "--threshold", "static"), "--guidance 3 needs a condition")
    refused(call(*options), "needs a condition")


def test_a_weak_model_of_other_classes_is_refused(call, refused, run: Path, own_run: Path, tmp_path: Path) -> None:
    recipe = own_run / "recipe.yaml"
    text = recipe.read_text()
    assert "- '9'" in text
    recipe.write_text(text.replace("- '9'", "- nine"))
    options = ["sample", run, "--n", 2, "--label", 1, "--guidance", 3, "--out", tmp_path / "x.npz"]
    refused(call(*options, "--weak", own_run), "knows other classes of label", "nine")
