"""A classifier that knows noise, trained beside a run on the run's own data: what classifier guidance steers by."""

import contextlib
import functools
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator

import undiffuse
from undiffuse import acceleration, config, pipeline, schedule
from undiffuse.acceleration import default_device
from undiffuse.codecs import CODECS
from undiffuse.config import Configuration, Named, Recipe, Training
from undiffuse.data import Dataset, Split
from undiffuse.data.feed import Feed
from undiffuse.errors import InputError, unknown
from undiffuse.examples import centred, leading
from undiffuse.experiment import (
    VALIDATION_SAMPLES,
    augmentation,
    load_data,
    open_folder,
    plan,
    recipe_of,
    validation,
)
from undiffuse.guidance import NoisyClassifier
from undiffuse.networks import CLASSIFIERS
from undiffuse.noise import NoiseSource
from undiffuse.prediction import Level
from undiffuse.registry import build
from undiffuse.schedule import along_batch
from undiffuse.training import Batch, ClassifierObjective, Event, Run, TrainState, check_tracker, read_metrics, tracking
from undiffuse.weights import fill, read

FOLDER = "classifier"  # of the run
MEASURED = (0.1, 0.3, 0.5, 0.7, 0.9)  # times at which the accuracy is told


class ClassifierRecipe(Configuration):
    """How a classifier is trained. Data, shape and schedule are those of the run beside it.

    The budget is for small data: on the 8x8 digits it is 41 s of one CPU core that others use too, after which 78 % of
    samples at scale 2 show the digit asked for (docs/guidance.md).
    """

    network: Named = Named(name="encoder", width=32, multipliers=[1, 2], blocks=1, dropout=0.1)
    training: Training = Training(steps=600)

    @field_validator("training")
    @classmethod
    def _of_a_classifier(cls, training: Training) -> Training:
        for key in ("metrics", "best"):
            if getattr(training, key) is not None:
                raise InputError(
                    f"training.{key} is of models that draw samples, and this is a classifier: leave it out"
                )
        return training

    @field_validator("network")
    @classmethod
    def _known(cls, network: Named) -> Named:
        if network.name not in CLASSIFIERS:
            raise unknown("network", network.name, CLASSIFIERS)
        for key in ("channels", "classes"):
            if key in network.model_dump():
                raise InputError(f"network.{key} of a classifier is decided by the data of its run: leave it out")
        return network


def labelled(recipe: Recipe) -> tuple[str, Split]:
    """The name of the class, and the run's data with it: the run's first label, else what its data call `label`.

    Raises: InputError for data without two classes.
    """
    name = next((name for name, kind in recipe.condition.items() if kind.name == "label"), "label")
    if recipe.condition.get(name, Named(name="label")).name != "label":
        raise InputError(f"no condition of this run is a label, and the name 'label' is that of a {name}")
    try:
        split = load_data(recipe.model_copy(update={"condition": {name: Named(name="label")} | recipe.condition}))
    except InputError as error:
        raise InputError(f"a classifier needs data with classes: {error}") from error
    if len(split.train.classes[name]) < 2:
        raise InputError(f"a classifier needs two classes or more, and {split.train.name} has one")
    return name, split


def assemble(spec: Mapping[str, Any]) -> NoisyClassifier:
    """An untrained classifier from its whole recipe, as RUN/classifier/recipe.yaml holds it."""
    resolved, network, noise = spec["resolved"], dict(spec["network"]), dict(spec["schedule"])
    sizes = {"channels": resolved["shape"][0], "classes": len(resolved["classes"])}
    made = build("network", CLASSIFIERS, network.pop("name"), network | sizes)
    try:
        made.check_shape(*resolved["shape"])  # type: ignore[operator]
    except ValueError as error:
        raise InputError(str(error)) from error
    return NoisyClassifier(
        made,
        schedule.named(noise.pop("name"), **noise),
        resolved["classes"],
        data_std=resolved["data_std"],
        t_min=spec["range"]["t_min"],
        t_max=spec["range"]["t_max"],
        precision=torch.bfloat16 if resolved["precision"] == "bfloat16" else None,
    )


def load_classifier(run: str | Path, device: torch.device | str | None = None) -> NoisyClassifier:
    """The classifier of a run folder, with its averaged weights. Raises: InputError where none was trained."""
    folder = Path(run) / FOLDER
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{run} has no classifier: train one: undiffuse train-classifier {run}")
    try:
        classifier = assemble(pipeline.read_spec(folder))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / 'recipe.yaml'} is no classifier's recipe of this version: {error!r}") from error
    fill(classifier, read(folder / "model.safetensors")[0], folder / "model.safetensors")
    return classifier.requires_grad_(False).eval().to(device or default_device())


class ClassifierExperiment:
    """A classifier of a run's data, made ready to train in RUN/classifier.

    Everything that can be wrong with the recipe, the data or the folder is found here, before any work.
    """

    def __init__(self, run: str | Path, recipe: ClassifierRecipe, device: torch.device | None = None) -> None:
        self.recipe, self.folder = recipe, Path(run) / FOLDER
        self.device = device or default_device()
        beside = pipeline.read_model_spec(Path(run))
        self.of = recipe_of(Path(run))
        self.name, self.split = labelled(self.of)
        self.shape = tuple(beside["resolved"]["shape"])
        self.codec: Any = build("codec", CODECS, beside["codec"], {})
        bounded = plan(recipe.training)
        check_tracker(recipe.training.track)
        spec = {
            **config.plain(recipe),
            "schedule": beside["schedule"],
            "range": beside["range"],
            "resolved": {
                "shape": list(self.shape),
                "condition": self.name,
                "classes": list(self.split.train.classes[self.name]),
                "data_std": beside["resolved"]["data_std"],
                **acceleration.chosen(recipe.training.precision, recipe.training.compile, self.device),
                "samples_in_memory": self.split.train.in_memory,
                "train_samples": len(self.split.train),
                "held_out_samples": len(self.split.held_out),
                "undiffuse": undiffuse.__version__,
            },
        }
        torch.manual_seed(recipe.training.seed)
        classifier = assemble(spec).to(self.device)
        if isinstance(classifier.schedule, torch.nn.Module):  # learned with the run, and not to be learned again
            trained = pipeline.load(Path(run), device="cpu").denoiser.schedule
            assert isinstance(trained, torch.nn.Module)
            classifier.schedule.load_state_dict(trained.state_dict())
            classifier.schedule.requires_grad_(False)
        self.spec = open_folder(self.folder, spec)
        self.settings = spec["resolved"]  # of this session; those in the folder are of the first
        self.state = TrainState(
            classifier, ClassifierObjective(self.name), recipe.training.learning_rate, recipe.training.weight_decay
        )
        acceleration.accelerate(classifier.network, spec["resolved"], self.device)
        self.run = Run(self.folder, self.state, bounded)
        self.resumed = self.run.resume()

    @property
    def finished(self) -> bool:
        """Whether the plan was carried out already."""
        return self.state.finished

    def train(self) -> Generator[Event, None, None]:
        """Train to the end of the recipe's budget; yields events. See `undiffuse.training.Run`."""
        training = self.recipe.training
        feed = Feed(
            self.split.train,
            self.codec.encode,
            augmentation(self.of, self.shape),
            training.batch_size,
            training.seed,
            self.device,
            decoders=self.of.data.workers,
        )
        track, step = training.track, self.state.step
        with contextlib.closing(feed), tracking(track, self.folder, self.spec, step) as self.run.trackers:
            yield from self.run.train(feed.batch, self.held_out, waited=lambda: feed.waited)

    def held_out(self) -> Iterator[Batch]:
        """Held-out batches with fixed seeds, at most `VALIDATION_SAMPLES` samples."""
        samples, labels = centred(self._validated, self.shape, slice(None)), self._validated.conditions[self.name]
        yield from validation(samples.to(self.device), self.codec.encode, lambda rows: {self.name: labels[rows]})

    @functools.cached_property
    def _validated(self) -> Dataset:
        return leading(self.split.held_out, VALIDATION_SAMPLES)

    def accuracy(self) -> dict[str, float]:
        """The share of held-out samples whose class is told right, by time; measured once, then read from the log."""
        for line in read_metrics(self.folder):
            if "accuracy" in line and line["step"] == self.state.step:
                found: dict[str, float] = line["accuracy"]
                return found
        classifier = self.state.average
        times = [t for t in MEASURED if classifier.t_min <= t <= classifier.t_max]
        accuracy = {str(t): round(self._accuracy(classifier, t), 4) for t in times}
        self.run.log(step=self.state.step, accuracy=accuracy)
        return accuracy

    @torch.no_grad()
    def _accuracy(self, classifier: NoisyClassifier, t: float) -> float:
        level, right = Level(classifier.schedule, t), []
        for x0, condition, seeds in self.held_out():
            noise = NoiseSource(seeds, x0.shape[1:], x0.device).normal("noise")
            alpha, sigma = (along_batch(part.expand(len(x0)), x0) for part in (level.alpha, level.sigma))
            x_t = alpha * x0 + sigma * noise
            right.append(classifier.log_prob(x_t, t).argmax(1).cpu() == condition[self.name])
        return float(torch.cat(right).double().mean())
