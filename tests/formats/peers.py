"""Small networks and schedulers of diffusers with random weights, and folders of them."""

import json
import warnings

import pytest
import torch

LINEAR = {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"}


def diffusers():
    found = pytest.importorskip("diffusers")
    found.utils.logging.set_verbosity_error()
    return found


def randomised(network, seed=0):
    """Every weight is random, those too that are zero or one at the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            flat, scale_of_norm = parameter.ndim < 2, parameter.ndim < 2 and name.endswith("weight")
            scale = 0.2 if flat else parameter[0].numel() ** -0.5
            parameter.copy_(scale_of_norm + scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def network(kind, seed=0, **options):
    """One of their networks, by the name of its class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = randomised(getattr(diffusers(), kind)(**options), seed)
    if kind == "DiTTransformer2DModel":  # in published checkpoints all blocks have the same embedder
        first = made.transformer_blocks[0].norm1.emb.state_dict()
        for block in made.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    return made


def scheduler(kind="DDIMScheduler", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers(), kind)(**options)


def save(folder, made, planned=None, place="unet"):
    """A pipeline's folder of a network and a scheduler (a scheduler, its configuration, or a usual one)."""
    made.save_pretrained(folder / place)
    if planned is None or isinstance(planned, dict):
        write(folder / "scheduler" / "scheduler_config.json", LINEAR if planned is None else planned)
    else:
        planned.save_pretrained(folder / "scheduler")
    return folder


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change(path, **options):
    write(path, json.loads(path.read_text()) | options)
