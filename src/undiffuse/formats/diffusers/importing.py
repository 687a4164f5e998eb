"""Folders of the library diffusers as our pipelines."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import undiffuse
from undiffuse import pipeline, weights
from undiffuse.conditioning import Embeddings
from undiffuse.errors import InputError, unknown
from undiffuse.files import atomic_folder, write_text
from undiffuse.formats.diffusers import dit, scheduler, unet
from undiffuse.formats.diffusers.folder import REST, Opened, open_folder, read_tensors, read_weights
from undiffuse.formats.diffusers.renaming import State, on_paper, to_ours
from undiffuse.formats.diffusers.time_embedding import flipped
from undiffuse.formats.diffusers.unet import Model

DIT_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
CLASSES = (*unet.DEFAULTS, DIT_CLASSES[0])


class Imported(NamedTuple):
    """A folder of theirs as a whole recipe and weights of ours; notes: what samples differ by, a sentence each."""

    spec: dict[str, Any]
    weights: State
    notes: tuple[str, ...]


def read(
    folder: str | Path,
    size: int | Sequence[int] | None = None,
    null_label: int | None = None,
    null_tokens: object = None,
) -> Imported:
    """What a folder holds: `spec` is as a run folder's recipe.yaml has it, `weights` as its model.safetensors.

    size: of the samples, one number or height and width, in the place of the configuration's; null_label: the class
    that stood for no class in training, for classifier-free guidance; null_tokens: likewise the vectors (L, size)
    that the text encoder makes of the empty text.

    Raises: InputError for folders that cannot be read, weights that do not fit, and all options without an equal.
    """
    try:
        opened = open_folder(Path(folder))
        return _read(Path(folder), opened, size, null_label, null_tokens)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, StopIteration, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the configurations in {folder} make no sense: {error!r}") from error


def _read(
    folder: Path, opened: Opened, size: int | Sequence[int] | None, null_label: int | None, null_tokens: object
) -> Imported:
    kind = str(opened.config.get("_class_name"))
    # the DiTs of the paper are published under the name of a class that has become several
    is_dit = kind == DIT_CLASSES[0] or (kind == DIT_CLASSES[1] and opened.config.get("norm_type") == "ada_norm_zero")
    if kind not in unet.DEFAULTS and not is_dit:
        raise unknown("network of diffusers", kind, CLASSES)
    model = (dit if is_dit else unet).read(kind, opened.config)
    planned = scheduler.read(opened.scheduler)
    scheduler.check_variance(planned.learned, model.network)
    condition, facts, notes = _conditions(model, opened, null_label)
    tensors = _weights(opened, model, is_dit, condition, null_label)
    if null_tokens is not None:
        null = _null_tokens(null_tokens, model, opened)
        condition["tokens"]["optional"], facts["tokens"]["length"] = True, null.shape[1]
        tensors["conditioner.parts.tokens.absent"] = null
    about, latents = opened.about, any(name.startswith(("vae", "vq", "movq")) for name in opened.others)
    pictures = kind == "UNet2DModel" and model.network["channels"] in (1, 3) and not latents
    spec = {
        "name": about.get("name", folder.resolve().name),
        "condition": condition,
        "codec": about.get("codec", "pixels" if pictures else "identity"),
        "network": model.network,
        **planned.sections,
        "sampling": about.get("sampling", planned.sections["sampling"]),
        "resolved": {
            "shape": [model.network["channels"], *_size(model, size, opened)],
            "conditions": facts,
            "data_std": about.get("data_std", 1.0),
            "precision": about.get("precision", "float32"),
            "undiffuse": undiffuse.__version__,
        },
    }
    return Imported(spec, tensors, (*model.notes, *planned.notes, *notes, *_not_loaded(opened)))


def load(folder: str | Path, device: torch.device | str | None = None, **options: Any) -> pipeline.Pipeline:
    """The pipeline of a folder of theirs. options: those of `read`; device: by default CUDA where there is one.

    Warns: of each note. Raises: InputError as `read`.
    """
    imported = read(folder, **options)
    for note in imported.notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    made = pipeline.assemble(imported.spec)
    weights.fill(made.denoiser, imported.weights, Path(folder))
    made.check_shape(made.shape)
    made.denoiser.requires_grad_(False).eval()
    return made.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def import_folder(folder: str | Path, run: str | Path, **options: Any) -> tuple[str, ...]:
    """Make a run folder of a folder of theirs; returns the notes. options: those of `read`.

    Raises: InputError as `read`, and for a run folder that exists and is not empty.
    """
    from undiffuse import config  # it brings pydantic along, which reading alone does not need

    run = Path(run)
    if run.exists() and not (run.is_dir() and not any(run.iterdir())):
        raise InputError(f"{run} exists already: name a new run folder")
    imported = read(folder, **options)
    made = pipeline.assemble(imported.spec)
    weights.fill(made.denoiser, imported.weights, Path(folder))
    made.check_shape(made.shape)
    with atomic_folder(run) as new:
        write_text(new / "recipe.yaml", config.to_yaml(imported.spec))
        weights.write(new / "model.safetensors", imported.weights, {})
    return imported.notes


Facts = dict[str, Any]


def _conditions(model: Model, opened: Opened, null_label: int | None) -> tuple[Facts, Facts, list[str]]:
    """The sections `condition` and `resolved.conditions` of the recipe, and notes."""
    rows, network = model.labels, model.network
    if null_label is not None:
        if opened.about or model.has_null:
            raise InputError(f"null_label={null_label} was given, but which class is the null is known here")
        if rows is None or not 0 <= null_label < rows:
            raise InputError(f"null_label must be one of the network's {rows or 0} classes, from 0, not {null_label}")
    if opened.about:
        return opened.about["condition"], opened.about["conditions"], []
    condition: Facts = {}
    facts: Facts = {}
    notes = []
    if rows is not None:
        optional = model.has_null or null_label is not None
        names = [str(row) for row in range(rows - model.has_null) if row != null_label]
        given = opened.pipeline.get("id2label")
        if isinstance(given, dict):
            called = [str(given.get(name, name)) for name in names]
            names = called if len(set(called)) == len(called) else names
        condition["label"], facts["label"] = {"name": "label", "optional": optional}, {"classes": names}
        if null_label is not None and null_label < rows - 1:
            notes.append(f"classes after {null_label} move down by one; by their names, '0' and so on, they stay.")
    if "context" in network:
        condition["tokens"] = {"name": "embeddings", "optional": False}
        facts["tokens"] = {"size": network["context"]}
    if network["condition_channels"]:
        condition["image"] = {"name": "image", "optional": False, "factor": 1}
        facts["image"] = {"channels": network["condition_channels"]}
    return condition, facts, notes


def _null_tokens(given: object, model: Model, opened: Opened) -> Tensor:
    """The null of the condition `tokens`, (1, L, size). Raises: InputError."""
    if opened.about or "context" not in model.network:
        raise InputError(
            "null_tokens are for networks of diffusers that take tokens, and this one does not, or has a null"
        )
    null = Embeddings(model.network["context"], optional=False).read(given)
    if len(null) != 1:
        raise InputError(f"null_tokens are one sequence (L, size), not {len(null)}")
    return null


def _weights(opened: Opened, model: Model, is_dit: bool, condition: Facts, null_label: int | None) -> State:
    """The denoiser's weights."""
    own: dict[str, Tensor] = on_paper(model.network).state_dict()
    source, theirs = str(opened.network), read_weights(opened.network)
    if is_dit:
        theirs = dit.without_copies(theirs, source)
    else:
        theirs = {unet.renewed(name): value for name, value in theirs.items()}
    module, label = dit if is_dit else unet, "label"
    if model.labels is not None:
        own = own | {label: torch.empty(model.labels, len(own["embed.2.bias"]), device="meta")}
    names = module.names(model.network)
    ours = to_ours(theirs, own, lambda name: [module.LABEL] if name == label else names(name), source)
    if not is_dit and not opened.config.get("flip_sin_to_cos", True):
        ours["embed.0.weight"] = flipped(ours["embed.0.weight"])
    table = ours.pop(label, None)
    found = {f"network.{name}": value for name, value in ours.items()}
    if table is not None:
        if null_label is not None:
            table = torch.cat([table[:null_label], table[null_label + 1 :], table[null_label : null_label + 1]])
        name = next(name for name, section in condition.items() if section["name"] == "label")
        found[f"conditioner.parts.{name}.embedding.weight"] = table
    rest = opened.network.parent / REST
    return found | (read_tensors(rest) if opened.about and rest.is_file() else {})


def _size(model: Model, size: int | Sequence[int] | None, opened: Opened) -> list[int]:
    if size is not None:
        return [size, size] if isinstance(size, int) else list(size)
    if model.size is None:
        raise InputError(
            f"{opened.network / 'config.json'} has no sample_size: give the size of the samples, size= (--size)"
        )
    return model.size


def _not_loaded(opened: Opened) -> list[str]:
    """A sentence on the components beside the network and the scheduler."""
    if not opened.others:
        return []
    names = ", ".join(f"{name} ({kind})" for name, kind in opened.others.items())
    return [
        f"not loaded: {names}; so samples are what the network makes (latents, where there is an autoencoder), and it "
        "takes what an encoder makes of its conditions."
    ]
