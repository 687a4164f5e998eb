"""Recipes: printed whole, read back the same, changed by strict names."""

from pathlib import Path

import pytest

from undiffuse import InputError, config, recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_survives_its_own_printing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml(config.plain(recipes.named(name))))
    assert config.plain(recipes.named(str(path))) == config.plain(recipes.named(name))


def test_overrides_reach_every_depth() -> None:
    changed = recipes.named("digits").changed(
        ["training.steps=7", "schedule=flow", "prediction.name=flow", "network.width=32"]
    )
    assert changed.training.steps == 7
    assert changed.training.minutes is None
    assert config.plain(changed)["schedule"] == {"name": "flow"}
    assert config.plain(changed)["network"]["width"] == 32
    assert config.plain(recipes.named("digits"))["network"]["width"] != 32
    sectioned = recipes.named("digits").changed(["objective.weight={name: min-snr, gamma: 3}", "image.size=[8, 8]"])
    assert config.plain(sectioned)["objective"]["weight"] == {"name": "min-snr", "gamma": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.steps=3", "did you mean 'training'"),
        ("training.step=3", "did you mean 'training.steps'"),
        ("training.steps", "form key=value"),
        ("training.steps=many", "training.steps='many'"),
        ("training.steps=-1", "training.steps=-1: input should be greater than or equal to 1"),
        ("training.steps.more=3", "holds a value, not a section"),
        ("network=unet2", "unknown network 'unet2': did you mean 'unet'"),
        ("schedule=cosin", "did you mean 'cosine'"),
        ("prediction=w", "unknown prediction 'w'"),
        ("objective.weight=minsnr", "did you mean 'min-snr'"),
        ("sampling.sampler=dpmm", "did you mean"),
        ("sampling.grid=karass", "did you mean 'karras'"),
        ("condition=lable", "did you mean 'label'"),
        ("data.source=foldr", "did you mean 'folder'"),
        ("image.crop=middle", "image.crop='middle'"),
        ("objective.drop=2", "objective.drop=2"),
        ("training.learning_rate=.nan", "training.learning_rate=nan"),
        ("image.size=[", "cannot be read"),
    ],
)
def test_what_is_not_allowed_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipes.named("digits").changed([override])
    assert "\n" not in str(caught.value)


def test_one_bound_replaces_the_other_and_both_are_refused() -> None:
    back = recipes.named("digits").changed(["training.steps=7"]).changed(["training.minutes=2"])
    assert (back.training.steps, back.training.minutes) == (None, 2)
    with pytest.raises(InputError, match="not both"):
        recipes.named("digits").changed(["training.steps=7", "training.minutes=2"])


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        recipes.named("mnst")
    with pytest.raises(InputError, match="cannot be read"):
        recipes.named("nowhere.yaml")


def test_a_name_comes_before_its_arguments_wherever_it_stands():
    recipe = recipes.named("mnist").changed(["network.width=16", "network=dit", "network.heads=2"])
    assert recipe.network.model_dump() == {"name": "dit", "width": 16, "heads": 2}
    assert recipes.named("mnist").changed(["network.name=dit"]).network.model_dump() == {"name": "dit"}


def test_conditions_are_named_in_any_way():
    for overrides in (
        ["condition={low: {name: image, factor: 2}, digit: label}"],
        ["condition=none", "condition.digit=label", "condition.low={name: image, factor: 2}"],
        ["condition.low=image", "condition.low.factor=2", "condition={digit: label}"],
        ["condition={digit: label}", "condition.low=image", "condition.low.factor=2"],
    ):
        found = recipes.named("mnist").changed(overrides).model_dump()["condition"]
        assert found == {"digit": {"name": "label"}, "low": {"name": "image", "factor": 2}}
    assert recipes.named("mnist").changed(["condition=label", "condition.label.optional=false"]).model_dump()[
        "condition"
    ] == {"label": {"name": "label", "optional": False}}


def test_a_name_comes_before_its_arguments_however_deep_and_in_whatever_order() -> None:
    changes = ["objective.weight.gamma=2", "objective.weight=min-snr", "schedule.shift=1.0", "schedule.name=flow"]
    for order in (changes, changes[::-1]):
        made = recipes.named("digits").changed(order)
        assert made.objective.weight.model_dump() == {"name": "min-snr", "gamma": 2}
        assert made.schedule.model_dump() == {"name": "flow", "shift": 1.0}


def test_another_objective_drops_the_arguments_of_the_old_one() -> None:
    made = recipes.named("mnist").changed(["objective=variational", "objective.times=importance"])
    assert made.objective.name == "variational" and made.objective.weight.name == "simple"
    assert made.objective.times.name == "importance"
