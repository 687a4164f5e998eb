import pytest
import torch


@pytest.fixture
def pictures():
    """Makes noise pictures, uint8 (n, channels, height, width)."""

    def make(n=3, channels=3, height=40, width=32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The folder of a CLIP of a few random weights, for pictures of 28 pixels and texts of 8 tokens, letters each."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {
        name: vocabulary[f"<|{word}text|>"] for name, word in (("bos_token_id", "startof"), ("eos_token_id", "endof"))
    }
    config = transformers.CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 8, "projection_dim": 8},
        vision_config={**sizes, "image_size": 28, "patch_size": 14, "projection_dim": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # their own first ones are so small that all pictures and all texts are one
                parameter.data.normal_(0, 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory):
    """The folder of a DINOv2 of a few random weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Dinov2Model(config).save_pretrained(folder)
    return folder
