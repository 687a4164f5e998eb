"""Pictures mirrored, scaled, turned, stretched and shifted, and the numbers that say so."""

import math

import numpy as np
import pytest
import torch

from undiffuse.conditioning.augmentation import NUMBERS
from undiffuse.data import Augment, Dataset, Flip, Geometric, RandomCrop
from undiffuse.data.feed import Feed
from undiffuse.errors import InputError
from undiffuse.noise import NoiseSource

draw = torch.Generator().manual_seed(0)
PICTURES = torch.randint(0, 256, (64, 3, 9, 12), generator=draw, dtype=torch.uint8)
PLACES = {"left-right": 0, "top-bottom": 1, "scale": 2, "turn": 3, "stretch": 4, "shift": 5}
VALUES = {"scale": 6, "stretch": 7, "right": 8, "down": 9, "angle": 10, "axis": 11}
U = torch.rand(64, 12, generator=draw)


def draws(done, **values):
    """Draws under which these are done, with normals at `values`, and angles at fractions of pi."""
    u = torch.full((1, 12), 0.99, dtype=torch.float64)
    for name in done:
        u[0, PLACES[name]] = 0.01
    for name, value in values.items():
        angle = name in ("angle", "axis")
        u[0, VALUES[name]] = (1 + value) / 2 if angle else float(torch.special.ndtr(torch.tensor(value).double()))
    return u


def matrices(told):
    """(what a place p goes to, as M and t of M p + t, in pixels of a unit side): from the description alone."""
    x_flip, y_flip, scale, cosine, sine, along, across, right, down = told

    def turned(angle):
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    size, squeeze = 2 ** (scale / 5), 2 ** (math.hypot(along, across) / 5)
    axis = math.atan2(across, along) / 2
    stretch = turned(axis) @ np.diag([squeeze, 1 / squeeze]) @ turned(-axis)
    mirror = np.diag([1 - 2 * x_flip, 1 - 2 * y_flip])
    return stretch @ turned(math.atan2(sine, cosine + 1)) @ (size * mirror), np.array([right, down]) / 8


def test_the_description_says_what_was_done():
    height, width = 40, 56
    y, x = np.meshgrid(np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2, indexing="ij")

    def scene(x, y):
        return 127.5 + 60 * np.sin(0.11 * x + 0.05 * y) + 50 * np.cos(0.09 * y - 0.03 * x + 1)

    pictures = torch.from_numpy(scene(x, y).round()).to(torch.uint8).expand(64, 1, height, width)
    augment = Geometric(0.8)
    found, told = augment(pictures, U)[:, 0].double().numpy(), augment.describe(U).double().numpy()
    compared = 0
    for picture, numbers in zip(found, told, strict=True):
        matrix, shift = matrices(numbers)
        places = np.stack([x, y], -1) - shift * [width, height]
        origin = np.einsum("ij,hwj->hwi", np.linalg.inv(matrix), places)
        inside = (np.abs(origin) < np.array([width / 2 - 3, height / 2 - 3])).all(-1)
        error = np.abs(picture - scene(origin[..., 0], origin[..., 1]))[inside]
        assert error.size == 0 or error.max() < 2  # two roundings
        compared += error.size
    assert compared > 0.4 * found.size
    assert (np.abs(told).max(0) > 0.5).all()  # nothing was left out


def test_single_transforms_of_a_square_are_what_their_names_say():
    square, augment = PICTURES[:1, :, :8, :8], Geometric(0.5)

    def of(*done, **values):
        u = draws(done, **values)
        return augment(square, u), augment.describe(u)[0].tolist()

    assert torch.equal(of("left-right")[0], square.flip(-1)) and of("left-right")[1] == [1] + [0] * 8
    assert torch.equal(of("top-bottom")[0], square.flip(-2)) and of("top-bottom")[1][:3] == [0, 1, 0]
    turned, told = of("turn", angle=0.5)
    assert torch.equal(turned, torch.rot90(square, -1, (-2, -1)))  # right goes down
    assert told[3:5] == pytest.approx([-1, 1])
    shifted, told = of("shift", right=2.0, down=-1.0)  # two eighths to the right, one up
    assert torch.equal(shifted[..., :-1, 2:], square[..., 1:, :-2]) and told[7:] == pytest.approx([2, -1])
    bars = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    bars[..., 6:10, 6:10] = 255
    for done, values, wide, high in (
        (("scale",), {"scale": 5.0}, 8, 8),
        (("scale",), {"scale": -5.0}, 2, 2),
        (("stretch",), {"stretch": 5.0, "axis": 0.0}, 8, 2),
        (("stretch",), {"stretch": 5.0, "axis": 1.0}, 2, 8),
    ):
        sized = augment(bars, draws(done, **values))[0, 0, 4:12, 4:12].float() / 255  # further out it is mirrored
        assert float(sized[4].sum()) == pytest.approx(wide, abs=0.6)
        assert float(sized[:, 4].sum()) == pytest.approx(high, abs=0.6)


def test_what_nothing_is_done_to_keeps_its_bits():
    assert torch.equal(Geometric(0)(PICTURES, U), PICTURES) and not Geometric(0).describe(U).any()
    augment = Geometric(0.1)
    same = ~augment.describe(U).any(1)
    assert 10 < int(same.sum()) < 60 and torch.equal(augment(PICTURES, U)[same], PICTURES[same])


def test_each_is_done_as_often_as_asked_and_on_its_own():
    n, p = 40_000, 0.3
    told = Geometric(p).describe(torch.rand(n, 12, generator=draw)).double()
    done = torch.stack([told[:, 0] > 0, told[:, 1] > 0, *(told[:, i] != 0 for i in (2, 4, 5, 7))], 1).double()
    expected = torch.tensor([p / 2, p / 2, p, p, p, p]).double()
    assert (done.mean(0) - expected).abs().max() < 0.01
    both = done.T @ done / n - expected[:, None] * expected
    assert (both - both.diag().diag()).abs().max() < 0.01
    assert torch.equal(told[:, 7] != 0, told[:, 8] != 0)
    for column in (2, 7, 8):
        values = told[told[:, column] != 0, column]
        assert abs(float(values.mean())) < 0.05 and abs(float(values.std()) - 1) < 0.05
    assert abs(float(told[:, 5:7].square().sum(1).mean()) / p - 1) < 0.05
    turned = told[told[:, 4] != 0]
    assert (turned[:, 4].square() + (turned[:, 3] + 1).square() - 1).abs().max() < 1e-6
    assert abs(float(turned[:, 3].mean()) + 1) < 0.03 and abs(float(turned[:, 4].mean())) < 0.03


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24, 1.0])
def test_the_ends_of_the_draws_are_finite(u):
    ends = torch.full((64, 12), u)
    assert Geometric(1.0)(PICTURES, ends).shape == PICTURES.shape and Geometric(1.0).describe(ends).isfinite().all()


AUGMENT = Augment([RandomCrop(8, 8), Flip(), Geometric(0.5)])


def test_a_sample_does_not_depend_on_its_neighbours():
    u = torch.rand(64, AUGMENT.draws, generator=draw)
    whole, told = AUGMENT(PICTURES, u), AUGMENT.describe(u)
    assert torch.equal(whole, torch.cat([AUGMENT(PICTURES[i : i + 1], u[i : i + 1]) for i in range(64)]))
    assert torch.equal(told, torch.cat([AUGMENT.describe(u[i : i + 1]) for i in range(64)]))
    assert told.shape == (64, NUMBERS) and torch.equal(told, Geometric(0.5).describe(u[:, 3:]))
    assert Augment([Flip()]).describe(u[:, :1]).shape == Augment([]).describe(u[:, :0]).shape == (64, 0)


def feed(augment=AUGMENT):
    # a smooth picture, and the map of where it is bright
    places = torch.linspace(0, 6, 24)
    smooth = (127.5 + 120 * torch.sin(places[:, None] + 0.5 * places + torch.arange(40)[:, None, None])).byte()[:, None]
    dataset = Dataset("x", smooth, {"pair": 255 - smooth, "map": (smooth[:, 0] > 127).byte()})
    return Feed(dataset, lambda x: x, augment, 32, 3, torch.device("cpu"), paired=["pair", "map"], told=["told"])


def test_batches_carry_the_description_and_what_lies_beside_a_picture_goes_with_it():
    samples, conditions, seeds = feed(Augment([Flip(), Geometric(0.5)])).batch(4)
    u = NoiseSource(seeds, (), "cpu").uniform("augment", shape=(13,))
    assert torch.equal(conditions["told"], Geometric(0.5).describe(u[:, 1:])) and conditions["told"].any()
    assert ((255 - conditions["pair"].int()) - samples).abs().max() <= 1
    assert conditions["map"].dtype == torch.uint8 and set(conditions["map"].unique().tolist()) == {0, 1}
    assert float((conditions["map"] == (samples[:, 0] > 127)).float().mean()) > 0.97
    again = feed(Augment([Flip(), Geometric(0.5)])).batch(4)
    assert torch.equal(again[0], samples) and torch.equal(again[1]["told"], conditions["told"])


def test_floats_are_blended_as_bytes_are_and_classes_are_not():
    augment = Geometric(1.0)
    bytes_, floats, classes = (augment(PICTURES.to(kind), U) for kind in (torch.uint8, torch.float32, torch.int64))
    assert torch.equal(floats.round().clamp(0, 255).byte(), bytes_) and floats.dtype == torch.float32
    assert classes.dtype == torch.int64
    for picture, found in zip(PICTURES, classes, strict=True):
        assert set(found.flatten().tolist()) <= set(picture.flatten().tolist())


@pytest.mark.parametrize("probability", [-0.1, 1.5, math.nan])
def test_a_probability_that_is_none_is_refused(probability):
    with pytest.raises(InputError, match=r"in \[0, 1\], not"):
        Geometric(probability)
