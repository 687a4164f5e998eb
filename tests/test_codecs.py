import pytest
import torch

from undiffuse.codecs import CODECS, Identity, Pixels
from undiffuse.errors import InputError

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_keeps_the_batch_and_gives_back_what_it_took(name):
    samples = EVERY_BYTE.expand(3, 3, 16, 16)
    samples = samples if name == "pixels" else samples / 100
    x = CODECS[name]().encode(samples)
    assert x.dtype == torch.float32 and len(x) == 3
    assert torch.equal(CODECS[name]().decode(x), samples)


def test_bytes_are_no_latents():
    with pytest.raises(InputError, match=r"uint8: floats .*codec=pixels"):
        Identity().encode(EVERY_BYTE)


def test_pixels_come_back_exactly():
    pixels = Pixels()
    x = pixels.encode(EVERY_BYTE)
    assert torch.equal(pixels.decode(x), EVERY_BYTE)
    assert torch.equal(pixels.encode(pixels.decode(x)), x)
    torch.testing.assert_close(x.double(), EVERY_BYTE.double() / 127.5 - 1, rtol=0, atol=2e-7)
    assert (x.min(), x.max()) == (-1, 1)


def test_decoding_rounds_and_clamps():
    x = torch.tensor([-9, -1, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1, 9, float("inf"), -float("inf"), float("nan")])
    assert Pixels().decode(x.view(1, 1, 3, 3)).flatten().tolist() == [0, 0, 0, 1, 255, 255, 255, 0, 0]


def test_half_precision_decodes_in_single():
    x = torch.linspace(-1, 1, 101).to(torch.bfloat16).view(1, 1, 1, 101)
    assert torch.equal(Pixels().decode(x), Pixels().decode(x.float()))


def test_other_types_are_refused():
    with pytest.raises(InputError, match="float32: uint8"):
        Pixels().encode(torch.zeros(1, 1, 2, 2))
