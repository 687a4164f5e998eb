"""Inception-v3 with random weights in the published file's place: equal to torch-fidelity's own extractor."""

import dataclasses
import hashlib

import pytest
import torch

from undiffuse.errors import InputError
from undiffuse.metrics.features import inception, named
from undiffuse.metrics.features.resize import resize


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / inception.WEIGHTS.name


@pytest.fixture
def theirs(torch_fidelity, file, monkeypatch):
    """torch-fidelity's extractor, and its random weights as a file that counts as the published one."""
    cls = torch_fidelity.FeatureExtractorInceptionV3
    module = __import__("torch_fidelity.feature_extractor_inceptionv3", fromlist=["x"])
    with monkeypatch.context() as offline, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        offline.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        offline.setattr(cls, "load_state_dict", lambda *_: None)
        extractor = cls("inception-v3-compat", ["2048", "logits_unbiased"])
    if file.exists():
        extractor.load_state_dict(torch.load(file, weights_only=True))
    else:
        torch.save(extractor.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS", dataclasses.replace(inception.WEIGHTS, sha256=digest))
    monkeypatch.setenv("UNDIFFUSE_WEIGHTS", str(file.parent))
    return extractor


def test_legacy_features_and_scores_are_those_of_torch_fidelity(theirs, pictures):
    images = pictures(2, 3, 40, 32)
    ours, scores = named("inception:resize=legacy")(images)
    with torch.inference_mode():
        features, logits = theirs(images)
    assert ours.shape == (2, 2048) and scores.shape == (2, 1008)
    for found, expected in ((ours, features), (scores, logits)):  # far nearer than the two pictures are to each other
        assert (found - expected).abs().max() < 1e-4 * (expected[0] - expected[1]).abs().max()


@pytest.mark.slow
def test_clean_features_are_those_of_pictures_resized_before(theirs, pictures):
    grey = pictures(1, 1, 60, 60)
    clean, legacy = named("inception"), named("inception", resize="legacy")
    assert clean.key != legacy.key and clean.name != legacy.name
    large = resize(grey, 299).round().clamp(0, 255).byte()
    ours, _ = clean(large)
    with torch.inference_mode():
        features, _ = theirs(large.expand(-1, 3, -1, -1))
    assert torch.allclose(ours, features, rtol=1e-4, atol=1e-5 * float(features.abs().max()))
    assert clean.is_inception and clean.name == "Inception-v3 features"
    unrounded, aliased = ((network(grey)[0] - features).abs().max() for network in (clean, legacy))
    assert 0 < unrounded < 0.2 * aliased


def test_another_file_is_refused_before_anything_reads_it(theirs, file, tmp_path, monkeypatch):
    wrong = tmp_path / inception.WEIGHTS.name
    wrong.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"its SHA-256 begins with \w{8}, not \w{8}") as caught:
        named("inception", weights=str(wrong))
    assert "\n" not in str(caught.value)
