"""Sampling from a trained model in the data's own form."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse import samplers
from undiffuse.adapters import Compiled
from undiffuse.conditioning import Condition, Conditioner, Label
from undiffuse.denoiser import BaseDenoiser, Denoiser
from undiffuse.errors import InputError, unknown
from undiffuse.guidance import ClassifierFree, Guidance
from undiffuse.modalities import image
from undiffuse.samplers import Sampler, stored

DEFAULTS: dict[str, Any] = {"sampler": "unipc:variable=index", "grid": "vp-quadratic", "steps": 20, "guidance": 1.0}
Steering = Callable[[BaseDenoiser], BaseDenoiser]  # a guidance, or several around one another
Guided = float | Steering | None  # or the scale of classifier-free guidance, or the default
Images = np.ndarray  # (N, H, W) for one channel, else (N, H, W, C); uint8, or what the codec decodes to


class Pipeline:
    """Sampling from a trained model in the data's own form.

    denoiser, codec: as trained; shape: of one sample as the model sees it, (C, H, W); sampling: the defaults
    {"sampler", "grid", "steps", "guidance"}; name: of the recipe; grids: time grids fitted to this model, by name and
    number of steps.

    Wherever a sampler is named, other toolkits' names will do (`samplers.understand`). A grid is the one given, else
    the one that the sampler's name asks for ("DPM++ 2M Karras"), else the default.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Any,
        shape: Sequence[int],
        sampling: Mapping[str, Any] | None = None,
        name: str = "",
        grids: Mapping[str, stored.ByStep] | None = None,
    ) -> None:
        self.denoiser, self.codec, self.name = denoiser, codec, name
        self.grids: Mapping[str, stored.ByStep] = grids or {}
        self.shape = tuple(shape)
        self.sampling = {**DEFAULTS, **(sampling or {})}
        self.prefer(self.sampling["sampler"])

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next((parameter.device for parameter in self.denoiser.network.parameters()), torch.device("cpu"))

    @property
    def parts(self) -> dict[str, Condition]:
        """The conditions that the model can be asked for, by name."""
        return {name: part for name, part in self._every_part() if not part.told}

    @property
    def told(self) -> dict[str, Condition]:
        """The conditions that it was told in training alone, by name."""
        return {name: part for name, part in self._every_part() if part.told}

    def _every_part(self) -> list[tuple[str, Condition]]:
        conditioner = self.denoiser.conditioner
        return [(n, conditioner.part(n)) for n in conditioner.parts] if isinstance(conditioner, Conditioner) else []

    @property
    def label(self) -> str | None:
        """The name of the first condition that is a label."""
        return next((name for name, part in self.parts.items() if isinstance(part, Label)), None)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of `label`."""
        part = self.parts[self.label] if self.label else None
        return part.classes if isinstance(part, Label) else ()

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raises: InputError where the network says that it cannot take samples of this shape."""
        check = getattr(self.denoiser.network, "check_shape", None)
        try:
            if check is not None:
                check(*shape)
        except ValueError as error:
            raise InputError(str(error)) from error

    def check_sampling(
        self, sampler: str | Sampler | None = None, steps: int | None = None, grid: str | None = None
    ) -> None:
        """Raises: InputError where this sampler cannot start on this model's schedule and range."""
        x = torch.zeros(1, *self.shape)
        self.sampler(sampler).init(self.denoiser, x, self.times(steps, grid, sampler)[:, None])

    def _understood(self, sampler: str | Sampler | None) -> tuple[Sampler, str | None]:
        chosen = self.sampling["sampler"] if sampler is None else sampler
        return (chosen, None) if isinstance(chosen, Sampler) else samplers.understand(chosen)

    def sampler(self, sampler: str | Sampler | None = None) -> Sampler:
        """A sampler by name, the default one, or the one given."""
        return self._understood(sampler)[0]

    def prefer(self, sampler: str | Sampler | None = None, steps: int | None = None, grid: str | None = None) -> None:
        """Other defaults of sampling from now on; what is None stays, but for the grid that the sampler asks for."""
        given = {"sampler": sampler, "steps": steps, "grid": self.grid(grid, sampler)}
        self.sampling |= {name: value for name, value in given.items() if value is not None}

    def grid(self, grid: str | None = None, sampler: str | Sampler | None = None) -> str:
        """The name of the time grid: the one given, the one that the sampler's name asks for, or the default."""
        asked = None if sampler is None else self._understood(sampler)[1]
        name: str = grid or asked or self.sampling["grid"]
        return name

    def times(self, steps: int | None = None, grid: str | None = None, sampler: str | Sampler | None = None) -> Tensor:
        """The time grid (steps + 1,) on this model's range, from the defaults where nothing is given.

        Raises: InputError for an unknown grid, and for a number of steps that a fitted one has not.
        """
        denoiser, name = self.denoiser, self.grid(grid, sampler)
        count = self.sampling["steps"] if steps is None else steps
        if name in self.grids:
            points = stored.points(name, self.grids[name], count)
            if float(points[0]) > denoiser.t_max * (1 + 1e-6) or float(points[-2]) < denoiser.t_min * (1 - 1e-6):
                raise InputError(
                    f"the fitted grid {name!r} goes from t = {float(points[0]):.6g} to {float(points[-2]):.6g}, but "
                    f"this model knows [{denoiser.t_min:.6g}, {denoiser.t_max:.6g}]: fit it again"
                )
            return points
        if name not in samplers.GRIDS:
            raise unknown("time grid", name, [*samplers.GRIDS, *self.grids])
        return samplers.grid.named(name, denoiser.schedule, count, denoiser.t_min, denoiser.t_max)

    def scale(self, guidance: float | None, conditional: bool) -> float:
        """The scale of guidance: the one given, the default, or 1 where there is no condition."""
        default: float = self.sampling["guidance"] if conditional else 1.0
        return default if guidance is None else guidance

    def check_guidance(self, guidance: float | None = None, given: Iterable[str] | None = None) -> None:
        """Raises: InputError for guidance where none of the given conditions (by default all) has a null."""
        scale, names = self.scale(guidance, bool(self.parts)), list(self.parts if given is None else given)
        if not math.isfinite(scale):
            raise InputError(f"the scale of guidance must be a finite number, not {scale}")
        if scale != 1.0 and not names:
            raise InputError(f"guidance={scale} contrasts a condition with its null, and this model takes no condition")
        if scale != 1.0 and not any(self.parts[name].optional for name in names if name in self.parts):
            raise InputError(
                f"guidance={scale} contrasts a condition with its null, but {' and '.join(names)} has none (it is not "
                "optional): use guidance=1, in a recipe sampling.guidance=1"
            )

    def guided(self, guidance: Guided = None, **condition: object) -> BaseDenoiser:
        """The denoiser under a condition, None being none, and guidance.

        guidance: the scale of classifier-free guidance, where 1 is the conditional model itself, at half the cost; or a
        function Denoiser -> Denoiser: `lambda denoiser: Interval(ClassifierFree(denoiser, 3.0), -2, 5)`.

        Raises: InputError for guidance without a condition, and for conditions that the model does not know.
        """
        given = {name: value for name, value in condition.items() if value is not None}
        if callable(guidance):
            with torch.no_grad():
                return guidance(self.denoiser.eval()).given(**given)
        if guidance is not None and not isinstance(guidance, int | float):
            raise InputError(
                f"guidance is a number or a function of the denoiser, not {guidance!r:.80}: scales for each sample go "
                "into one, lambda denoiser: ClassifierFree(denoiser, scales)"
            )
        scale = self.scale(guidance, bool(given))
        if scale != 1.0 and not given:
            raise InputError(f"guidance={scale} needs a condition to guide to, such as label=0")
        if given:
            self.check_guidance(scale, given)
        denoiser = self.denoiser.eval()
        with torch.no_grad():
            return (denoiser if scale == 1.0 else ClassifierFree(denoiser, scale)).given(**given)

    def walk(
        self,
        seeds: Sequence[int],
        *,
        condition: Mapping[str, object] | None = None,
        guidance: Guided = None,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        grid: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """One batch, step by step: x (B, C, H, W) as the model sees it, at each of `times(steps, grid, sampler)`."""
        denoiser = self.guided(guidance, **(condition or {}))
        yield from self._walk(denoiser, seeds, sampler, steps, grid, shape)

    def _walk(
        self,
        denoiser: BaseDenoiser,
        seeds: Sequence[int],
        sampler: str | Sampler | None,
        steps: int | None,
        grid: str | None,
        shape: Sequence[int] | None,
    ) -> Iterator[Tensor]:
        x = denoiser.prior(seeds, self.fitting(denoiser, shape))
        yield x
        yield from samplers.walk(denoiser, self.sampler(sampler), x, self.times(steps, grid, sampler), seeds)

    def fitting(self, denoiser: BaseDenoiser, shape: Sequence[int] | None) -> tuple[int, ...]:
        """The shape asked for, else that of a picture condition, else the one trained at. Raises: InputError."""
        beside = getattr(denoiser, "condition", {}).get("image")
        space = () if beside is None else tuple(beside.shape[-len(self.shape[1:]) :])
        told = all(size == 1 for size in space)  # by a null, or not at all
        found = tuple(shape) if shape is not None else self.shape if told else (self.shape[0], *space)
        self.check_shape(found)
        if not told and found[1:] != space:
            sizes = "x".join(map(str, found[1:])), "x".join(map(str, space))
            raise InputError(f"samples of {sizes[0]} were asked for, but the condition is for samples of {sizes[1]}")
        return found

    def read(self, n: int, condition: Mapping[str, object], of_guidance: Iterable[str] = ()) -> dict[str, Any]:
        """Raw conditions as tensors with 1 or n rows; what is None is left out.

        of_guidance: names that guidance knows. What it alone knows (the class of a classifier) stays raw.

        Raises: InputError for names that are not known, values that are none, and other numbers of rows.
        """
        given = {name: value for name, value in condition.items() if value is not None}
        known = dict.fromkeys((*self.parts, *of_guidance))
        if given and not known:
            raise InputError(f"this model is unconditional, but was given {', '.join(given)}")
        values: dict[str, Any] = {}
        for name, raw in given.items():
            if name not in known:
                raise unknown("condition", name, known)
            if name not in self.parts:
                single = isinstance(raw, str) or np.ndim(raw) == 0  # type: ignore[arg-type]
                values[name] = [raw] if single else raw
                self._check_rows(name, values[name], n)
                continue
            try:
                values[name] = self.parts[name].read(raw)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"the condition {name!r}: {' '.join(str(error).split())}") from error
            self._check_rows(name, values[name], n)
        return values

    @staticmethod
    def _check_rows(name: str, values: Any, n: int) -> None:
        if len(values) not in (1, n):
            raise InputError(f"{len(values)} values of {name} were given for {n} samples: give 1 or {n}")

    def sample(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        guidance: Guided = None,
        sampler: str | Sampler | None = None,
        steps: int | None = None,
        grid: str | None = None,
        shape: Sequence[int] | None = None,
        batch_size: int = 256,
        progress: Callable[[int, int], None] | None = None,
        **condition: object,
    ) -> Images:
        """n samples as uint8 (N, H, W), or (N, H, W, C).

        condition: by name, one value for all or one per sample, such as label=7 (`parts` says what each takes);
        guidance: the scale s, 1 = plain conditional, or a function Denoiser -> Denoiser (see `guided`), its scales for
        all samples or one for each; seed: sample i is the picture of seed + i, whatever n and batch_size are; steps:
        network levels of the grid; shape: (C, H, W), by default that of a picture condition, or the training shape;
        batch_size: samples at a time, at most;
        progress(done, n): called after every batch.

        Raises: InputError for names that are not known, values that are none, and sizes the network cannot take.
        """
        if n < 1:
            raise InputError(f"the number of samples must be at least 1, not {n}")
        if not 0 <= seed < 2**63 - n:
            raise InputError(f"the seed must be 0 or more and below 2^63 - n, not {seed}")
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}")
        steered = guidance(self.denoiser.eval()) if callable(guidance) else None
        if callable(guidance) and not isinstance(steered, BaseDenoiser):
            raise InputError(f"guidance is a function that gives a denoiser, not {steered!r:.80}")
        if isinstance(steered, Guidance):
            steered.check_batch(n)
        values = self.read(n, condition, () if steered is None else steered.conditions)
        shared = all(len(value) == 1 for value in values.values())  # by all samples: then encoded once for all batches
        denoiser = self.guided(guidance, **values) if shared and steered is None else None
        images = []
        # as many batches, but of one size within 1: a last, small one would leave a device idle, or be compiled
        size = math.ceil(n / math.ceil(n / batch_size))
        for first in range(0, n, size):
            seeds = range(seed + first, seed + min(first + size, n))
            here = {k: v[first : first + size] if len(v) == n else v for k, v in values.items()}
            if denoiser is not None:
                given = denoiser
            elif steered is None:
                given = self.guided(guidance, **here)
            else:
                given = steered.rows(torch.arange(first, first + len(seeds))).given(**here)
            for x in self._walk(given, seeds, sampler, steps, grid, shape):  # noqa: B007  the last is what is wanted
                pass
            if not bool(x.isfinite().all()):
                raise InputError(
                    f"{self.sampler(sampler)!r} in {len(self.times(steps, grid, sampler)) - 1} steps gave samples that "
                    "are not finite: take more steps, less noise, or another sampler"
                )
            images.append(self.decode(x))
            if progress:
                progress(min(first + size, n), n)
        return np.concatenate(images)

    def decode(self, x: Tensor) -> Images:
        """x_0 (B, C, H, W) as the model sees it, as pictures."""
        return image.to_array(self.codec.decode(x))

    def to(self, device: torch.device | str) -> "Pipeline":
        """Move the denoiser; returns self."""
        self.denoiser.to(device)
        return self

    def compile(self) -> "Pipeline":
        """Compile the network for sampling where it is now (`adapters.Compiled`); returns self.

        Samples stay what they are, to float tolerance. The first call of every shape of batch takes longer, and
        `warmup_seconds` says how long. For sampling alone: the weights of a compiled network go by other names.

        Raises: InputError where there is no compiler for it.
        """
        if not isinstance(self.denoiser.network, Compiled):
            self.denoiser.network = Compiled(self.denoiser.network)
        return self

    @property
    def warmup_seconds(self) -> float:
        """What compilation has taken so far; 0 where nothing is compiled."""
        network = self.denoiser.network
        return network.warmup_seconds if isinstance(network, Compiled) else 0.0
