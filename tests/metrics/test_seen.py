import pytest
import torch

from seeing import Flat, normal, seen
from undiffuse.errors import InputError
from undiffuse.metrics import Seen, look

IMAGES = torch.randint(0, 256, (600, 1, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
FLAT = IMAGES.flatten(1).float() / 255
LABELS = torch.arange(600) % 5


def test_one_tensor_or_batches_and_what_is_kept():
    heard = []
    whole = look(Flat(), IMAGES, LABELS, say=heard.append)
    batches = look(Flat(), iter(IMAGES.split(7)), LABELS)
    assert heard == [256, 512, 600] and whole.n == batches.n == 600
    assert torch.equal(whole.features, FLAT) and torch.equal(whole.features, batches.features)
    assert torch.equal(whole.scores, FLAT[:, :3]) and torch.equal(whole.labels, LABELS)
    bare = look(Flat(), IMAGES, keep=False)
    assert bare.features is None and bare.scores is None
    for other in (bare, batches):
        torch.testing.assert_close(other.moments.covariance, whole.moments.covariance, rtol=1e-10, atol=1e-8)
    assert whole.settings == {"features": "flat pixels", "key": "flat", "inception": False}


def test_one_class_alone():
    found = look(Flat(), IMAGES, LABELS).of_class(3)
    assert found.n == 120 and torch.equal(found.features, FLAT[3::5])
    assert found.labels.unique().tolist() == [3] and len(found.scores) == 120
    torch.testing.assert_close(found.moments.covariance, FLAT.double()[3::5].T.cov())


def test_parts_of_several_processes_are_one_set():
    whole = look(Flat(), IMAGES, LABELS)
    parts = [look(Flat(), IMAGES[rows], LABELS[rows]) for rows in (slice(0, 100), slice(100, None))]
    merged = parts[0].merge(parts[1])
    assert torch.equal(merged.features, whole.features) and torch.equal(merged.labels, LABELS)
    torch.testing.assert_close(merged.moments.covariance, whole.moments.covariance)
    assert parts[0].n == 100
    assert parts[0].merge(look(Flat(), IMAGES, keep=False)).features is None


def test_refusals():
    whole = look(Flat(), IMAGES)
    with pytest.raises(InputError, match="no picture"):
        look(Flat(), [])
    with pytest.raises(InputError, match="labels must be one per picture, 600, not 5"):
        look(Flat(), IMAGES, LABELS[:5])
    with pytest.raises(InputError, match="flat pixels cannot be merged with what given numbers"):
        whole.merge(seen(normal(5, 12)))
    with pytest.raises(InputError, match="labels of every picture"):
        whole.of_class(1)
    with pytest.raises(InputError, match="features must be one per picture"):
        Seen("given", "", whole.moments, normal(5, 12))
