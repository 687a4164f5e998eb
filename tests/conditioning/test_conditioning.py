"""Raw conditions: what is refused, what the null is, how several become one, and that each of them is used."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from undiffuse import Denoiser, InputError
from undiffuse.conditioning import (
    CONDITIONS,
    Conditioner,
    Embeddings,
    EncodedImage,
    Image,
    Label,
    Labels,
    Mask,
    Tokens,
    Vector,
)
from undiffuse.guidance import ClassifierFree
from undiffuse.networks import UNet
from undiffuse.schedule import Cosine

draw = torch.Generator().manual_seed(0)
MADE = {
    "label": lambda **optional: Label(5, 8, **optional),
    "labels": lambda **optional: Labels(["a", "b", "c"], 8, **optional),
    "vector": lambda **optional: Vector(3, 8, **optional),
    "image": lambda **optional: Image(2, factor=2, **optional),
    "encoded-image": lambda **optional: EncodedImage(1, 8, **optional),
    "mask": lambda **optional: Mask(3, **optional),
    "tokens": lambda **optional: Tokens(9, length=4, context=6, **optional),
    "embeddings": lambda **optional: Embeddings(6, length=5, **optional),
}
RAW = {
    "label": torch.tensor([0, 4, 2]),
    "labels": torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
    "vector": torch.tensor([[0.0, 1, 2], [1, 1, 1], [-1, 0, 0.5]]),
    "image": torch.randint(0, 256, (3, 2, 2, 2), generator=draw, dtype=torch.uint8),
    "encoded-image": torch.randint(0, 256, (3, 1, 9, 7), generator=draw, dtype=torch.uint8),
    "mask": torch.randint(0, 3, (3, 4, 4), generator=draw),
    "tokens": torch.tensor([[1, 2, 3, -1], [8, -1, -1, -1], [0, 0, 0, 0]]),
    "embeddings": torch.randn(3, 5, 6, generator=draw),
}
OTHER = {
    "label": torch.tensor([1, 3, 0]),
    "labels": 1 - RAW["labels"],
    "vector": -RAW["vector"] + 0.25,
    "image": 255 - RAW["image"],
    "encoded-image": 255 - RAW["encoded-image"],
    "mask": (RAW["mask"] + 1) % 3,
    "tokens": torch.tensor([[2, 1, 3, -1], [7, -1, -1, -1], [0, 0, 0, -1]]),
    "embeddings": RAW["embeddings"] * 2,
}
SHAPES = {"vector": (8,), "image": (4, 4), "tokens": (6,)}  # of what a network is given, but for channels and length
ASKED = [name for name, kind in CONDITIONS.items() if not kind.told]
every_kind = pytest.mark.parametrize("name", ASKED)


@pytest.fixture
def conditioner():
    torch.manual_seed(0)
    return Conditioner({name: MADE[name]() for name in ASKED})


@every_kind
def test_a_condition_gives_what_its_input_takes_and_a_null_that_fits(name):
    torch.manual_seed(0)
    part = MADE[name]()
    encoded, null = part(part.read(RAW[name])), part.null()
    assert len(encoded) == 3 and len(null) == 1 and encoded.shape[-len(SHAPES[part.feeds]) :] == SHAPES[part.feeds]
    everything = torch.cat([encoded, null.expand_as(encoded[:1])]).flatten(1)
    assert len(everything.unique(dim=0)) == 4
    assert_close(part(part.read(RAW[name][1])), encoded[1:2])  # one alone
    assert torch.equal(part.read(part.read(RAW[name])), part.read(RAW[name]))  # reading twice changes nothing


@every_kind
def test_what_is_missing_or_dropped_gets_the_null(name):
    part = MADE[name]()
    conditioner = Conditioner({name: part})
    (null,), (given,) = conditioner.encode({}).values(), conditioner.encode({name: RAW[name]}).values()
    assert torch.equal(null, part.null())
    assert torch.equal(next(iter(conditioner.encode({name: None}).values())), part.null())
    drop = torch.tensor([True, False, True])
    for said in (drop, {name: drop}):
        (mixed,) = conditioner.encode({name: RAW[name]}, said).values()
        assert torch.equal(mixed, torch.where(drop.reshape(-1, *[1] * (given.ndim - 1)), null, given))


@every_kind
def test_without_a_null_a_condition_must_be_given_and_is_not_dropped_together_with_others(name):
    part = MADE[name](optional=False)
    conditioner = Conditioner({name: part})
    for given, drop in (({}, None), ({name: RAW[name]}, {name: torch.ones(3) > 0})):
        with pytest.raises(InputError, match=f"{name!r} must be given for every sample: the model has no null"):
            conditioner.encode(given, drop)
    (kept,), (given,) = (conditioner.encode({name: RAW[name]}, drop).values() for drop in (torch.ones(3) > 0, None))
    assert torch.equal(kept, given)
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in MADE[name]().parameters()) or name in (
        "mask", "tokens",  # their nulls are no weights of their own
    )  # fmt: skip


def test_conditions_that_feed_the_same_input_are_added_or_laid_one_after_the_other(conditioner):
    given = {name: part(part.read(RAW[name])) for name, part in conditioner.parts.items()}
    null = {name: part.null() for name, part in conditioner.parts.items()}
    for present in ([], ["label"], ["image", "tokens"], ASKED):
        encoded = conditioner.encode({name: RAW[name] for name in present})
        parts = {name: given[name] if name in present else null[name] for name in ASKED}
        assert set(encoded) == {"vector", "tokens", "image"}
        assert_close(encoded["vector"], sum(parts[n] for n in ("label", "labels", "vector", "encoded-image")))
        if present in ([], ASKED):
            assert_close(encoded["image"], torch.cat([parts["image"], parts["mask"]], 1))
            assert_close(encoded["tokens"], torch.cat([parts["tokens"], parts["embeddings"]], 1))
    beside = conditioner.encode({"image": RAW["image"]})["image"]  # the mask's null has one pixel and one sample
    assert beside.shape == (3, 5, 4, 4) and (beside[:, 2:] == 0).all() and torch.equal(beside[:, :2], given["image"])


def test_each_condition_can_be_dropped_by_itself(conditioner):
    drop = {"label": torch.tensor([True, False, False]), "tokens": torch.tensor([False, False, True])}
    encoded = conditioner.encode(RAW, drop)
    for i in range(3):
        kept = {name: RAW[name][i : i + 1] for name in ASKED if name not in drop or not drop[name][i]}
        alone = conditioner.encode(kept)
        for feeds, value in alone.items():
            assert_close(encoded[feeds][i : i + 1], value)
    with pytest.raises(InputError, match="did you mean 'label'"):
        conditioner.encode(RAW, {"lable": drop["label"]})


def test_the_output_of_a_denoiser_depends_on_the_time_and_on_every_condition(conditioner):
    network = UNet(1, 8, (1, 2), 1, (False, True), embedding=8, context=6, condition_channels=5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser, x = Denoiser(network, Cosine(), conditioner=conditioner), torch.randn(3, 1, 4, 4)
    output = denoiser(x, 0.5, denoiser.encode(RAW)).output
    assert denoiser.droppable == tuple(ASKED)
    others = [denoiser(x, 0.6, denoiser.encode(RAW)).output]
    others += [denoiser(x, 0.5, denoiser.encode(RAW | {name: OTHER[name]})).output for name in ASKED]
    for other in others:
        assert ((other - output).abs().amax((1, 2, 3)) > 2e-6).all()
    (output + denoiser(x, 0.5).output).sum().backward()
    for key, parameter in conditioner.named_parameters():
        assert parameter.grad.abs().max() > 0, key


def test_guidance_contrasts_all_conditions_with_nulls_of_their_own_shape(conditioner):
    network = UNet(1, 8, (1, 2), 1, (False, True), embedding=8, context=6, condition_channels=5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser, x = Denoiser(network.eval(), Cosine(), conditioner=conditioner), torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        null = denoiser(x, 0.5, denoiser.encode(RAW, torch.ones(3, dtype=torch.bool))).output
        given = denoiser(x, 0.5, denoiser.encode(RAW)).output
        guided = ClassifierFree(denoiser, 3.0).given(**RAW)(x, 0.5).output
    assert_close(guided, null + 3 * (given - null), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("label", [1, 5], "label 5 is out of range: the model knows 0 to 4"),
        ("label", -1, "label -1 is out of range"),
        ("label", [1.0, 2.0], "integers, not torch.float32"),
        ("label", torch.tensor([True]), "integers, not torch.bool"),
        ("label", "six", "unknown class 'six'"),
        ("label", object(), "integers or names"),
        ("labels", ["a", "d"], "unknown class 'd'"),
        ("labels", [[0, 3]], "label 3 is out of range"),
        ("labels", "a", "a list"),
        ("labels", [1, 0, 1], "names a label twice; 0 and 1 for each class are an array"),
        ("labels", [1.7], "names or numbers of classes"),
        ("labels", torch.tensor([[0, 1]]), r"\(B, 3\), not \(1, 2\)"),
        ("labels", torch.tensor([[0, 1, 2]]), "0 and 1"),
        ("vector", [[0.0, 1.0]], r"\(B, 3\), not \(1, 2\)"),
        ("vector", [[0.0, 1.0, float("nan")]], "NaN"),
        ("vector", [[0.0, 1.0, float("inf")]], "infinity"),
        ("vector", "much", "numbers"),
        ("image", torch.zeros(1, 3, 2, 2), r"2 channels, \(B, 2, H, W\), not \(1, 3, 2, 2\)"),
        ("image", torch.zeros(1, 2, 2, 2, dtype=torch.int64), "uint8, or floats .* not torch.int64"),
        ("image", torch.full((1, 2, 2, 2), torch.nan), "NaN"),
        ("image", "low.png", "an array .* not str"),
        ("mask", torch.zeros(1, 4, 4), "integers"),
        ("mask", torch.full((4, 4), 3), "label 3 is out of range"),
        ("tokens", [9], "token 9 is out of range: the model knows 0 to 8"),
        ("tokens", [-2], "token -2"),
        ("tokens", [0, 1, 2, 3, 4], "1 to 4 tokens for this model, not 5"),
        ("tokens", torch.zeros(1, 4), "integers"),
        ("embeddings", torch.zeros(1, 4, 5), r"\(B, L, 6\), not \(1, 4, 5\)"),
        ("embeddings", torch.full((5, 6), torch.inf), "infinity"),
        ("lables", [1], "did you mean 'label"),
    ],
)
def test_what_is_not_a_condition_is_refused_by_name(conditioner, unchecked, name, raw, message):
    with pytest.raises(InputError, match=message) as caught:
        conditioner.encode({name: raw})
    assert "\n" not in str(caught.value)


def test_labels_are_numbers_or_names():
    label, labels = Label(["cat", "dog"], 4), Labels(["red", "big", "old"], 4)
    assert label.read("dog").tolist() == [1] and label.read(["dog", "cat"]).tolist() == [1, 0]
    assert labels.read(["old", "red"]).tolist() == [[1, 0, 1]] and labels.read([["big"], []]).tolist() == [
        [0, 1, 0],
        [0] * 3,
    ]
    assert labels.read([]).tolist() == [[0, 0, 0]]
    weight = labels.embedding.weight
    assert_close(labels(labels.read(["red", "old"]))[0], weight[0] + weight[2])
    assert (labels(labels.read([])) == 0).all()


def test_a_vector_is_standardised_by_the_data():
    values = torch.tensor([[1.0, 100.0], [3.0, 100.0], [5.0, 100.0]])
    facts = Vector.facts(values, 9 * values, ())
    assert facts == {"size": 2, "mean": [3.0, 100.0], "std": [pytest.approx(1.63299, abs=1e-4), 1.0]}
    part = Vector(width=4, **facts)
    plain = Vector(2, 4)
    plain.load_state_dict(part.state_dict())
    assert_close(part(values), plain((values - values.mean(0)) / torch.tensor([1.63299, 1.0])), rtol=1e-4, atol=1e-4)
    assert Vector(1, 4).read(0.5).shape == (1, 1) and Vector(1, 4).read([0.5, 0.7]).shape == (2, 1)


def test_a_picture_is_enlarged_bicubically_and_may_be_made_from_the_sample(unchecked):
    part = Image(1, factor=2, of="sample")
    samples = torch.randint(0, 256, (2, 1, 8, 12), generator=draw, dtype=torch.uint8)
    small = part.derive(samples)
    assert part.derived and small.shape == (2, 1, 4, 6) and small.dtype == torch.uint8
    assert (small.double() - samples.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))).abs().max() <= 0.5
    expected = F.interpolate(small.double() / 127.5 - 1, scale_factor=2, mode="bicubic", align_corners=False)
    assert_close(part(small).double(), expected, rtol=1e-5, atol=1e-5)
    assert (part(torch.full((1, 1, 3, 3), 255, dtype=torch.uint8)) - 1).abs().max() < 1e-5
    assert_close(part.read(small[0, 0].numpy()), small[:1])  # (H, W) as a picture of one channel is sampled
    assert_close(Image(3).read(np.zeros((2, 5, 4, 3), np.uint8)), torch.zeros(2, 3, 5, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="7 pixels cannot be made 2 times smaller"):
        part.derive(samples[..., :7, :7])
    with pytest.raises(InputError, match="not made from the sample"):
        Label(3, 4).derive(samples)
    for bad, message in (
        ({"of": "smaple"}, "did you mean 'sample'"),
        ({"factor": 0}, "1 or more, not 0"),
        ({"of": "sample"}, "2 or more, not 1"),
    ):
        with pytest.raises(InputError, match=message):
            Image(1, **bad)


def test_a_mask_is_one_hot_and_repeats():
    part = Mask(3, factor=2)
    encoded = part(part.read([[0, 1], [2, 2]]))
    assert encoded.shape == (1, 3, 4, 4) and (encoded.sum(1) == 1).all()
    assert encoded[0].argmax(0).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert Mask.facts(*[torch.zeros(2, 3, 3, dtype=torch.uint8)] * 2, ()) == {"classes": 2}


def test_tokens_know_their_place_and_padding_is_the_null():
    part = Tokens(9, length=4, context=6)
    a, b = part(part.read([3, 5])), part(part.read([5, 3]))
    assert not torch.allclose(a[:, :2].flip(1), b[:, :2])
    padded = part(part.read([[3, 5], [3]]))
    assert a.shape == (1, 4, 6) and torch.equal(padded[0], a[0])
    assert torch.equal(part(part.read(torch.tensor([3, 5]))), a)
    assert_close(padded[1, 1:], part.null()[0, 1:])
    assert part.null().shape == (1, 4, 6)  # as long as a dropped sequence


def test_embeddings_of_a_fixed_length_have_a_null_as_long(unchecked):
    part = Embeddings(6, length=5)
    assert part.null().shape == (1, 5, 6) and Embeddings(6).null().shape == (1, 1, 6)
    with pytest.raises(InputError, match="5 vectors for this model, not 4"):
        part.read(torch.zeros(4, 6))
    with pytest.raises(InputError, match="'a', 'b' feed tokens together, so 'b' has no length"):
        Conditioner({"a": part, "b": Embeddings(6)})


def test_white_is_one_where_there_are_two_classes(unchecked):
    assert Mask(2).read(torch.tensor([[0, 255], [1, 0]])).tolist() == [[[0, 1], [1, 0]]]
    with pytest.raises(InputError, match="label 255 is out of range"):
        Mask(3).read(torch.tensor([[0, 255]]))


@pytest.mark.parametrize("name", ["type", "values", "forward", "a.b", "1st", ""])
def test_names_that_cannot_be_are_refused(unchecked, name):
    with pytest.raises(InputError, match="a condition"):
        Conditioner({name: Label(2, 4)})


def test_what_is_dropped_for_every_sample_is_not_encoded(monkeypatch):
    part, label = MADE["encoded-image"](), Label(5, 8, optional=False)
    monkeypatch.setattr(part, "forward", lambda values: pytest.fail("it was encoded"))
    conditioner = Conditioner({"low": part, "label": label})
    raw = {"low": RAW["encoded-image"], "label": RAW["label"]}
    encoded = conditioner.encode(raw, torch.ones(3, dtype=torch.bool))["vector"]
    assert torch.equal(encoded, part.null() + label(RAW["label"]))
