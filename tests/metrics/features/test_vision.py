"""DINOv2 and CLIP of a few weights, drawn at random, in folders as transformers writes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.errors import InputError
from undiffuse.metrics.features import named
from undiffuse.metrics.features.vision import CLIP, DINOv2, pretrained

transformers = pytest.importorskip("transformers")


def pillow(image, size, mean, deviation):
    """What dgm-eval does before its networks: Pillow's bicubic by float channel, clipped, normalised."""
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in image]
    x = np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255) / 255 for c in channels])
    return torch.from_numpy((x - np.array(mean)[:, None, None]) / np.array(deviation)[:, None, None]).float()


def test_dinov2_is_the_normalised_class_token_at_224_pixels(dinov2, pictures):
    images = pictures(2, 3, 60, 40)
    found, scores = named("dinov2", source=str(dinov2))(images)
    x = torch.stack([pillow(image, 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for image in images])
    model = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    with torch.inference_mode():
        tokens = model(x).last_hidden_state
    assert scores is None and found.shape == (2, 16)
    assert torch.allclose(found, tokens[:, 0], atol=1e-3)
    assert (found - tokens[:, 1]).abs().max() > 0.1


def test_clip_is_the_projected_embedding_of_the_middle(clip, pictures):
    images = pictures(2, 3, 60, 40)
    found, _ = CLIP(clip)(images)
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    x = torch.stack([pillow(image[:, 10:50], 28, mean, deviation) for image in images])
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(x).pooler_output)
    assert found.shape == (2, 8) and torch.allclose(found, expected, atol=1e-4)


def test_grey_pictures_are_grey_rgb(dinov2, pictures):
    network, grey = DINOv2(dinov2), pictures(1, 1)
    assert torch.equal(network(grey)[0], network(grey.repeat(1, 3, 1, 1))[0])


def test_keys_and_names_say_which_network(dinov2, clip, tmp_path):
    network = DINOv2(dinov2)
    assert network.name == f"DINOv2 features of {dinov2.name}" and network.dim == 16 and CLIP(clip).dim == 8
    model = transformers.Dinov2Model.from_pretrained(dinov2)
    model.save_pretrained(tmp_path / "same")
    model.layernorm.weight.data[0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    assert DINOv2(tmp_path / "same").key == network.key != DINOv2(tmp_path / "changed").key


def test_loading_draws_nothing_from_the_global_generator(dinov2):
    before = torch.get_rng_state()
    DINOv2(dinov2)
    assert torch.equal(before, torch.get_rng_state())


def test_pickled_and_other_weights_are_refused_in_one_line(dinov2, clip, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    torch.save(transformers.Dinov2Model.from_pretrained(dinov2).state_dict(), pickled / "pytorch_model.bin")
    for source, message in ((pickled, "cannot load the network"), (tmp_path / "nowhere", "cannot load the network")):
        with pytest.raises(InputError, match=message) as caught:
            DINOv2(source)
        assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    (other / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"holds no Dinov2Model: \d+ of its weights are missing") as caught:
        DINOv2(other)
    assert "\n" not in str(caught.value)


def test_offline_and_absent_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="cannot load the network facebook/dinov2-large") as caught:
        pretrained("Dinov2Model", "facebook/dinov2-large")
    assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)
