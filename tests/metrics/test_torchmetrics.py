"""The numbers of torchmetrics for the same features, to 1e-4."""

import pytest
import torch

from metrics import peers
from seeing import Flat, normal
from undiffuse import metrics

pytestmark = pytest.mark.slow  # torchmetrics takes seconds to import

GENERATOR = torch.Generator().manual_seed(0)
REAL = torch.randint(0, 200, (400, 1, 4, 4), generator=GENERATOR, dtype=torch.uint8)
SAMPLES = torch.randint(20, 256, (300, 1, 4, 4), generator=GENERATOR, dtype=torch.uint8)


class Pixels(torch.nn.Module):
    """The pixels between 0 and 1."""

    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float() / 255


class Unit(Flat):
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Pixels()(images), None


def updated(metric, real=REAL, samples=SAMPLES):
    metric.update(real, real=True)
    metric.update(samples, real=False)
    return metric


def measured(name: str) -> float:
    return metrics.measure(metrics.look(Unit(), SAMPLES), metrics.look(Unit(), REAL), [name])[0].value


def test_frechet_distance():
    peers.torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = updated(FrechetInceptionDistance(Pixels(), input_img_size=(1, 4, 4))).compute()
    assert measured("frechet-distance") == pytest.approx(float(theirs), rel=1e-4)


def test_kernel_distance_where_a_subset_is_the_whole_set():
    peers.torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(Pixels(), subsets=1, subset_size=300)
    theirs = updated(metric, REAL[:300]).compute()[0]
    ours, _ = metrics.kernel_distance(Pixels()(SAMPLES), Pixels()(REAL[:300]))
    assert ours == pytest.approx(float(theirs), rel=1e-4)


def test_inception_score():
    peers.torchmetrics()
    from torchmetrics.image.inception import InceptionScore

    scores = 3 * normal(500, 10)
    metric = InceptionScore(torch.nn.Identity(), splits=10)
    metric.update(scores)
    torch.manual_seed(7)
    mean, _ = metric.compute()
    order = torch.randperm(500, generator=torch.Generator().manual_seed(7))  # they shuffle by the global generator
    parts = [metrics.inception_score(part, splits=1)[0] for part in scores[order].chunk(10)]
    assert sum(parts) / 10 == pytest.approx(float(mean), rel=1e-4)
    found = metrics.inception_score(scores, splits=10, seed=7)
    assert found == pytest.approx(tuple(float(x) for x in (mean, torch.tensor(parts).std())), rel=1e-4)


def test_similarity_and_noise():
    peers.torchmetrics()
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    images = torch.randint(0, 256, (6, 3, 20, 17), generator=GENERATOR, dtype=torch.uint8)
    other = (images.float() + 30 * normal(images.numel(), 1).reshape(images.shape)).clamp(0, 255).byte()
    theirs = structural_similarity_index_measure(other.double(), images.double(), data_range=255.0, reduction="none")
    torch.testing.assert_close(metrics.ssim(other, images), theirs.double(), rtol=1e-4, atol=0)
    noise = peak_signal_noise_ratio(other.double(), images.double(), data_range=255.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(metrics.psnr(other, images), noise.double(), rtol=1e-4, atol=0)
