"""Recipes: whole, validated, printable configurations. Unknown keys are refused with the nearest known name."""

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from undiffuse import metrics
from undiffuse.codecs import CODECS
from undiffuse.conditioning import CONDITIONS
from undiffuse.conditioning.conditioner import check_name
from undiffuse.data import SOURCES
from undiffuse.errors import InputError, unknown
from undiffuse.metrics.suite import NUMBERS
from undiffuse.networks import NETWORKS
from undiffuse.objective import OBJECTIVES, TIME_LAWS, WEIGHTS
from undiffuse.pipeline import DEFAULTS, Pipeline
from undiffuse.prediction import PREDICTIONS
from undiffuse.samplers import GRIDS, understand
from undiffuse.schedule import SCHEDULES
from undiffuse.training import TRACKERS

# names of conditions must not be those of the arguments they stand beside in `Pipeline.sample`
RESERVED = set(inspect.signature(Pipeline.sample).parameters)

VALIDATION_LOSS = "validation_loss"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class Named(BaseModel):
    """A registry entry by name, with its own arguments beside it; they are checked where it is built."""

    model_config = ConfigDict(extra="allow", validate_assignment=True)
    name: str


class Data(Section):
    source: str = "digits"
    path: str | None = None
    held_out: float = Field(0.1, gt=0, lt=1, description="the share kept out of training where the data names no split")
    skip_corrupt: bool = Field(False, description="leave out the files of a folder that cannot be read")
    memory: Literal["auto", "always", "never"] = Field(
        "auto", description="whether the pictures of a folder are kept there; auto: where they fit"
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="processes that decode pictures not kept in memory; by default one a processor, up to 8",
    )


class Image(Section):
    size: int | tuple[int, int] | None = Field(None, description="height and width; folders need it")
    channels: Literal[1, 3, 4] = 3
    crop: Literal["center", "random"] = "center"
    flip: Literal["none", "horizontal", "vertical"] = "none"


class Range(Section):
    t_min: float | None = Field(None, gt=0, lt=1)
    t_max: float = Field(1.0, gt=0, le=1)


class ObjectiveSection(Section):
    name: str = "weighted"
    weight: Named = Named(name="simple")
    times: Named = Named(name="stratified")
    drop: float = Field(0.1, ge=0, lt=1, description="the probability of dropping a sample's conditions together")
    drop_each: dict[str, float] = Field({}, description="besides, of dropping each alone, by its name")
    offset: float = Field(0.0, ge=0)
    uncertainty: bool = Field(False, description="learn a weight of each noise level besides")
    variance: float = Field(0.001, gt=0, description="the share of the bound that trains a learned variance")
    steps: int = Field(1000, ge=2, description="of the discrete bound, where the schedule is no table")


class Training(Section):
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(50, ge=1, description="steps; a budget in minutes becomes a step count at their end")
    clip: float = Field(1.0, gt=0)
    ema_width: float = Field(0.1, gt=0, lt=0.28, description="of the averaging window, relative to the run")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | None = Field(None, description="torch.compile of the network; by default on CUDA")
    seed: int = Field(0, ge=0, lt=2**22)
    log_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    validate_every: int = Field(200, ge=1)
    sample_every: int = Field(500, ge=1)
    snapshot_every: int | None = Field(None, ge=1, description="steps at which the averaged weights are kept for good")
    metrics: list[str] | None = Field(None, description="measured on the way, of the averaged weights")
    metrics_every: int = Field(500, ge=1, description="steps")
    metrics_samples: int = Field(200, ge=2, description="samples that are drawn for them each time")
    best: str | None = Field(None, description="validation_loss, or a metric: the weights where it is best are kept")
    track: str | None = Field(None, description="where the log is shown besides: tensorboard, wandb, none")

    @field_validator("metrics", mode="before")
    @classmethod
    def _several_metrics(cls, given: Any) -> Any:
        return [name.strip() for name in given.split(",")] if isinstance(given, str) else given

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: list[str] | None) -> list[str] | None:
        metrics.check(names or ())
        return names or None

    @field_validator("best")
    @classmethod
    def _known_number(cls, name: str | None) -> str | None:
        if name not in (None, VALIDATION_LOSS) and name not in NUMBERS:
            raise unknown("number to be best in", name, [VALIDATION_LOSS, *NUMBERS])
        if name not in (None, VALIDATION_LOSS) and metrics.better(str(name)) is None:
            raise InputError(f"no weights are best in {name}: neither lower nor higher is better of it")
        return name

    @field_validator("track")
    @classmethod
    def _known_tracker(cls, name: str | None) -> str | None:
        if name is not None and name not in (*TRACKERS, "none"):
            raise unknown("tracker", name, [*TRACKERS, "none"])
        return None if name == "none" else name

    @model_validator(mode="after")
    def _one_bound(self) -> "Training":
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give training.steps or training.minutes, not both")
        return self


class Sampling(Section):
    sampler: str = DEFAULTS["sampler"]
    grid: str = Field(
        DEFAULTS["grid"], description='where the sampler\'s name asks for none, as "DPM++ 2M Karras" does'
    )
    steps: int = Field(20, ge=1)
    guidance: float = 1.5


class Configuration(Section):
    """A whole configuration, which overrides change."""

    def changed(self, overrides: Sequence[str]) -> Self:
        """This configuration with `key=value` overrides, `key` dotted and `value` YAML: `training.steps=100`.

        A section that is a name with arguments takes a bare name too: `schedule=flow`; that drops the old arguments.
        A budget of one kind replaces one of the other: `training.steps=100` takes `training.minutes` back.

        Raises: InputError for an override that is not key=value, an unknown key, or a value that is not allowed.
        """
        values = self.model_dump()
        # a name drops the arguments beside it, so names come before arguments, however they are ordered
        for override in sorted(overrides, key=_depth):
            key, equals, text = override.partition("=")
            if not equals:
                raise InputError(f"overrides have the form key=value, not {override!r}")
            try:
                # a path is text, whatever YAML would make of it
                value = text if key == "data.path" else yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise InputError(f"the value of {key} cannot be read: {text!r}") from error
            value = value if key == "data.path" else _numbers(value)
            _assign(values, type(self), key, value)
        given = {override.partition("=")[0] for override in overrides}
        for bound, other in (("steps", "minutes"), ("minutes", "steps")):
            if f"training.{bound}" in given and f"training.{other}" not in given and values["training"][bound]:
                values["training"][other] = None
        return validated(values, type(self))


class Recipe(Configuration):
    """A whole recipe. `undiffuse train NAME --print` shows one."""

    name: str
    data: Data = Data()
    image: Image = Image()
    condition: dict[str, Named] = {}
    codec: str = "pixels"
    network: Named = Named(name="unet")
    schedule: Named = Named(name="cosine")
    prediction: Named = Named(name="v")
    range: Range = Range()
    objective: ObjectiveSection = ObjectiveSection()
    training: Training = Training()
    sampling: Sampling = Sampling()

    @field_validator("condition", mode="before")
    @classmethod
    def _named_conditions(cls, given: Any) -> Any:
        return _conditions(given)

    @model_validator(mode="after")
    def _known_names(self) -> "Recipe":
        for name in self.condition:
            check_name(name)
            if name in RESERVED:
                raise InputError(f"a condition cannot be called {name!r}, which is an option of sampling: name another")
        for name in self.objective.drop_each:
            if name not in self.condition:
                raise unknown("condition", name, self.condition)
        names: tuple[tuple[str, str, Mapping[str, object]], ...] = (
            ("data source", self.data.source, SOURCES),
            *(("kind of condition", condition.name, CONDITIONS) for condition in self.condition.values()),
            ("codec", self.codec, CODECS),
            ("network", self.network.name, NETWORKS),
            ("schedule", self.schedule.name, SCHEDULES),
            ("prediction", self.prediction.name, PREDICTIONS),
            ("objective", self.objective.name, OBJECTIVES),
            ("weight", self.objective.weight.name, WEIGHTS),
            ("time law", self.objective.times.name, TIME_LAWS),
            ("time grid", understand(self.sampling.sampler)[1] or self.sampling.grid, GRIDS),
            ("time grid", self.sampling.grid, GRIDS),
        )
        for kind, name, registry in names:
            if name not in registry:
                raise unknown(kind, name, registry)
        return self


def _depth(override: str) -> int:
    """How deep in the recipe a key stands; `weight.name` stands where `weight` does."""
    key = override.partition("=")[0]
    return key.removesuffix(".name").count(".")


def _numbers(value: Any) -> Any:
    """`value` with texts such as 1e-4, which YAML 1.1 does not take for numbers, as numbers."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _assign(values: dict[str, Any], model: type[BaseModel], key: str, value: Any) -> None:
    """Set the dotted `key` in nested `values`, checking every part of it against the model."""
    *sections, last = key.split(".")
    where = ""
    for part in [*sections, last]:
        known = model.model_fields
        free = issubclass(model, Named)
        if part not in known and not free:
            raise unknown(f"key {where}{part}" if where else "key", f"{where}{part}", [f"{where}{k}" for k in known])
        kind = known[part].annotation if part in known else None
        if get_origin(kind) is dict and len(where.split(".")) - 1 < len(sections):  # names that are the recipe's own
            if part == "condition":
                values[part] = _conditions(values[part])
            _assign_free(values.setdefault(part, {}), key.removeprefix(f"{where}{part}."), value)
            return
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        if part is last and len(where.split(".")) - 1 == len(sections):
            if nested and isinstance(value, dict):
                for inner, content in value.items():
                    _assign(values[part], kind, str(inner), content)  # type: ignore[arg-type]
            elif nested and isinstance(value, str) and "name" in kind.model_fields and not issubclass(kind, Named):  # type: ignore[union-attr,arg-type]
                values[part] = kind().model_dump() | {"name": value}  # type: ignore[misc]
            elif free and part == "name" and value != values["name"]:
                values.clear()
                values["name"] = value
            else:
                values[part] = {"name": value} if nested and issubclass(kind, Named) else value  # type: ignore[arg-type]
            return
        if not nested:
            raise InputError(f"{where}{part} holds a value, not a section: {key} is no key")
        values, model, where = values[part], kind, f"{where}{part}."  # type: ignore[assignment]


def _conditions(given: Any) -> Any:
    """`label`, `none`, `{digit: label}` and `{low: {name: image, factor: 2}}` as {name: {"name": kind, ...}}."""
    if isinstance(given, str):
        given = {} if given == "none" else {given: given}
    if not isinstance(given, dict):
        return {} if given is None else given
    return {name: {"name": kind} if isinstance(kind, str) else kind for name, kind in given.items()}


def _assign_free(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `name` or `name.argument` among named conditions, or named numbers."""
    name, dot, argument = key.partition(".")
    if not dot:
        values[name] = {"name": value} if isinstance(value, str) else value
    elif isinstance(values.get(name), dict) and "." not in argument:
        values[name] = {**values[name], argument: value}
    else:
        raise InputError(f"{key} is no key: {', '.join(values) or 'nothing'} is there, each with arguments of its own")


C = TypeVar("C", bound=Section)


def validated(values: dict[str, Any], kind: type[C] = Recipe) -> C:  # type: ignore[assignment]
    """A configuration from plain values. Raises: InputError, one line, for the first that is not allowed."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple[")))
        message = first["msg"].removeprefix("Value error, ")
        if isinstance(first.get("ctx", {}).get("error"), InputError) or not place:
            raise InputError(message) from error
        given = "" if isinstance(first["input"], dict) else f"={first['input']!r}"
        raise InputError(f"{place}{given}: {message[0].lower()}{message[1:]}") from error


def to_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, in their own order."""
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two recipes differ, with both values."""
    found = []
    for key in ours.keys() | theirs.keys():
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} is {b!r} there and {a!r} here")
    return sorted(found)


def plain(recipe: Configuration) -> dict[str, Any]:
    """The configuration as YAML would give it back: lists for tuples."""
    values: dict[str, Any] = yaml.safe_load(to_yaml(recipe.model_dump(mode="json")))
    return values


def read(path: Path) -> Recipe:
    """A recipe from a YAML file. Raises: InputError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the recipe {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"the recipe {path} must hold keys and values")
    values.pop("resolved", None)
    base = Recipe(name=str(values.pop("name", path.stem))).model_dump()
    for key, value in values.items():
        _assign(base, Recipe, str(key), value)
    return validated(base)
