"""Conditions of every kind through the trainer and the command line, without code: recipes, data, previews, samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import undiffuse as ud
from tiny import TINY, train
from undiffuse import evaluation, recipes
from undiffuse.conditioning import CONDITIONS
from undiffuse.errors import InputError
from undiffuse.examples import balanced, centred, conditions_by_class, conditions_in_turn
from undiffuse.experiment import Experiment

N = 120
digits = load_digits()
IMAGES = (digits.images[:N] * 15.9).astype(np.uint8)
THICKNESS = IMAGES.mean((1, 2))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(
        path, images=IMAGES, digit=digits.target[:N], thickness=THICKNESS, round=IMAGES[:, ::2, ::2],
        tags=np.stack([digits.target[:N] % 2, digits.target[:N] > 4], 1), tags_classes=["odd", "large"],
        ink=IMAGES > 100, words=np.stack([digits.target[:N], digits.target[:N] // 2], 1),
        vectors=np.random.default_rng(0).normal(size=(N, 3, 5)),
    )  # fmt: skip
    return path


MIXED = (
    "condition={digit: label, thickness: vector, tags: labels, round: {name: image, factor: 2}, ink: mask, "
    "words: tokens}"
)
GIVEN = {
    "label": ("digit", "digit=3", {"digit": 3}),
    "labels": ("tags", "tags=odd+large", {"tags": ["odd", "large"]}),
    "vector": ("thickness", "thickness=60.5", {"thickness": 60.5}),
    "image": ("round", None, {"round": IMAGES[5, ::2, ::2]}),
    "encoded-image": ("round", None, {"round": IMAGES[5, ::2, ::2]}),
    "mask": ("ink", None, {"ink": IMAGES[5] > 100}),
    "tokens": ("words", "words=3,1", {"words": [3, 1]}),
    "embeddings": ("vectors", None, {"vectors": np.ones((3, 5), np.float32)}),
}


def experiment(folder: Path, data: Path, *overrides: str) -> Experiment:
    arrays = ["data.source=arrays", f"data.path={data}", "training.steps=6", "network.attention=[false, true]"]
    return Experiment(recipes.named("digits").changed([*TINY, *arrays, "sampling.steps=3", *overrides]), folder)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of six conditions at once, dropped together and each alone."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    train(experiment(folder, data, MIXED, "objective.drop_each={digit: 0.3, round: 0.2}"))
    return folder


@pytest.mark.parametrize("kind", [name for name, kind in CONDITIONS.items() if not kind.told])
def test_every_kind_trains_from_arrays_and_is_sampled_in_python_and_on_the_command_line(
    kind: str, tmp_path: Path, data: Path, call
) -> None:
    name, option, given = GIVEN[kind]
    arguments = ", factor: 2" if kind == "image" else ""
    made = experiment(tmp_path / "run", data, f"condition={{{name}: {{name: {kind}{arguments}}}}}")
    for _ in made.train():  # with its preview
        pass
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    model = ud.load(tmp_path / "run")
    assert list(model.parts) == [name]
    images = model.sample(3, seed=5, steps=3, guidance=2.0, **given)
    assert images.shape == (3, 8, 8) and not np.array_equal(images, model.sample(3, seed=5, steps=3))
    if option is None:
        array = np.asarray(given[name])
        if kind == "embeddings":
            option = f"{name}={tmp_path / 'given.npy'}"
            np.save(tmp_path / "given.npy", array)
        else:
            option = f"{name}={tmp_path / 'given.png'}"
            Image.fromarray(array.astype(np.uint8) * (255 if kind == "mask" else 1)).save(tmp_path / "given.png")
    out = tmp_path / "out.npz"
    code, said, err = call(
        "sample",
        tmp_path / "run",
        "-c",
        option,
        "--n",
        3,
        "--seed",
        5,
        "--steps",
        3,
        "--guidance",
        2,
        "--out",
        out,
        "--json",
    )
    assert code == 0, err
    assert json.loads(said)["condition"] == [option]
    assert np.array_equal(np.load(out)["images"], images)


def test_several_conditions_are_mixed_by_name(mixed: Path, data: Path) -> None:
    model = ud.load(mixed)
    assert list(model.parts) == ["digit", "thickness", "tags", "round", "ink", "words"]
    assert model.label == "digit" and model.classes == tuple("0123456789")
    everything = {"digit": [3, 4], "thickness": [[50.0], [60.0]], "round": IMAGES[:2, ::2, ::2], "words": [[1, 2], [3]]}
    images = model.sample(2, **everything, tags=["odd"], ink=IMAGES[0] > 9, steps=3)
    second = {"digit": 4, "thickness": 60.0, "round": IMAGES[1, ::2, ::2], "words": [3]}
    one = model.sample(1, **second, tags=["odd"], ink=IMAGES[0] > 9, seed=1, steps=3)
    assert np.abs(images[1].astype(int) - one[0]).max() <= 1  # a sample does not see its neighbours' conditions
    some = model.sample(2, digit=3, guidance=1.0, steps=3)
    assert some.shape == (2, 8, 8)
    resolved = json.loads(json.dumps(ud.pipeline.read_spec(mixed)["resolved"]["conditions"]))
    assert resolved["thickness"]["size"] == 1 and abs(resolved["thickness"]["mean"][0] - THICKNESS.mean()) < 3
    assert resolved["tags"] == {"classes": ["odd", "large"]} and resolved["words"] == {"vocabulary": 10, "length": 2}


def test_conditions_of_held_out_samples_belong_together(mixed: Path, data: Path) -> None:
    made = experiment(mixed, data, MIXED, "objective.drop_each={digit: 0.3, round: 0.2}")
    assert made.resumed
    for found in (
        conditions_in_turn(made.pipeline, made.split, 30),
        conditions_by_class(made.pipeline, made.split, 10, 3),
    ):
        for i in range(30):
            rows = [np.array_equal(IMAGES[j, ::2, ::2], found["round"][i, 0].numpy()) for j in range(N)]
            j = rows.index(True)
            assert digits.target[j] == found["digit"][i] == found["words"][i, 0]
            assert np.array_equal(IMAGES[j] > 100, found["ink"][i].bool().numpy())
    assert found["digit"].tolist() == [digit for digit in range(10) for _ in range(3)]
    turn = conditions_in_turn(made.pipeline, made.split, 10)["digit"]
    assert sorted(turn.tolist()) == list(range(10))


@pytest.mark.slow
def test_a_run_of_mixed_conditions_is_evaluated(mixed: Path, hasty: None) -> None:
    numbers = evaluation.evaluate(mixed, n=20, sweep_n=10).numbers
    assert {row["metric"]: row["n"] for row in numbers["measurements"]}["label-agreement"] == numbers["measured_n"]


def test_super_resolution_is_shown_a_smaller_copy_of_the_sample(tmp_path: Path, data: Path, call, hasty: None) -> None:
    low = "condition={low: {name: image, of: sample, factor: 2, optional: false}}"
    made = experiment(tmp_path / "run", data, low, "sampling.guidance=1", "objective.drop=0")
    for _ in made.train():
        pass
    samples, conditions, _ = next(made.held_out())
    smaller = (
        samples[:, :, ::2, ::2] + samples[:, :, 1::2, ::2] + samples[:, :, ::2, 1::2] + samples[:, :, 1::2, 1::2]
    ) / 4
    assert (conditions["low"].float() / 127.5 - 1 - smaller).abs().max() < 1 / 127
    result = evaluation.evaluate(tmp_path / "run", n=6, sweep_n=4)
    found = result.numbers["reconstruction"]
    one, bicubic = (found[name]["psnr"] for name in ("sample", "bicubic"))
    assert found["factor"] == 2 and one["n"] == 6 and bicubic["value"] > one["value"]
    assert result.pictures["reconstruction"].shape[0] > 5 * 32
    truth = centred(made.split.held_out, (1, 8, 8), balanced(made.split.held_out, 6))
    shown = conditions_in_turn(made.pipeline, made.split, 6)["low"]
    assert torch.equal(shown, made.pipeline.parts["low"].derive(truth))  # each against its own original
    larger = torch.nn.functional.interpolate(shown.double(), scale_factor=2, mode="bicubic").round().clamp(0, 255)
    error = (larger - truth.double()).square().mean((1, 2, 3))
    assert bicubic["value"] == pytest.approx(float((10 * torch.log10(255**2 / error)).mean()), abs=0.02)
    model = ud.load(tmp_path / "run")
    assert model.sample(1, low=np.zeros((6, 8), np.uint8), steps=2).shape == (1, 12, 16)  # as large as the input says
    with pytest.raises(InputError, match="8x8 were asked for, but the condition is for samples of 12x16"):
        model.sample(1, low=np.zeros((6, 8), np.uint8), shape=(1, 8, 8))
    with pytest.raises(InputError, match="'low' must be given"):
        model.sample(1)
    with pytest.raises(InputError, match=r"guidance=2 contrasts .* but low has none"):
        model.sample(1, low=np.zeros((4, 4), np.uint8), guidance=2)


def test_a_table_beside_pictures_trains_and_names_are_classes(tmp_path: Path, call) -> None:
    rows = ["file_name,animal,size"]
    for i in range(40):
        Image.fromarray(IMAGES[i]).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'cat' if i % 2 else 'dog'},{i / 10}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    run = tmp_path / "runs" / "animals"
    code, _, err = call(
        "train", "digits", *TINY, "training.steps=4", "data.source=folder", f"data.path={tmp_path}",
        "condition={animal: label, size: vector}", f"run={run}",
    )  # fmt: skip
    assert code == 0, err
    assert ud.load(run).classes == ("cat", "dog")
    code, _, err = call(
        "sample", run, "--label", "cat,dog", "-c", "size=2.5", "--n", 4, "--steps", 2, "--out", tmp_path / "out.png"
    )
    assert code == 0, err
    facts = json.loads(Image.open(tmp_path / "out.png").text["undiffuse"])
    assert facts["condition"] == ["size=2.5"] and facts["label"] == "cat,dog"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["condition={digit: lable}"], "did you mean 'label'"),
        (["condition={seed: label}"], "cannot be called 'seed'"),
        (["condition={type: label}"], "cannot be called 'type'"),
        (["condition={image: image}"], "no array 'image' or 'images'"),
        (["condition={round: {name: image, factor: 2, optional: false}}", "objective.drop_each={round: 0.1}"],
         "drops 'round', which is not optional"),
        (["condition={'a b': label}"], "letters, digits, hyphens and underscores"),
        (["condition={digit: label}", "objective.drop_each={dgit: 0.1}"], "did you mean 'digit'"),
        (["condition={digit: label}", "objective.drop_each={digit: 2}"], r"in \[0, 1\], not 2"),
        (["condition={thick: vector}"], "no array 'thick' or 'thicks'"),
        (["condition={digit: {name: label, size: 4}}"], "unknown argument .*'size'"),
        (["condition={digit: {name: label, width: 3}}"], "width=3 is decided by the network"),
        (["condition={words: {name: tokens, context: 12}}", "network.context=32"], "network.context=32 is decided"),
        (["condition=none", "network.condition_channels=3"], "network.condition_channels=3 is decided .* 0"),
        (["condition={low: {name: image, of: sample}}"], "needs a factor of 2 or more, not 1"),
        (["condition={digit: label}", "objective.drop=0"], "objective.drop=0 never trains"),
        (["condition={round: image}"], "8x8 were asked for, but the condition is for samples of 4x4"),
        (["condition={words: tokens, vectors: embeddings}"], "of one width, not 5 and 256"),
        (["condition={digit: {name: label, optional: false}}"], "digit has none .*: use guidance=1"),
        (["condition=none", "network.learned_variance=true", "schedule=linear"], "take the time law table"),
        (["condition={low: {name: image, of: sample, factor: 3}}"], "8 pixels cannot be made 3 times smaller"),
        (["condition={digit: label}", "network=mlp"], "unknown argument of network mlp"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path, data: Path, overrides, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        experiment(tmp_path / "run", data, *overrides)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-c", "digit"], "NAME=VALUE"),
        (["-c", "dgit=1"], "did you mean 'digit'"),
        (["-c", "digit=1", "-c", "digit=2"], "given twice"),
        (["-c", "digit=1", "--label", "2"], "say the same"),
        (["-c", "digit=12"], "unknown class '12'"),
        (["-c", "digit=0-9", "--n", 1], "takes one class here, not 10"),
        (["-c", "digit=²"], "unknown class"),
        (["-c", "thickness=much"], "numbers with commas"),
        (["-c", "thickness=1,2,3"], "3 values of thickness were given for 2 samples"),
        (["-c", "words=a"], "token numbers"),
        (["-c", "words=55"], "token 55 is out of range"),
        (["-c", "tags=odd+huge"], "unknown class 'huge'"),
        (["-c", "round=nowhere.png"], "cannot read the image"),
        (["-c", "round=nowhere.npz"], "cannot read"),
        (["-c", "digit=1", "--guidance", "nan"], "finite"),
    ],
)
def test_conditions_that_are_none_end_in_one_line(mixed: Path, tmp_path: Path, call, refused, options, words) -> None:
    refused(call("sample", mixed, "--n", 2, *options, "--out", tmp_path / "x.png"), words)


def test_info_names_the_conditions(mixed: Path, call) -> None:
    code, said, _ = call("info", mixed, "--json")
    assert code == 0 and json.loads(said)["conditions"][1:3] == [
        "thickness (Vector, size 1)",
        "tags (Labels, classes odd, large)",
    ]


def test_shapes_of_draws_and_times_do_not_change_with_dropping_each(mixed: Path, data: Path) -> None:
    made = experiment(mixed, data, MIXED, "objective.drop_each={digit: 0.3, round: 0.2}")
    objective, denoiser = made.state.objective, made.state.model
    source = ud.noise.NoiseSource(torch.arange(4000), (1, 8, 8))
    dropped = objective.draw(denoiser, source).drop
    share = {name: float(mask.float().mean()) for name, mask in dropped.items()}
    assert set(share) == set(made.pipeline.parts)
    assert abs(share["words"] - 0.1) < 0.02 and torch.equal(dropped["words"], dropped["thickness"])  # together alone
    assert abs(share["digit"] - (1 - 0.9 * 0.7)) < 0.03 and abs(share["round"] - (1 - 0.9 * 0.8)) < 0.03
    alone = (dropped["digit"] & ~dropped["words"]).float().mean() * (
        dropped["round"] & ~dropped["words"]
    ).float().mean()
    both = (dropped["digit"] & dropped["round"] & ~dropped["words"]).float().mean()
    assert abs(float(both) - float(alone) / 0.9) < 0.02  # independent of one another


@pytest.mark.parametrize(
    "network",
    [
        "{name: dit, width: 32, depth: 2, heads: 2, tokens_by: in-context, positions: rope}",
        "{name: dit, width: 32, depth: 1, heads: 2, vector_by: cross-attention, size: 8, checkpointing: true}",
        "{name: unet, width: 16, multipliers: [1, 2], blocks: 1, attention: true, resample: residual, depth: 2}",
    ],
)
def test_every_network_of_pictures_takes_them_all(tmp_path: Path, data: Path, network: str) -> None:
    small = [change for change in TINY if not change.startswith("network.")]
    recipe = recipes.named("digits").changed(
        [*small, "data.source=arrays", f"data.path={data}", "training.steps=3", "network=unet", MIXED]
    )
    made = Experiment(recipe.changed([f"network={network}"]), tmp_path / "run")
    train(made)
    weights = made.state.model.state_dict()
    assert all(value.isfinite().all() for value in weights.values())
    assert ud.load(tmp_path / "run").sample(2, digit=[1, 2], words=[3, 4], steps=2).shape == (2, 8, 8)


def test_what_only_held_out_samples_have_is_known(tmp_path: Path) -> None:
    split = np.arange(40) >= 30
    words = np.stack([np.arange(40), np.arange(40)], 1)
    ink = np.repeat(np.arange(40) // 10, 64).reshape(40, 8, 8)
    np.savez(tmp_path / "data.npz", images=IMAGES[:40], split=split, words=words, ink=ink)
    made = experiment(tmp_path / "run", tmp_path / "data.npz", "condition={words: tokens, ink: mask}")
    assert made.pipeline.parts["words"].vocabulary == 40 and made.pipeline.parts["ink"].classes == 4
    train(made)  # with its validation


def test_a_condition_that_is_not_optional_is_never_dropped(tmp_path: Path, data: Path) -> None:
    low = "round: {name: image, factor: 2, optional: false}"
    made = experiment(tmp_path / "run", data, f"condition={{digit: label, {low}}}", "objective.drop_each={digit: 0.5}")
    train(made)
    model = ud.load(tmp_path / "run")
    small = IMAGES[3, ::2, ::2]
    guided = model.sample(1, digit=3, round=small, guidance=3.0, steps=2)
    assert not np.array_equal(guided, model.sample(1, digit=3, round=small, guidance=1.0, steps=2))
    with pytest.raises(InputError, match="round has none"):
        model.sample(1, round=small, guidance=3.0, steps=2)


@pytest.mark.slow
def test_a_label_that_is_not_optional_is_evaluated(tmp_path: Path, data: Path, hasty: None) -> None:
    label = "condition={digit: {name: label, optional: false}}"
    train(experiment(tmp_path / "run", data, label, "sampling.guidance=1"))
    result = evaluation.evaluate(tmp_path / "run", n=10, sweep_n=10)
    measured = {row["metric"] for row in result.numbers["measurements"]}
    assert "label-agreement" in measured and "guidance" not in result.pictures


def test_a_condition_is_encoded_once_in_a_run_of_sampling(mixed: Path, monkeypatch) -> None:
    model, rows = ud.load(mixed), []
    part = model.parts["digit"]
    monkeypatch.setattr(part, "forward", lambda values: rows.append(len(values)) or part.embedding(values))
    model.sample(5, digit=3, guidance=2.0, steps=3, batch_size=2)
    assert rows == [1]  # one value for all, whatever the batches, the steps and the guidance
    rows.clear()
    model.sample(5, digit=[0, 1, 2, 3, 4], guidance=2.0, steps=3, batch_size=2)
    assert rows == [2, 2, 1]


def test_pictures_of_another_size_lead_everywhere(tmp_path: Path, data: Path, call) -> None:
    run = tmp_path / "run"
    train(experiment(run, data, "condition={low: {name: image, of: sample, factor: 2}}"))
    Image.fromarray(IMAGES[0][:6]).save(tmp_path / "low.png")  # 6 x 8
    given = ("-c", f"low={tmp_path / 'low.png'}", "--sampler", "ddim")
    for arguments in (
        ("interpolate", run, "--seeds", "0,1", "--steps-between", 1, "--out", tmp_path / "row.png"),
        ("grid", run, "--steps", 2, "--n", 1),
        ("sample", run, "--n", 1, "--out", tmp_path / "one.png"),
    ):
        code, _, err = call(*arguments, *given)
        assert code == 0, err


def test_an_imported_run_names_no_data_to_be_measured_against(mixed: Path, own_run: Path, refused, call) -> None:
    import yaml

    spec = yaml.safe_load((own_run / "recipe.yaml").read_text())
    del spec["data"]
    (own_run / "recipe.yaml").write_text(yaml.safe_dump(spec))
    refused(call("evaluate", own_run), "names no data")


def test_conditions_in_another_order_are_the_same_run(tmp_path: Path, data: Path) -> None:
    ends = []
    for name, second in (("same", "{digit: label, tags: labels}"), ("other", "{tags: labels, digit: label}")):
        run = tmp_path / name
        train(experiment(run, data, "condition={digit: label, tags: labels}", "training.steps=8"), until=5)
        made = experiment(run, data, f"condition={second}", "training.steps=8")
        assert made.resumed and made.state.step < 8
        train(made)
        ends.append(made.state.model.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_classes_without_samples_are_not_asked_for(tmp_path: Path) -> None:
    labels = np.where(np.arange(60) % 3 == 0, 7, np.arange(60) % 3)  # 1, 2 and 7
    split = np.arange(60) >= 50
    split[labels == 7] = False  # and none of class 7 is held out
    np.savez(tmp_path / "data.npz", images=IMAGES[:60], digit=labels, thickness=np.arange(60) / 60, split=split)
    for condition in ("{digit: label}", "{digit: label, thickness: vector}"):
        made = experiment(tmp_path / condition.replace(":", ""), tmp_path / "data.npz", f"condition={condition}")
        found = conditions_by_class(made.pipeline, made.split, 3, 2)
        assert found["digit"].tolist() == [1, 1, 2, 2, 7, 7]
        assert set(conditions_in_turn(made.pipeline, made.split, 12)["digit"].tolist()) <= {1, 2, 7}


def test_pictures_of_two_sizes_do_not_go_together(mixed: Path) -> None:
    with pytest.raises(InputError, match=r"must be of one size, not \(12, 12\) and \(8, 8\)"):
        ud.load(mixed).sample(1, round=np.zeros((6, 6), np.uint8), ink=np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("value", ["hello", np.array(["a"]), object(), [[1], ["x"]]])
def test_what_torch_cannot_read_is_refused_by_the_name_of_its_condition(mixed: Path, value: object) -> None:
    for name in ud.load(mixed).parts:
        with pytest.raises(InputError, match=name):
            ud.load(mixed).sample(1, **{name: value})
