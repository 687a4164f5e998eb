"""Inception-v3 with random weights in the published file's place: equal to torch-fidelity's own extractor."""

import dataclasses
import hashlib
import importlib

import pytest
import torch
from torch import nn

from metrics import peers
from undiffuse.errors import InputError
from undiffuse.metrics import frechet_distance, look
from undiffuse.metrics.features import inception, named
from undiffuse.metrics.features.resize import resize


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / inception.WEIGHTS.name


@pytest.fixture
def theirs(file, monkeypatch):
    """torch-fidelity's extractor, and its random weights as a file that counts as the published one."""
    cls = peers.torch_fidelity().FeatureExtractorInceptionV3
    module = __import__("torch_fidelity.feature_extractor_inceptionv3", fromlist=["x"])
    with monkeypatch.context() as offline, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        offline.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        offline.setattr(cls, "load_state_dict", lambda *_: None)
        extractor = cls("inception-v3-compat", ["2048", "logits_unbiased"])
        for layer in extractor.modules():
            if isinstance(layer, nn.Conv2d):  # their own first ones are so small that nothing comes through
                nn.init.kaiming_normal_(layer.weight)
    if file.exists():
        extractor.load_state_dict(torch.load(file, weights_only=True))
    else:
        torch.save(extractor.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS", dataclasses.replace(inception.WEIGHTS, sha256=digest))
    monkeypatch.setenv("UNDIFFUSE_WEIGHTS", str(file.parent))
    return extractor


@pytest.mark.slow
def test_legacy_features_and_scores_are_those_of_torch_fidelity(theirs, pictures):
    images = pictures(2, 3, 40, 32)
    before = torch.get_rng_state()
    ours, scores = named("inception:resize=legacy")(images)
    assert torch.equal(before, torch.get_rng_state())
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


def test_another_file_is_refused_before_anything_reads_it(tmp_path):
    peers.torch_fidelity()
    wrong = tmp_path / inception.WEIGHTS.name
    torch.save({"weight": torch.zeros(3)}, wrong)
    with pytest.raises(InputError, match=r"its SHA-256 begins with \w{8}, not 6726825d") as caught:
        named("inception", weights=str(wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_fid_is_that_of_torch_fidelity(theirs, pictures):
    """The whole way, from pictures to numbers, of two sets that differ in brightness."""
    sets = [pictures(12, 3, 20, 20), pictures(12, 3, 20, 20, seed=1) // 2 + 90]
    network = named("inception:resize=legacy")
    seen, other = (look(network, images) for images in sets)
    with torch.inference_mode():
        (features, _), (others, _) = (theirs(images) for images in sets)
    fid = importlib.import_module("torch_fidelity.metric_fid")
    expected = fid.fid_statistics_to_metric(
        fid.fid_features_to_statistics(features), fid.fid_features_to_statistics(others), verbose=False
    )
    assert seen.is_inception
    ours = frechet_distance(seen.features, other.features)
    assert ours == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
