import pytest
import torch

from undiffuse.data import Augment, Flip, RandomCrop
from undiffuse.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
BATCH = torch.randint(0, 256, (9, 3, 7, 8), generator=GENERATOR, dtype=torch.uint8)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=GENERATOR)


def test_a_crop_is_the_window_that_the_draws_name():
    u = uniform(9, 2)
    crops = RandomCrop(4, 6)(BATCH, u)
    assert crops.shape == (9, 3, 4, 6)
    for picture, crop, (down, right) in zip(BATCH, crops, u.tolist(), strict=True):
        top, left = int(down * 4), int(right * 3)
        assert torch.equal(crop, picture[:, top : top + 4, left : left + 6])


def test_every_place_is_as_likely():
    picture = torch.arange(5, dtype=torch.uint8).view(1, 1, 1, 5).expand(1000, 1, 1, 5)
    u = (torch.arange(1000) / 1000).repeat(2, 1).T
    assert RandomCrop(1, 1)(picture, u).flatten().bincount().tolist() == [200] * 5


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24, 1.0])
def test_the_ends_of_the_draws_stay_inside(u):
    row = -1 if u else 0
    assert torch.equal(RandomCrop(1, 8)(BATCH, torch.full((9, 2), u)), BATCH[:, :, [row]])


def test_a_crop_of_the_whole_is_the_whole():
    assert torch.equal(RandomCrop(7, 8)(BATCH, uniform(9, 2)), BATCH)


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(InputError, match="cannot crop 8 x 8 pixels from pictures of 7 x 8"):
        RandomCrop(8, 8)(BATCH, uniform(9, 2))


@pytest.mark.parametrize(("direction", "axis"), [("horizontal", 2), ("vertical", 1)])
def test_a_flip_mirrors_where_the_draw_is_below_a_half(direction, axis):
    u = uniform(9, 1)
    for picture, flipped, draw in zip(BATCH, Flip(direction)(BATCH, u), u.flatten().tolist(), strict=True):
        assert torch.equal(flipped, picture.flip(axis) if draw < 0.5 else picture)


def test_an_unknown_flip_is_refused():
    with pytest.raises(InputError, match="did you mean 'vertical'"):
        Flip("verticl")


AUGMENTS = [Augment([]), Augment([RandomCrop(5, 4)]), Augment([RandomCrop(5, 4), Flip(), Flip("vertical")])]


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda augment: str(len(augment.steps)))
def test_a_sample_does_not_depend_on_its_neighbours(augment):
    u = uniform(9, augment.draws)
    whole = augment(BATCH, u)
    assert torch.equal(whole, torch.cat([augment(BATCH[i : i + 1], u[i : i + 1]) for i in range(9)]))
    order = torch.randperm(9, generator=GENERATOR)
    assert torch.equal(augment(BATCH[order], u[order]), whole[order])


def test_steps_follow_each_other_with_draws_of_their_own():
    crop, flip = RandomCrop(5, 4), Flip()
    augment = Augment([crop, flip])
    u = uniform(9, 3)
    assert augment.draws == 3
    assert torch.equal(augment(BATCH, u), flip(crop(BATCH, u[:, :2]), u[:, 2:]))


def test_another_number_of_draws_is_refused():
    with pytest.raises(InputError, match=r"\(9, 2\): \(9, 1\) is needed"):
        Augment([Flip()])(BATCH, uniform(9, 2))
