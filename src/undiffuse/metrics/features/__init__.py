"""What pictures are measured through. To add a network, write one file and one line in `FEATURES`."""

import ast
from pathlib import Path

from undiffuse.errors import InputError, unknown
from undiffuse.metrics.features.base import Features
from undiffuse.metrics.features.embedded import ClassifierFeatures, Pixels
from undiffuse.metrics.features.file import ONNX, Module, TorchScript
from undiffuse.metrics.features.inception import Inception
from undiffuse.metrics.features.vision import CLIP, DINOv2
from undiffuse.registry import build

FEATURES: dict[str, type[Features]] = {
    "classifier": ClassifierFeatures,
    "clip": CLIP,
    "dinov2": DINOv2,
    "inception": Inception,
    "pixels": Pixels,
}
# the ending of a file -> what reads it, and the argument that the file is
FILES: dict[str, tuple[type[Features], str]] = {
    ".onnx": (ONNX, "path"),
    ".pt": (TorchScript, "path"),
    ".ts": (TorchScript, "path"),
    ".safetensors": (ClassifierFeatures, "classifier"),
}


def named(text: str, **arguments: object) -> Features:
    """The features that a name or a file means.

    A name is one of `FEATURES`; a file is a network of one's own, TorchScript (.pt, .ts) or ONNX (.onnx), or the
    classifier of an evaluation (.safetensors). Arguments follow after a colon: "inception:resize=legacy",
    "dinov2:source=facebook/dinov2-base", "net.onnx:size=224,normalise=imagenet,colour=true".

    Raises: InputError for unknown names and arguments, with the nearest known, and as the features themselves.
    """
    name, written = _parts(text)
    ending = Path(name).suffix.lower()
    if name not in FEATURES and ending in FILES:
        cls, argument = FILES[ending]
        return build("features", {name: cls}, name, {argument: name, **written, **arguments})
    if name not in FEATURES:
        raise unknown("features", name, [*FEATURES, *(f"a file ending in {known}" for known in FILES)])
    return build("features", FEATURES, name, {**written, **arguments})


def _parts(text: str) -> tuple[str, dict[str, object]]:
    if not isinstance(text, str) or not text:
        raise InputError(f"features are given by a name or a file, not by {text!r}")
    name, _, given = text.rpartition(":")
    if not name or "=" not in given or Path(text).is_file():
        return text, {}
    pairs = [part.partition("=") for part in given.split(",")]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise InputError(f"the arguments of features have the form name:key=value, not {wrong[0]!r}")
    return name, {key.strip(): _value(value.strip()) for key, _, value in pairs}


def _value(text: str) -> object:
    """A number, a truth value, or a bare word."""
    try:
        return text == "true" if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


__all__ = [
    "CLIP",
    "FEATURES",
    "ONNX",
    "ClassifierFeatures",
    "DINOv2",
    "Features",
    "Inception",
    "Module",
    "Pixels",
    "TorchScript",
    "named",
]
