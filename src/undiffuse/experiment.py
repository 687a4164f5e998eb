"""From a recipe to a trained run folder: data, model, objective and loop put together."""

import contextlib
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import undiffuse
from undiffuse import acceleration, config, pipeline
from undiffuse.acceleration import default_device
from undiffuse.codecs import Pixels
from undiffuse.conditioning import CONDITIONS, Augmentation, Condition
from undiffuse.config import ObjectiveSection, Recipe
from undiffuse.data import SOURCES, Augment, Dataset, Flip, Geometric, RandomCrop, Split
from undiffuse.data.feed import Feed
from undiffuse.errors import InputError
from undiffuse.examples import centred, conditions_by_class, conditions_of, drawn, leading
from undiffuse.files import write_text
from undiffuse.modalities import image
from undiffuse.monitoring import monitored
from undiffuse.noise import NoiseSource
from undiffuse.objective import OBJECTIVES, TIME_LAWS, WEIGHTS, BaseObjective, Objective
from undiffuse.pipeline import Pipeline
from undiffuse.registry import build
from undiffuse.training import Batch, Event, Plan, Run, TrainState, check_tracker, tracking

VALIDATION_SAMPLES = 1024
SAME_STD = 0.01  # relative difference under which two standard deviations of the data are one
MOST_MEASURED = 1 << 27  # numbers that the data's standard deviation is taken over
# what a killed write of one of a run's own files leaves behind
LEFTOVER = re.compile(
    r"\.(recipe|model|best|features|metrics|evaluation|report|compare|step-\d+)-\w+\.partial\.\w+|\.tmp\w{6}"
)
VALIDATION_SEEDS = 1 << 62  # above every seed of training, so that the streams are others


def load_data(recipe: Recipe) -> Split:
    """The recipe's data, training and held out, with every condition it carries. Raises: InputError."""
    load = SOURCES[recipe.data.source]
    sections = {name: condition.model_dump() for name, condition in recipe.condition.items()}
    conditions = {
        name: section
        for name, section in sections.items()
        if not (CONDITIONS[section["name"]].told or CONDITIONS[section["name"]].derives(section))
    }
    offered = {**recipe.data.model_dump(), **recipe.image.model_dump(), "conditions": conditions}
    wanted = {name: offered[name] for name in inspect.signature(load).parameters if name in offered}
    if "path" in wanted and wanted["path"] is None:
        raise InputError(f"the data source {recipe.data.source!r} needs data.path=...")
    if recipe.data.memory == "never" and "memory" not in wanted:
        raise InputError(f"data.memory=never is of folders: the data source {recipe.data.source!r} is read into memory")
    if "size" in wanted:
        wanted["size"] = _size(recipe)
    return load(**wanted)


def _size(recipe: Recipe) -> tuple[int, int]:
    size = recipe.image.size
    if size is None:
        raise InputError("a folder of images needs image.size=..., the height and width to train at")
    return (size, size) if isinstance(size, int) else size


def sample_shape(recipe: Recipe, dataset: Dataset) -> tuple[int, int, int]:
    """(C, H, W) as the model sees it. Raises: InputError where the recipe's image does not fit the data."""
    channels, height, width = dataset.shape
    if recipe.image.size is not None:
        wanted = _size(recipe)
        if recipe.image.crop == "random" and wanted[0] <= height and wanted[1] <= width:
            height, width = wanted
        if wanted != (height, width):
            raise InputError(
                f"image.size is {wanted[0]}x{wanted[1]}, but the samples of {dataset.name} are {height}x{width}"
            )
    if channels != recipe.image.channels:
        raise InputError(
            f"image.channels is {recipe.image.channels}, but the samples of {dataset.name} have {channels}"
        )
    return channels, height, width


def augmentation(recipe: Recipe, shape: Sequence[int], told: Iterable[Condition] = ()) -> Augment:
    """What is done to a training sample each time it is seen: a crop, a flip, then what the model is told of."""
    steps: list[Any] = []
    if recipe.image.crop == "random":
        steps.append(RandomCrop(*shape[1:]))
    if recipe.image.flip != "none":
        steps.append(Flip(recipe.image.flip))
    steps += [Geometric(part.probability) for part in told if isinstance(part, Augmentation)]
    return Augment(steps)


def check_conditions(recipe: Recipe, split: Split, model: Pipeline) -> None:
    """Find out before any work whether every condition fits the samples. Raises: InputError."""
    for name, part in model.parts.items():
        if part.derived or not part.shares_space or recipe.image.crop != "random":
            continue
        sizes = [tuple(values.shape[-2:]) for values in (split.train.conditions[name], split.train.samples)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"image.crop=random cuts samples and pictures alike, but {name} is of {sizes[0]} pixels and the "
                f"samples are of {sizes[1]}: use image.crop=center"
            )
    for dataset in (split.train, split.held_out):
        for name, values in dataset.conditions.items():
            model.parts[name].read(values)
    few = torch.arange(min(2, len(split.train)))
    denoiser = model.guided(1.0, **conditions_of(split.train, few, model))
    model.fitting(denoiser, model.shape)
    for name in recipe.objective.drop_each:
        if name not in model.denoiser.droppable:
            why = "is told in training alone, and always" if name in model.told else "is not optional: it has no null"
            raise InputError(f"objective.drop_each drops {name!r}, which {why}")
    if len(model.told) > 1:
        raise InputError(f"pictures are augmented once, but {' and '.join(model.told)} would each be told of it")


# what the machine and the version decide; it may differ between the sessions of one run
OF_THE_MACHINE = ("device", "precision", "compile", "kernels", "samples_in_memory", "undiffuse")


def whole(recipe: Recipe, split: Split, device: torch.device) -> dict[str, Any]:
    """The recipe as plain values, with a section `resolved` for what the data and the machine decided."""
    shape = sample_shape(recipe, split.train)
    pixels = centred(split.train, shape, _measured(split.train)).float()
    values = config.plain(recipe)
    if recipe.data.path is not None:  # the run can then be evaluated from any folder
        values["data"]["path"] = str(Path(recipe.data.path).expanduser().resolve())
    return values | {
        "resolved": {
            "shape": list(shape),
            "conditions": {name: _facts(name, kind.name, split) for name, kind in recipe.condition.items()},
            "data_std": round(max(float(pixels.std()) / 127.5, 1e-3), 4),
            **acceleration.chosen(recipe.training.precision, recipe.training.compile, device),
            "samples_in_memory": split.train.in_memory,
            "train_samples": len(split.train),
            "held_out_samples": len(split.held_out),
            "undiffuse": undiffuse.__version__,
        }
    }


def _measured(train: Dataset) -> Tensor:
    """The samples whose standard deviation stands for that of all: the first 10,000, or as many others as memory takes.

    Of large pictures, so many would take long to decode. Fewer are drawn from all, because the first may be one class.
    """
    most = min(len(train), 10_000)
    count = min(most, max(2, MOST_MEASURED // math.prod(train.shape)))
    if count == most:
        return torch.arange(most)
    return drawn(len(train), count)


def _facts(name: str, kind: str, split: Split) -> dict[str, Any]:
    """What the data decide of a condition; of one that is made from the sample, what the samples do."""
    train, held_out = (part.conditions.get(name, part.samples[:1]) for part in (split.train, split.held_out))
    return CONDITIONS[kind].facts(train, held_out, split.train.classes.get(name, ()))


# of the section `training`: they change no bit of the weights
FREE_OF_TRAINING = ("compile", "metrics", "metrics_every", "metrics_samples", "best", "track")


def open_folder(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Make the run folder, or check that it holds the same recipe; returns the recipe it holds.

    Raises: InputError for a folder with another recipe, or one that is no run folder.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        foreign = folder.is_dir() and any(not LEFTOVER.fullmatch(entry.name) for entry in folder.iterdir())
        if foreign or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} exists and is not a run folder (it has no recipe.yaml): name another")
        write_text(path, config.to_yaml(spec))
    for place in (folder, *(folder / name for name in ("checkpoints", "samples", "snapshots"))):
        for leftover in (p for p in place.glob(".*") if LEFTOVER.fullmatch(p.name)):
            leftover.unlink(missing_ok=True)
    held = pipeline.read_spec(folder)
    # what the machine and the version decide may differ between the sessions of one run, the first one's holds; and how
    # the data are read may, which changes no bit of them
    free = {"resolved": OF_THE_MACHINE, "data": ("memory", "workers"), "training": FREE_OF_TRAINING}
    ours = {
        **spec,
        **{s: {**spec[s], **{k: held.get(s, {}).get(k) for k in keys}} for s, keys in free.items() if s in spec},
    }
    # an option that is None and one that is not there are the same: the folder may be older than the option
    changes = config.difference(ours, held)
    if changes:
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        raise InputError(
            f"{folder} holds another recipe: {'; '.join(changes[:3])}{more}. "
            "Name another run folder, or delete this one"
        )
    return held


def as_held(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The recipe as the folder's run began with it, where that is the same recipe.

    Its conditions in the folder's order, by which weights and their moments are numbered; and the data's standard
    deviation, which another version may find a little different, by another decoder say.
    """
    held = pipeline.read_spec(folder) if (folder / "recipe.yaml").is_file() else {}
    conditions, std = held.get("condition"), held.get("resolved", {}).get("data_std")
    if isinstance(conditions, dict) and conditions.keys() == spec["condition"].keys():
        spec = {**spec, "condition": {name: spec["condition"][name] for name in conditions}}
    if isinstance(std, float) and abs(std / spec["resolved"]["data_std"] - 1) < SAME_STD:
        spec = {**spec, "resolved": {**spec["resolved"], "data_std": std}}
    return spec


def plan(training: config.Training) -> Plan:
    """The plan of a section `training`. Raises: InputError for one without a bound."""
    if training.steps is None and training.minutes is None:
        raise InputError("training needs a bound: training.steps=... or training.minutes=...")
    names = Plan.__dataclass_fields__
    return Plan(**{name: value for name, value in training.model_dump().items() if name in names})


def validation(
    samples: Tensor, encode: Callable[[Tensor], Tensor], conditions: Callable[[slice], dict[str, Tensor]]
) -> Iterator[Batch]:
    """Held-out samples uint8 (N, C, H, W) and their conditions in batches, with the same seeds at every call."""
    for first in range(0, len(samples), 256):
        rows = slice(first, min(first + 256, len(samples)))
        yield encode(samples[rows]), conditions(rows), VALIDATION_SEEDS + torch.arange(rows.start, rows.stop)


class Experiment:
    """A recipe made ready to train in a folder.

    Everything that can be wrong with the recipe, the data or the folder is found here, before any work.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, device: torch.device | None = None) -> None:
        self.recipe, self.folder = recipe, Path(folder)
        self.device = device or default_device()
        self.split = load_data(recipe)
        spec = as_held(self.folder, whole(recipe, self.split, self.device))
        training, section = recipe.training, recipe.objective
        bounded = plan(training)
        check_tracker(training.track)
        torch.manual_seed(training.seed)
        self.pipeline: Pipeline = pipeline.assemble(spec)
        self.pipeline.check_shape(self.pipeline.shape)
        self.pipeline.check_sampling()
        check_conditions(recipe, self.split, self.pipeline)
        self.pipeline.codec.encode(self.split.train.samples[:1])
        if self.pipeline.parts:
            self.pipeline.check_guidance()
            dropped = section.drop > 0 or any(section.drop_each.values())
            if recipe.sampling.guidance != 1 and not dropped:
                raise InputError(
                    f"sampling.guidance={recipe.sampling.guidance} contrasts conditions with nulls, which "
                    "objective.drop=0 never trains: give objective.drop=0.1, say, or sampling.guidance=1"
                )
        objective = make_objective(section, 256 if isinstance(self.pipeline.codec, Pixels) else None)
        objective.check(self.pipeline.denoiser)
        if not self.pipeline.denoiser.learns_variance and isinstance(objective, Objective):
            for name in ("variance", "steps"):
                if getattr(section, name) != getattr(ObjectiveSection(), name):
                    raise InputError(
                        f"objective.{name} is of the bound that trains a learned variance, and there is none: give "
                        "network.learned_variance=true, or leave it out"
                    )
        self.pipeline.to(self.device)
        self._try(objective.to(self.device))
        self.monitor, best = monitored(training, self.pipeline, self.split, self.folder)
        self.spec = open_folder(self.folder, spec)
        self.settings = spec["resolved"]  # of this session; those in the folder are of the first
        denoiser = self.pipeline.denoiser
        self.state = TrainState(denoiser, objective, training.learning_rate, training.weight_decay)
        acceleration.accelerate(denoiser.network, spec["resolved"], self.device)  # of this session, wherever it runs
        self.run = Run(self.folder, self.state, bounded, best)
        self.resumed = self.run.resume()

    @torch.no_grad()
    def _try(self, objective: BaseObjective) -> None:
        """A loss of two samples, before anything is written. Raises: InputError where there is none that is finite."""
        rows = torch.arange(min(2, len(self.split.train)))
        samples = centred(self.split.train, self.pipeline.shape, rows).to(self.device)
        source = NoiseSource(VALIDATION_SEEDS + rows, self.pipeline.shape, self.device)
        denoiser = self.pipeline.denoiser.eval()
        conditions = conditions_of(self.split.train, rows, self.pipeline)
        loss = objective(denoiser, self.pipeline.codec.encode(samples), conditions, objective.draw(denoiser, source))
        if not bool(loss.isfinite().all()):
            raise InputError(
                f"the loss of an untrained network is {loss.tolist()}: the weight, the times or the range of this "
                "recipe reach levels at which it has no finite value"
            )

    @property
    def finished(self) -> bool:
        """Whether the plan was carried out already."""
        return self.state.finished

    def train(self, preview: bool = True) -> Generator[Event, None, None]:
        """Train to the end of the recipe's budget; yields events. See `undiffuse.training.Run`."""
        parts = self.pipeline.parts
        feed = Feed(
            self.split.train,
            self.pipeline.codec.encode,
            augmentation(self.recipe, self.pipeline.shape, self.pipeline.told.values()),
            self.recipe.training.batch_size,
            self.recipe.training.seed,
            self.device,
            paired=[name for name, part in parts.items() if part.shares_space and not part.derived],
            derive={name: part.derive for name, part in parts.items() if part.derived},
            told=list(self.pipeline.told),
            decoders=self.recipe.data.workers,
        )
        draw: Callable[[int], None] | None = self.preview if preview else None
        monitor, training, step = self.monitor, self.recipe.training, self.state.step
        measure = None if monitor is None else lambda step: monitor(self.averaged())
        with contextlib.closing(feed), tracking(training.track, self.folder, self.spec, step) as self.run.trackers:
            yield from self.run.train(feed.batch, self.held_out, draw, lambda: feed.waited, measure)

    def held_out(self) -> Iterator[Batch]:
        """Held-out batches with fixed seeds, at most `VALIDATION_SAMPLES` samples."""
        few, made = self._validated, self.pipeline
        samples = centred(few, made.shape, slice(None)).to(self.device)
        yield from validation(samples, made.codec.encode, lambda rows: conditions_of(few, rows, made))

    @functools.cached_property
    def _validated(self) -> Dataset:
        return leading(self.split.held_out, VALIDATION_SAMPLES)

    def averaged(self) -> Pipeline:
        """The pipeline with the averaged weights as they stand."""
        made = self.pipeline
        average = self.state.average
        return Pipeline(average, made.codec, made.shape, made.sampling, made.name)

    def preview(self, step: int) -> None:
        """Write samples/step-XXXXXXXX.png: the same seeds and conditions at every step, one row per class."""
        averaged = self.averaged()
        rows = min(len(averaged.classes), 10) or 4
        images = averaged.sample(rows * 8, **conditions_by_class(averaged, self.split, rows, 8), steps=10)
        path = self.folder / "samples" / f"step-{step:08d}.png"
        facts = {"recipe": averaged.name, "run": str(self.folder), "step": step, "seed": 0, "n": rows * 8, "steps": 10}
        image.save(str(path), images, metadata={"undiffuse": json.dumps(facts)}, overwrite=True, columns=8)
        for tracker in self.run.trackers:
            tracker.picture(step, path)


def make_objective(section: ObjectiveSection, levels: int | None) -> BaseObjective:
    """The objective of a recipe, for data with so many levels. Raises: InputError for what has no meaning for it."""
    offered: dict[str, Any] = {**section.model_dump(exclude={"name", "weight", "times"}), "levels": levels}
    offered["weight"] = build("weight", WEIGHTS, **_parts(section.weight))
    offered["times"] = build("time law", TIME_LAWS, **_parts(section.times))
    taken = inspect.signature(OBJECTIVES[section.name]).parameters
    for name in offered.keys() - taken.keys() - {"levels"}:
        if getattr(section, name) != getattr(ObjectiveSection(), name):
            raise InputError(
                f"objective.{name} has no meaning for the objective {section.name}: objective={section.name}, without "
                ".name, takes it back"
            )
    return OBJECTIVES[section.name](**{name: value for name, value in offered.items() if name in taken})


def _parts(section: config.Named) -> dict[str, Any]:
    arguments = section.model_dump()
    return {"name": arguments.pop("name"), "arguments": arguments}


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run folder. Raises: InputError for one that was imported."""
    values = {key: value for key, value in pipeline.read_model_spec(run).items() if key != "resolved"}
    if "data" not in values:
        raise InputError(f"{run} was imported, so it names no data to measure it against")
    return config.validated(values)


def load_experiment_data(run: Path) -> tuple[Recipe, Split]:
    """The recipe and the data of a run folder, for evaluating it."""
    recipe = recipe_of(run)
    return recipe, load_data(recipe)


def parameters(module: torch.nn.Module) -> int:
    """How many numbers are learned."""
    return sum(math.prod(p.shape) for p in module.parameters())


__all__ = ["Experiment", "load_data", "load_experiment_data", "parameters"]
