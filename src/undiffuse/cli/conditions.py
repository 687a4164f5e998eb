"""Conditions on the command line: --label, and --condition NAME=VALUE for conditions of any kind."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from undiffuse.conditioning import Condition, Embeddings, EncodedImage, Image, Label, Labels, Mask, Tokens, Vector
from undiffuse.data import folder
from undiffuse.data.pictures import read_mask, read_picture
from undiffuse.errors import InputError, unknown
from undiffuse.pipeline import Pipeline

LabelOption = Annotated[str | None, typer.Option("--label", help="Classes: 3, 0-9, 1,5,7 or names; spread evenly.")]
ConditionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        "-c",
        metavar="NAME=VALUE",
        help="A condition by name: classes, numbers (0.5,1), tokens (3,17), labels (red+big), or a file (picture, "
        "folder of pictures, .npy, .npz).",
    ),
]


def given_conditions(
    model: Pipeline,
    label: str | None,
    conditions: Sequence[str] | None,
    n: int,
    classes: Sequence[str] = (),
    option: str = "--condition",
) -> dict[str, Any]:
    """What the options say, for n samples, as `Pipeline.sample` takes it. Raises: InputError.

    classes: those of a classifier that guides; where the model has none of its own, `label` is one of them.
    option: what the conditions were given by.
    """
    texts: dict[str, str] = {}
    by_classifier = bool(classes) and model.label is None
    for given_text in conditions or []:
        name, equals, text = given_text.partition("=")
        if not equals or not text:
            raise InputError(f"{option} has the form NAME=VALUE, not {given_text!r}")
        if name == "label" and by_classifier and label is None:
            label = text
            continue
        if name not in model.parts:
            raise unknown("condition", name, [*model.parts, *(["label"] if by_classifier else [])])
        if name in texts:
            raise InputError(f"{option} {name} is given twice")
        texts[name] = text
    if label is not None and not by_classifier:
        if model.label is None:
            raise InputError("this model has no classes: leave --label out")
        if model.label in texts:
            raise InputError(f"--label and {option} {model.label} say the same: give one of them")
        texts[model.label] = label
    given = {name: parse(name, model.parts[name], text, n) for name, text in texts.items()}
    model.read(n, given)
    if label is not None and by_classifier:
        given["label"] = spread(parse_labels(label, classes), n)
    return given


def parse(name: str, part: Condition, text: str, n: int) -> Any:
    """The value of one condition from its text. Raises: InputError."""
    for kind, reader in _READERS.items():
        if isinstance(part, kind):
            return reader(name, part, text, n)
    raise InputError(f"the condition {name!r} cannot be given on the command line")


def parse_labels(text: str, classes: Sequence[str]) -> list[int]:
    """Labels from `3`, `0-9`, `1,5,7` or class names. Raises: InputError for what the model does not know.

    Where the names of all classes are numbers, numbers are names.
    """
    labels: list[int] = []
    numbered = all(re.fullmatch(r"[0-9]+", name) for name in classes)
    for part in [text] if text in classes else text.split(","):
        part = part.strip()
        span = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", part)
        if part in classes:
            labels.append(list(classes).index(part))
        elif span and numbered:
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise InputError(f"labels {part} fall: write {last}-{first}")
            found = [label for label, name in enumerate(classes) if first <= int(name) <= last]
            for end in (span[1], span[2]):
                if end not in classes:
                    raise unknown("class", end, classes)
            labels += found
        elif span:
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise InputError(f"labels {part} fall: write {last}-{first}")
            if last >= len(classes):
                raise InputError(f"label {last} is out of range: the model knows 0 to {len(classes) - 1}")
            labels += range(first, last + 1)
        elif re.fullmatch(r"[0-9]{1,9}", part) and not numbered:
            labels.append(int(part))
        else:
            raise unknown("class", part, classes)
    for label in labels:
        if label >= len(classes):
            raise InputError(f"label {label} is out of range: the model knows 0 to {len(classes) - 1}")
    return labels


def spread(labels: list[int], n: int) -> np.ndarray:
    """n labels, each of `labels` as often as the others, in blocks: int64 (n,)."""
    return np.asarray(labels, np.int64)[np.arange(n) * len(labels) // n]


def _label(name: str, part: Label, text: str, n: int) -> np.ndarray:
    labels = parse_labels(text, part.classes)
    if n == 1 and len(labels) != 1:
        raise InputError(f"{name} takes one class here, not {len(labels)}")
    return spread(labels, n)


def _labels(name: str, part: Labels, text: str, n: int) -> list[str]:
    return [] if text == "none" else [label.strip() for label in text.split("+")]


def _vector(name: str, part: Vector, text: str, n: int) -> Any:
    if text.endswith((".npy", ".npz")):
        return read_array(text, name)
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise InputError(f"the condition {name} takes numbers with commas between them, not {text!r}") from error


def _tokens(name: str, part: Tokens, text: str, n: int) -> Any:
    if text.endswith((".npy", ".npz")):
        return read_array(text, name)
    if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", text):
        raise InputError(f"the condition {name} takes token numbers with commas between them, not {text!r}")
    return [int(number) for number in text.split(",")]


def _embeddings(name: str, part: Embeddings, text: str, n: int) -> Any:
    if not text.endswith((".npy", ".npz")):
        raise InputError(f"the condition {name} takes an .npy or .npz of vectors (B, L, {part.size}), not {text!r}")
    return read_array(text, name)


def _pictures(name: str, part: Image | EncodedImage, text: str, n: int) -> Any:
    if text.endswith((".npy", ".npz")):
        return read_array(text, name)
    return _stacked([read_picture(file, part.channels) for file in _files(text)])


def _mask(name: str, part: Mask, text: str, n: int) -> Any:
    if text.endswith((".npy", ".npz")):
        return read_array(text, name)
    return _stacked([read_mask(file) for file in _files(text)])


def _files(text: str) -> list[Path]:
    path = Path(text).expanduser()
    return folder.find(path) if path.is_dir() else [path]


def _stacked(pictures: list[Tensor]) -> Tensor:
    sizes = {tuple(picture.shape) for picture in pictures}
    if len(sizes) > 1:
        raise InputError(f"pictures of a condition must be of one size, not {' and '.join(map(str, sorted(sizes)))}")
    return torch.stack(pictures)


def read_array(text: str, name: str) -> np.ndarray:
    """The array of an .npy file, or the one called NAME, NAMEs or images of an .npz file. Raises: InputError."""
    path = Path(text).expanduser()
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            for key in (name, f"{name}s", "images"):
                if key in loaded.files:
                    return np.asarray(loaded[key])
            found = ", ".join(loaded.files)
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged bytes
        raise InputError(f"cannot read {path} for the condition {name}: {str(error).splitlines()[0]}") from error
    raise InputError(f"{path} has no array {name!r}, {name + 's'!r} or 'images': it holds {found or 'nothing'}")


_READERS: Mapping[type[Condition], Callable[..., Any]] = {
    Label: _label,
    Labels: _labels,
    Vector: _vector,
    Image: _pictures,
    EncodedImage: _pictures,
    Mask: _mask,
    Tokens: _tokens,
    Embeddings: _embeddings,
}
