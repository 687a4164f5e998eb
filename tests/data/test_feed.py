"""Batches: pictures that come with a sample are augmented as it is, and those made from it see it augmented."""

import torch

from undiffuse.conditioning import Image
from undiffuse.data import Augment, Dataset, Flip, RandomCrop
from undiffuse.data.feed import Feed

draw = torch.Generator().manual_seed(0)
SAMPLES = torch.randint(0, 256, (40, 3, 9, 9), generator=draw, dtype=torch.uint8)


def feed(**options):
    dataset = Dataset("x", SAMPLES, {"pair": 255 - SAMPLES, "map": SAMPLES[:, 0].long()})
    augment = Augment([RandomCrop(8, 8), Flip()])
    return Feed(dataset, lambda images: images, augment, 16, 3, torch.device("cpu"), **options)


def test_paired_pictures_and_maps_are_cut_and_mirrored_alike():
    seen = set()
    for step in range(5):
        samples, conditions, _ = feed(paired=["pair", "map"]).batch(step)
        assert samples.shape[2:] == (8, 8)
        assert torch.equal(conditions["pair"], 255 - samples) and torch.equal(conditions["map"], samples[:, 0].long())
        seen |= {tuple(sample.flatten().tolist()) for sample in samples}
    assert len(seen) > 60  # of 80 seen, most are cut or mirrored in a way of their own


def test_derived_pictures_are_made_from_the_augmented_sample():
    part = Image(3, factor=2, of="sample")
    samples, conditions, _ = feed(derive={"low": part.derive}).batch(0)
    assert torch.equal(conditions["low"], part.derive(samples))
