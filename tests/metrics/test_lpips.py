"""LPIPS with random weights in the published files' places: equal to torch-fidelity's own."""

import dataclasses
import hashlib
import importlib.util
import math
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from metrics import peers
from undiffuse.errors import InputError
from undiffuse.metrics import lpips
from undiffuse.metrics.lpips import LPIPS, mean_lpips

CHANNELS = (64, 128, 256, 512, 512)


def vgg16():
    """The convolutional part of torchvision's vgg16, for its names of weights."""
    layers, channels = [], 3
    for width, count in zip(CHANNELS, (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[-2].weight)
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return types.SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A random VGG, random weights of the layers, both on disk, and their digests."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vgg = vgg16()
    layers = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(CHANNELS)}
    vgg_weights = {f"features.{name}": value for name, value in vgg.features.state_dict().items()}
    torch.save({**vgg_weights, "classifier.0.bias": torch.zeros(1)}, folder / lpips.VGG.name)
    torch.save(layers, folder / lpips.LAYERS.name)
    return folder, vgg, layers


@pytest.fixture
def network(files, monkeypatch):
    folder = files[0]
    for name in ("VGG", "LAYERS"):
        published = getattr(lpips, name)
        digest = hashlib.sha256((folder / published.name).read_bytes()).hexdigest()
        monkeypatch.setattr(lpips, name, dataclasses.replace(published, sha256=digest))
    monkeypatch.setenv("UNDIFFUSE_WEIGHTS", str(folder))
    return LPIPS()


def test_the_distance_is_that_of_torch_fidelity(network, files, pictures, monkeypatch):
    _, vgg, layers = files
    torch_fidelity = peers.torch_fidelity()
    module = __import__("torch_fidelity.sample_similarity_lpips", fromlist=["x"])
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: layers)
    monkeypatch.setattr(module, "torchvision_load_pretrained_vgg16", lambda **_: vgg)
    theirs = torch_fidelity.SampleSimilarityLPIPS("lpips-vgg16")
    images, others = pictures(2, 3, 35, 28), pictures(2, 3, 35, 28, seed=1)
    others[1] = images[1]
    others[1, :, :8] += 20
    with torch.inference_mode():
        expected, found = theirs(images, others).flatten(), network(images, others)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert expected[0] > 2 * expected[1] > 0


def test_a_picture_is_at_no_distance_from_itself_and_further_with_more_noise(network, pictures):
    torch.manual_seed(0)
    images = pictures(2, 3, 32, 32) // 2 + 64
    noise = torch.randn(images.shape)
    noisy = [(images + scale * noise).round().clamp(0, 255).byte() for scale in (0, 8, 32)]
    values = [mean_lpips(network, images, other).value for other in noisy]
    assert values[0] == 0 < values[1] < values[2]
    assert torch.allclose(network(images, noisy[1]), network(noisy[1], images))


def test_grey_pictures_and_the_error_of_the_mean(network, pictures):
    images, others = pictures(5, 1, 16, 20), pictures(5, 1, 16, 20, seed=1)
    measured = mean_lpips(network, images, others, batch_size=2)
    values = network(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)).double()
    assert measured.value == pytest.approx(float(values.mean()), rel=1e-5)
    assert measured.error == pytest.approx(float(values.std()) / math.sqrt(5), rel=1e-4)
    assert (measured.metric, measured.label, measured.n) == ("lpips", "LPIPS", 5)
    assert measured.settings == {"network": "vgg", "version": "0.1"}


@pytest.mark.parametrize(
    "others", [torch.zeros(2, 3, 32, 32), torch.zeros(3, 3, 32, 32).byte(), torch.zeros(2, 3, 8, 8).byte()]
)
def test_pictures_of_other_shapes_and_types_are_refused(others):
    images = torch.zeros(2, 3, *others.shape[2:]).byte()
    with pytest.raises(InputError, match="LPIPS compares uint8 pictures of one shape, 16 pixels a side or more"):
        mean_lpips(None, images, others)


def test_torchmetrics_carries_the_published_layers():
    """The checksum that we ask for is that of the copy which torchmetrics ships."""
    package = importlib.util.find_spec("torchmetrics")
    if package is None:
        pytest.skip("torchmetrics is not installed")
    file = Path(package.submodule_search_locations[0], "functional/image/lpips_models/vgg.pth")
    layers = lpips.LAYERS.load(file)
    assert [tuple(layers[f"lin{i}.model.1.weight"].shape) for i in range(5)] == [(1, n, 1, 1) for n in CHANNELS]
    assert all(weight.min() >= 0 for weight in layers.values())
