import math

import pytest
import torch

from undiffuse.errors import InputError
from undiffuse.metrics.clip_score import CLIPScore

transformers = pytest.importorskip("transformers")
TEXTS = ["a cat", "no dog", "z", "ab cd"]


@pytest.fixture(scope="module")
def scorer(clip):
    return CLIPScore(clip)


def coloured(pictures, side):
    """Four noisy pictures, each of a colour of its own: a random network takes pure noise for one picture."""
    colours = torch.tensor([[200, 30, 30], [30, 200, 30], [30, 30, 200], [180, 180, 30]], dtype=torch.uint8)
    return pictures(4, 3, side, side) // 8 + colours[:, :, None, None]


def expected(folder, images, texts):
    """By transformers' own processors and the two towers."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    processor = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    scores = []
    for image, text in zip(images, texts, strict=True):
        pixels = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            read = model.text_projection(model.text_model(**tokenizer(text, return_tensors="pt")).pooler_output)[0]
        scores.append(100 * max(0.0, float(seen @ read / seen.norm() / read.norm())))
    return torch.tensor(scores)


def test_the_score_is_that_of_the_two_towers(scorer, clip, pictures):
    images = coloured(pictures, 28)
    scores = scorer.scores(images, TEXTS)
    truth = expected(clip, images, TEXTS)
    assert torch.allclose(scores, truth, atol=2e-3)
    assert (truth - expected(clip, images, TEXTS[::-1])).abs().max() > 1  # it matters which text stands where


def test_pictures_are_resized_as_clip_does_and_only_their_middle_counts(scorer, clip, pictures):
    images = coloured(pictures, 40)
    scores = scorer.scores(images, TEXTS)
    assert torch.allclose(scores, expected(clip, images, TEXTS), atol=1)  # theirs are rounded after resizing
    wide = torch.cat([pictures(4, 3, 40, 6, seed=1), images, pictures(4, 3, 40, 6, seed=2)], 3)
    assert torch.equal(scorer.scores(wide, TEXTS), scores)


def test_negative_cosines_count_as_zero(scorer, clip, pictures):
    images = coloured(pictures, 28)
    opposite = CLIPScore(clip)
    opposite.network.text_projection.weight.data.neg_()
    for score, other in zip(scorer.scores(images, TEXTS), opposite.scores(images, TEXTS), strict=True):
        assert min(score, other) == 0 < max(score, other) <= 100


def test_the_mean_has_the_error_of_a_mean(scorer, pictures):
    images = coloured(pictures, 28)
    measured, scores = scorer.measure(images, TEXTS), scorer.scores(images, TEXTS).double()
    assert measured.value == pytest.approx(float(scores.mean()))
    assert measured.error == pytest.approx(float(scores.std()) / math.sqrt(4))
    assert (measured.metric, measured.label, measured.n) == ("clip-score", "CLIP score", 4)
    assert measured.settings["network"] == scorer.source


def test_long_texts_are_cut_and_keep_their_end(scorer, pictures):
    images = coloured(pictures, 28)
    long, other = scorer.scores(images[[0, 0]], ["a b c d e f g h i", "a b c d e f"])
    assert float(long) == pytest.approx(float(other), abs=1e-4)  # six letters and the two ends are what it takes
    assert float(scorer.scores(images[:1], ["a b c d e z"])) != pytest.approx(float(long), abs=1e-2)


def test_bad_input_is_refused(scorer, pictures, clip, tmp_path):
    with pytest.raises(InputError, match="a text for each of 2 pictures, not 'ab'"):
        scorer.scores(pictures(2), "ab")
    with pytest.raises(InputError, match="a text for each of 2 pictures"):
        scorer.scores(pictures(2), ["one"])
    with pytest.raises(InputError, match="uint8"):
        scorer.scores(pictures(2).float(), ["one", "two"])
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((clip / file).read_bytes())
    with pytest.raises(InputError, match="holds no tokenizer of CLIP") as caught:
        CLIPScore(tmp_path)
    assert "\n" not in str(caught.value)
