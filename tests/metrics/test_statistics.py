import numpy as np
import pytest
import torch

from undiffuse.errors import InputError
from undiffuse.metrics.features import Pixels
from undiffuse.metrics.statistics import data_hash, export, imported, reference


class Counted(Pixels):
    """Pooled pixels with scores that count how many pictures they looked at."""

    def __init__(self, side=4):
        super().__init__(side)
        self.looked = 0

    def embed(self, images):
        self.looked += len(images)
        features, _ = super().embed(images)
        return features, features[:, :3]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    return tmp_path / "statistics"


def same(a, b):
    assert (a.name, a.key, a.n, a.is_inception) == (b.name, b.key, b.n, b.is_inception)
    assert torch.allclose(a.moments.mean, b.moments.mean, rtol=1e-12)
    assert torch.allclose(a.moments.scatter, b.moments.scatter, rtol=1e-12)


@pytest.mark.parametrize("keep", [True, False])
def test_a_set_is_looked_at_once(pictures, cache, keep):
    images, labels = pictures(300, 1, 8, 8), torch.arange(300) % 5
    features = Counted()
    first = reference(features, images, labels, keep)
    again = reference(features, images.clone(), labels, keep)
    assert features.looked == 300 and len(list(cache.iterdir())) == 1
    same(first, again)
    for seen in (first, again):
        assert torch.equal(seen.labels, labels)
        assert (seen.features is not None) == (seen.scores is not None) == keep
    if keep:
        assert torch.equal(first.features, again.features) and torch.equal(first.scores, again.scores)


def test_moments_alone_do_not_serve_who_wants_features_and_the_other_way_they_do(pictures):
    images, features = pictures(30, 1, 8, 8), Counted()
    reference(features, images, keep=False)
    assert reference(features, images).features is not None and features.looked == 60
    assert reference(features, images, keep=False).features is None and features.looked == 60


def test_other_pictures_another_order_another_shape_and_other_features_are_looked_at(pictures, cache):
    images, features = pictures(30, 1, 8, 8), Counted()
    changed = images.clone()
    changed[7, 0, 3, 3] ^= 1
    sets = [images, changed, images.flip(0), images[:29], images.reshape(30, 1, 4, 16)]
    for data in sets:
        reference(features, data)
    reference(Counted(2), images)
    assert len(list(cache.iterdir())) == 6
    assert len({data_hash(data) for data in sets}) == 5


def test_the_hash_does_not_depend_on_the_layout_in_memory(pictures):
    images = pictures(10, 3, 8, 6)
    assert data_hash(images) == data_hash(images.to(memory_format=torch.channels_last))


def truncated(file):
    file.write_bytes(file.read_bytes()[:-200])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def emptied(file):
    file.write_bytes(b"")


def without_rows(file):
    with np.load(file) as found:
        rows = dict(found)
    rows["features"] = rows["features"][1:]
    np.savez(file, **rows)


def of_others(file):
    with np.load(file) as found:
        rows = dict(found)
    rows["key"] = np.array("another")
    np.savez(file, **rows)


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, without_rows, of_others])
def test_a_damaged_cache_is_made_anew(pictures, cache, damage):
    images, features = pictures(30, 1, 8, 8), Counted()
    first = reference(features, images)
    (file,) = cache.iterdir()
    damage(file)
    same(first, reference(features, images))
    assert features.looked == 60
    same(first, reference(features, images))
    assert features.looked == 60


def test_a_cache_that_cannot_be_written_costs_no_result(pictures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    images, features = pictures(30, 1, 8, 8), Counted()
    assert reference(features, images, folder=tmp_path / "file").n == 30


def test_a_lazy_set_is_read_in_slices(pictures):
    images = pictures(600, 1, 8, 8)

    class Lazy:
        def __len__(self):
            return len(images)

        def __getitem__(self, rows):
            assert isinstance(rows, slice) and rows.stop - rows.start <= 256
            return images[rows]

    features = Counted()
    same(reference(features, Lazy()), reference(features, images))
    assert features.looked == 600


def test_exported_and_imported_as_the_field_shares_them(pictures, tmp_path):
    images, features = pictures(50, 1, 8, 8), Pixels(4)
    seen = reference(features, images)
    export(seen, tmp_path / "mine.npz")
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as file:
        rows = seen.features.double().numpy()
        assert np.allclose(file["mu"], rows.mean(0)) and np.allclose(file["sigma"], np.cov(rows, rowvar=False))
    same(seen, imported(tmp_path / "mine.npz", features))
    np.savez(tmp_path / "theirs.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    theirs = imported(tmp_path / "theirs.npz", features)
    assert theirs.n is None and torch.allclose(theirs.moments.covariance, seen.moments.covariance)


def test_statistics_over_other_features_are_refused(pictures, tmp_path):
    features = Pixels(4)
    export(reference(features, pictures(50, 1, 8, 8)), tmp_path / "mine.npz")
    with pytest.raises(InputError, match=r"is over other features, pooled pixels \(4x4\), not pooled pixels \(2x2\)"):
        imported(tmp_path / "mine.npz", Pixels(2))
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(16), sigma=np.eye(16))
    features.dim = 2048
    with pytest.raises(InputError, match=r"over 16 features a picture, but there are 2048 pooled pixels"):
        imported(tmp_path / "theirs.npz", features)
    (tmp_path / "damaged.npz").write_bytes(b"x" * 100)
    for name in ("damaged.npz", "missing.npz"):
        with pytest.raises(InputError) as caught:
            imported(tmp_path / name, features)
        assert "\n" not in str(caught.value)


def test_bad_requests_are_refused(pictures, tmp_path):
    with pytest.raises(InputError, match="2 pictures or more, not 1"):
        reference(Pixels(), pictures(1, 1, 8, 8))
    seen = reference(Pixels(), pictures(9, 1, 8, 8))
    with pytest.raises(InputError, match=r"written as \.npz, not as .*statistics\.pkl"):
        export(seen, tmp_path / "statistics.pkl")
