import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics import Classifier
from undiffuse.metrics.classifier import train


def stripes(n: int, channels: int = 3, height: int = 9, width: int = 14, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of two classes: bright on the left, bright on the right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    images = torch.randint(0, 100, (n, channels, height, width), generator=generator, dtype=torch.uint8)
    right = torch.arange(width) >= width // 2
    return images + 100 * (right == labels[:, None].bool())[:, None, None, :].to(torch.uint8), labels


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small gain nothing from a second thread, and lose much when another program holds its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def classifier(one_thread) -> Classifier:
    return train(*stripes(256), classes=2, epochs=20, held_out=stripes(64, seed=1))


def test_embedded_digits_are_recognized():
    digits = load_digits()
    images = torch.from_numpy((digits.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target).long()
    fit, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    digits_classifier = train(images[fit], labels[fit], classes=10)
    assert digits_classifier.accuracy(images[held_out], labels[held_out]) >= 0.985


@pytest.mark.slow
def test_mnist_is_recognized():
    folder = os.environ.get("UNDIFFUSE_DATA")
    if folder is None or not (Path(folder) / "mnist.npz").exists():
        pytest.skip("UNDIFFUSE_DATA does not name a folder with mnist.npz")
    data = np.load(Path(folder) / "mnist.npz")
    images, labels = torch.from_numpy(data["images"])[:, None], torch.from_numpy(data["labels"]).long()
    test = torch.from_numpy(data["split"] == 1)
    assert train(images[~test], labels[~test], classes=10).accuracy(images[test], labels[test]) >= 0.992


def test_non_square_colour_images_and_the_description(classifier):
    images, labels = stripes(64, seed=1)
    assert classifier.accuracy(images, labels) == classifier.held_out_accuracy >= 0.95
    assert classifier.features(images).shape == (64, 64)
    assert classifier.features(images).dtype == torch.float32
    assert classifier.describe().startswith("a 3-layer convolutional classifier trained on 256 real training images (")


@pytest.mark.parametrize(("shape", "depth"), [((1, 8, 8), 3), ((2, 8, 40), 3), ((3, 64, 33), 4)])
def test_any_shape(shape, depth):
    made = train(torch.zeros(3, *shape, dtype=torch.uint8), torch.tensor([0, 1, 2]), classes=3, epochs=1)
    assert made.depth == depth
    assert made.predict(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2,)


def test_training_is_a_function_of_its_arguments_and_leaves_the_global_random_state(classifier):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = train(*stripes(256), classes=2, epochs=20)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), classifier.parameters(), strict=True))
    other = train(*stripes(256), classes=2, epochs=20, seed=1)
    assert not torch.equal(other.head.weight, classifier.head.weight)


def test_seconds_end_the_training_and_progress_reaches_one():
    fractions, texts = zip(*_heard(seconds=0.3, epochs=10_000), strict=True)
    assert list(fractions) == sorted(fractions)
    assert fractions[-1] == 1
    assert "epoch 1 of 10000" in texts[0]
    fractions, texts = zip(*_heard(epochs=2), strict=True)
    assert fractions == (0.25, 0.5, 0.75, 1)


def _heard(**options) -> list[tuple[float, str]]:
    heard: list[tuple[float, str]] = []
    train(*stripes(200), classes=2, progress=lambda fraction, text: heard.append((fraction, text)), **options)
    return heard


def test_a_saved_classifier_comes_back_the_same(classifier, tmp_path):
    classifier.save(tmp_path / "classifier.safetensors")
    before = torch.get_rng_state()
    loaded = Classifier.load(tmp_path / "classifier.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    images, _ = stripes(32, seed=2)
    assert torch.equal(loaded.features(images), classifier.features(images))
    assert torch.equal(loaded.predict(images), classifier.predict(images))
    assert loaded.describe() == classifier.describe()
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_files_that_are_not_a_classifier(classifier, tmp_path):
    whole, bad = tmp_path / "classifier.safetensors", tmp_path / "bad.safetensors"
    classifier.save(whole)
    content = whole.read_bytes()
    for part in (b"", content[:4], content[:500], content[: len(content) // 2], content[:-1], b"x" * 1000):
        bad.write_bytes(part)
        with pytest.raises(InputError, match=r"bad\.safetensors"):
            Classifier.load(bad)
    bad.write_bytes(content.replace(b'\\"classes\\": 2', b'\\"classes\\": 3'))
    with pytest.raises(InputError, match="does not hold a classifier"):
        Classifier.load(bad)
    with pytest.raises(InputError, match="missing"):
        Classifier.load(tmp_path / "missing.safetensors")


def test_refusals(classifier):
    images, labels = stripes(8)
    refusals = [
        ("8 pixels", lambda: train(images[:, :, :7], labels, 2)),
        ("2 classes", lambda: train(images, torch.zeros_like(labels), 1)),
        ("uint8", lambda: train(images.float(), labels, 2)),
        ("N >= 2", lambda: train(images[:1], labels[:1], 2)),
        ("one per image", lambda: train(images, labels[:-1], 2)),
        ("int64", lambda: train(images, labels.int(), 2)),
        (r"\[0, 2\)", lambda: train(images, labels + 1, 2)),
        ("epochs", lambda: train(images, labels, 2, epochs=0)),
        ("seconds", lambda: train(images, labels, 2, seconds=0)),
        (r"\(3, 9, 14\)", lambda: classifier.predict(images[:, :1])),
        ("uint8", lambda: classifier.features(images.float())),
        ("N >= 1", lambda: classifier.predict(images[:0])),
    ]
    for message, attempt in refusals:
        with pytest.raises(InputError, match=message):
            attempt()
