import pytest
import torch

from undiffuse.data import Dataset, digits, split
from undiffuse.errors import InputError


def numbered(labels: list[int] | None = None, n: int = 0) -> Dataset:
    """Samples whose two channels hold their own index (modulo 256, and divided by it)."""
    n = n if labels is None else len(labels)
    index = torch.arange(n)
    samples = torch.stack([index % 256, index // 256], 1)[..., None, None].to(torch.uint8)
    conditions = {} if labels is None else {"label": torch.tensor(labels)}
    classes = {} if labels is None else {"label": tuple(str(i) for i in range(max(labels) + 1))}
    return Dataset("numbered", samples, conditions, classes)


def ids(dataset: Dataset) -> list[int]:
    return (dataset.samples[:, 0, 0, 0].int() + 256 * dataset.samples[:, 1, 0, 0].int()).tolist()


def test_subset_takes_samples_and_conditions_together():
    part = numbered([0, 1, 2, 1]).subset(torch.tensor([3, 0]))
    assert (
        ids(part) == [3, 0]
        and part.conditions["label"].tolist() == [1, 0]
        and part.classes == {"label": ("0", "1", "2")}
    )
    assert len(part) == 2 and part.shape == (2, 1, 1)


def test_the_parts_are_the_whole_in_order_and_depend_on_the_seed_alone():
    dataset = numbered(n=500)
    parts = split(dataset, 0.3, seed=4)
    train, held_out = ids(parts.train), ids(parts.held_out)
    assert len(held_out) == 150 and sorted(train + held_out) == list(range(500))
    assert train == sorted(train) and held_out == sorted(held_out)
    assert ids(split(dataset, 0.3, seed=4).held_out) == held_out != ids(split(dataset, 0.3, seed=5).held_out)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.95])
def test_every_class_gives_its_share(fraction):
    sizes = [100, 37, 10, 3, 2, 1]
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    parts = split(numbered(labels), fraction)
    counts = parts.held_out.conditions["label"].bincount(minlength=len(sizes)).tolist()
    for size, count in zip(sizes, counts, strict=True):
        assert count <= size - 1
        assert abs(count - fraction * size) < 1 or count == size - 1
    if fraction <= 0.5:
        assert sum(counts) == int(fraction * 152 + 0.5)


def test_many_small_classes_keep_the_fraction():
    parts = split(numbered([i // 4 for i in range(400)]), 0.1)
    assert len(parts.held_out) == 40
    assert parts.held_out.conditions["label"].bincount().max() == 1


def test_members_of_a_class_are_drawn_at_random():
    held_out = ids(split(numbered([0] * 200 + [1] * 200), 0.25).held_out)
    assert 60 < sum(i % 200 for i in held_out) / len(held_out) < 140


def test_one_is_held_out_even_of_few():
    assert len(split(numbered(n=3), 0.1).held_out) == 1
    assert split(numbered([0, 1, 2, 3, 3]), 0.01).held_out.conditions["label"].tolist() == [3]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_are_refused(fraction):
    with pytest.raises(InputError, match="a fraction between 0 and 1"):
        split(numbered(n=10), fraction)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_nothing_to_spare_is_refused(labels):
    with pytest.raises(InputError, match="none can be held out"):
        split(numbered(labels), 0.5)


def test_unfit_samples_and_conditions_are_refused():
    with pytest.raises(InputError, match=r"float32 \(2, 1, 1, 1\): uint8 \(N, C, H, W\)"):
        Dataset("x", torch.zeros(2, 1, 1, 1))
    with pytest.raises(InputError, match="'label' has 3 rows: 2 samples need 2"):
        Dataset("x", torch.zeros(2, 1, 1, 1, dtype=torch.uint8), {"label": torch.zeros(3)})


def test_digits():
    parts = digits.load()
    assert (len(parts.train), len(parts.held_out), parts.train.shape) == (1438, 359, (1, 8, 8))
    assert parts.train.classes == {"label": tuple("0123456789")}
    train, held_out = (part.conditions["label"].bincount() for part in (parts.train, parts.held_out))
    assert ((held_out - 0.2 * (train + held_out)).abs() < 1).all()
    values = parts.train.samples.unique()
    assert values.tolist() == [round(v * 255 / 16) for v in range(17)]
    assert torch.equal(parts.held_out.samples, digits.load().held_out.samples)
