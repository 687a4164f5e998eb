"""A small image classifier, trained by the evaluation itself on the real training images.

It is the eye of the label agreement and of the Frechet distance on data for which no pretrained network is a fair
judge: it has seen real images only, and its held-out accuracy is reported beside every number it gives.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from undiffuse.errors import InputError
from undiffuse.files import atomic_path

Images = UInt8[Tensor, "images channels height width"]
Labels = Int64[Tensor, " images"]
Progress = Callable[[float, str], object]

SMALLEST_SIDE = 8  # pixels
FEATURES = 64
WIDTH = 24  # channels of the first layer; the others have twice as many
BATCH_SIZE = 128
FEWEST_STEPS = 360
PEAK_LEARNING_RATE, WARM_UP = 5e-3, 0.25
LABEL_SMOOTHING = 0.05
# Digits stay themselves under these, and would not under flips: radians, a factor around 1, and halves of a side.
ROTATION, SCALING, SHIFT = 0.15, 0.1, 0.125


class Classifier(nn.Module):
    """Convolutions and poolings down to a 2 x 2 map, then `FEATURES` features, then one score per class.

    The number of convolutions grows with the shorter side (3 below 32 pixels, one more at each doubling), so that the
    last map is 2 to 7 pixels there, averaged to 2. The network is used at the size it was made for.

    Raises: InputError for a side below 8 pixels, fewer than 2 classes or no channel.
    """

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        if min(height, width) < SMALLEST_SIDE:
            raise InputError(
                f"the classifier takes images of {SMALLEST_SIDE} pixels a side or more, not {height}x{width}"
            )
        if channels < 1 or classes < 2:
            raise InputError(f"the classifier needs 1 channel and 2 classes or more, not {channels} and {classes}")
        self.shape, self.classes = (channels, height, width), classes
        self.trained_on = 0
        self.held_out_accuracy: float | None = None
        self.depth = max(3, int(math.log2(min(height, width))) - 1)
        widths = [channels, WIDTH, *[2 * WIDTH] * (self.depth - 1)]
        layers: list[nn.Module] = []
        for i in range(self.depth):
            # Pooling straight after the convolution leaves the rest of the layer a quarter of the work.
            pool = [nn.MaxPool2d(2)] if i < self.depth - 1 else []
            convolution = nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False)
            layers += [convolution, *pool, nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        layers += [nn.Linear(4 * widths[-1], FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.7 times as fast on a CPU

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """One score per class (logits) for images in [0, 1]."""
        scores: Tensor = self.head(self.body(x))
        return scores

    def predict(self, images: Images) -> Labels:
        """The most likely class of each image."""
        return self._by_batches(images, lambda x: self(x).argmax(1))

    def features(self, images: Images) -> Float32[Tensor, "images features"]:
        """The `FEATURES` activations below the scores, for the Frechet distance."""
        return self._by_batches(images, self.body)

    def accuracy(self, images: Images, labels: Labels) -> float:
        """The share of `images`, in [0, 1], whose predicted class is their label."""
        check_labels(images, labels, self.classes)
        return (self.predict(images) == labels).double().mean().item()

    def describe(self) -> str:
        """What this classifier is, in words to print beside the numbers it gives."""
        seen = f"{self.trained_on:,} real training images"
        held_out = "" if self.held_out_accuracy is None else f" ({100 * self.held_out_accuracy:.1f} % on held-out)"
        return f"a {self.depth}-layer convolutional classifier trained on {seen}{held_out}"

    def save(self, path: str | Path) -> None:
        """Write weights and description as one safetensors file, whole or not at all.

        Raises: InputError when the file cannot be written.
        """
        facts = {
            "shape": self.shape,
            "classes": self.classes,
            "trained_on": self.trained_on,
            "held_out_accuracy": self.held_out_accuracy,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"classifier": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The classifier that `save` wrote, on the CPU and ready to predict.

        Raises: InputError when the file is missing, damaged, or not a classifier.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts: dict[str, Any] = json.loads((file.metadata() or {})["classifier"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            with torch.device("meta"):  # nothing is initialized, so no random number is drawn
                channels, height, width = facts["shape"]
                classifier = cls(channels, height, width, facts["classes"])
            classifier.load_state_dict(tensors, assign=True)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read the classifier {path}: {error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} does not hold a classifier: {error}") from error
        classifier.trained_on = facts.get("trained_on", 0)
        classifier.held_out_accuracy = facts.get("held_out_accuracy")
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return classifier.eval()

    def _by_batches(self, images: Images, function: Callable[[Tensor], Tensor], batch_size: int = 512) -> Tensor:
        _check_images(images)
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"this classifier takes images {self.shape}, not {tuple(images.shape[1:])}")
        device = self.head.weight.device
        self.eval()
        with torch.inference_mode():
            outputs = [function(_unit_range(batch.to(device))) for batch in images.split(batch_size)]
        # The clone leaves inference mode behind, so that callers may differentiate through what they compute from it.
        return torch.cat(outputs).to(images.device).clone()


def train(
    images: Images,
    labels: Labels,
    classes: int,
    *,
    seconds: float | None = None,
    epochs: int | None = None,
    seed: int = 0,
    held_out: tuple[Images, Labels] | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """A `Classifier` fitted to real images: AdamW, a one-cycle learning rate, slight rotations, scalings and shifts.

    The result is a function of the arguments alone on one machine with one number of threads, unless `seconds` cuts it
    short; the global random state is neither read nor changed.

    Args:
        images: real training images (N, C, H, W), uint8, N >= 2, on the device to train on.
        labels: their classes (N,), in [0, classes).
        seconds: the longest the training may take; the learning rate then falls in time for it.
        epochs: passes over the images; by default one more than 360 batches of 128 take (2 of MNIST).
        held_out: images and labels kept out of the training, to measure `held_out_accuracy` on.
        progress: called after every batch with the fraction done, in (0, 1], and a line of text.

    Raises: InputError for images or labels of a wrong type, shape or range, and for epochs < 1 or seconds <= 0.

    Reference: Smith & Topin 2019, Super-Convergence (one cycle); Szegedy et al. 2016, section 7 (label smoothing).
    """
    started = time.monotonic()
    _check_images(images, at_least=2)
    check_labels(images, labels, classes)
    batches_per_epoch = math.ceil(len(images) / BATCH_SIZE)
    epochs = 1 + math.ceil(FEWEST_STEPS / batches_per_epoch) if epochs is None else epochs
    if epochs < 1 or (seconds is not None and seconds <= 0):
        raise InputError(f"epochs must be 1 or more and seconds above 0, not {epochs} and {seconds}")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would reach the accelerators, which are not forked
        _, channels, height, width = images.shape
        classifier = Classifier(channels, height, width, classes).to(images.device).train()
    optimizer = torch.optim.AdamW(classifier.parameters())
    steps = epochs * batches_per_epoch

    def done(step: int) -> float:
        return max(step / steps, (time.monotonic() - started) / seconds if seconds else 0.0)

    for step, rows in enumerate(_batches(len(images), epochs, batches_per_epoch, generator)):
        if step and done(step) >= 1:
            break
        optimizer.param_groups[0]["lr"] = _one_cycle(done(step))
        rows = rows.to(images.device)
        with torch.enable_grad():
            scores = classifier(_jittered(_unit_range(images[rows]), generator))
            loss = functional.cross_entropy(scores, labels[rows], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if progress:
            epoch = step // batches_per_epoch + 1
            progress(min(1.0, done(step + 1)), f"classifier: epoch {epoch} of {epochs}, loss {loss.item():.3f}")
    classifier.eval().trained_on = len(images)
    if held_out is not None:
        classifier.held_out_accuracy = classifier.accuracy(*held_out)
    return classifier


def _batches(count: int, epochs: int, per_epoch: int, generator: torch.Generator) -> Iterator[Int64[Tensor, " batch"]]:
    """Shuffled row numbers; sizes differ by one at most, since a batch of one image has no variance to norm by."""
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).tensor_split(per_epoch)


def _one_cycle(done: float) -> float:
    """The learning rate after a fraction of the training: half a cosine up from 1/25 of the peak, then down to 0."""
    if done < WARM_UP:
        share = 0.04 + 0.96 * (1 - math.cos(math.pi * done / WARM_UP)) / 2
    else:
        share = (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP)))) / 2
    return PEAK_LEARNING_RATE * share


def _unit_range(images: Images) -> Float32[Tensor, "images channels height width"]:
    return images.float().div(255).contiguous(memory_format=torch.channels_last)


def _jittered(x: Float32[Tensor, "b c h w"], generator: torch.Generator) -> Float32[Tensor, "b c h w"]:
    """Each image turned, scaled and shifted a little by its own draw; edge pixels continue outwards."""
    turn, scale, *shifts = (2 * torch.rand(4, len(x), generator=generator) - 1).unbind()
    cosine, sine = ((1 + SCALING * scale) * f(ROTATION * turn) for f in (torch.cos, torch.sin))
    right, down = (SHIFT * shift for shift in shifts)
    # affine_grid's coordinates are fractions of half a side, so a turn of a non-square image needs the aspect ratio.
    aspect = x.shape[2] / x.shape[3]
    rows = [torch.stack([cosine, -sine * aspect, right], 1), torch.stack([sine / aspect, cosine, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1).to(x.device), list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def _check_images(images: Tensor, at_least: int = 1) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or len(images) < at_least:
        raise InputError(
            f"images must be uint8 (N, C, H, W) with N >= {at_least}, not {images.dtype} {tuple(images.shape)}"
        )


def check_labels(images: Tensor, labels: Tensor, classes: int) -> None:
    """Raises: InputError unless `labels` is int64 (N,), one for each of the images (N, ...), within [0, classes)."""
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(
            f"labels must be int64 of shape ({len(images)},), one per image, not {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"labels must lie in [0, {classes}), not in [{int(labels.min())}, {int(labels.max())}]")
