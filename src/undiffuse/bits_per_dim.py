"""What a run's model says of data, in bits per dimension: by the ODE and by both bounds, sample by sample."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import undiffuse
from undiffuse import samplers
from undiffuse.chain import whole_chain
from undiffuse.codecs import Pixels
from undiffuse.data import Dataset
from undiffuse.denoiser import BaseDenoiser
from undiffuse.errors import InputError, unknown
from undiffuse.examples import centred, conditions_of
from undiffuse.likelihood import (
    DEQUANTISATIONS,
    Bound,
    dequantised,
    discrete_bound,
    levels_up,
    log_prob,
    rate_distortion,
    variational_bound,
)
from undiffuse.likelihood.ode import EXACT_UP_TO, TOLERANCE
from undiffuse.pipeline import Pipeline
from undiffuse.samplers import Adaptive, Sampler
from undiffuse.weights import fingerprint

FIXED_STEPS = 100  # of a sampler without steps of its own
BATCH = 64  # samples at a time
BOUNDS_SHARE = 0.2  # of the time, about
Columns = dict[str, Tensor]  # by name, a row per sample; float64, on the host
ABOUT = ("data", "data_n", "weights", "undiffuse", "dimensions", "t_min", "log_snr", "settings")
ASKED = ("part", "asked", "data_hash")  # where it was measured by the command line


@dataclass(frozen=True)
class Settings:
    """How likelihoods are measured; two results are of one kind where all of it is equal.

    sampler: a name, or None for `Adaptive`; tolerance: of an adaptive one; steps: of any other; exact, probes: of the
    divergence, as in `log_prob`; dequantisation: a name in `DEQUANTISATIONS`; draws: levels of a sample for each bound;
    chain: steps of the discrete bound, where the schedule is no table; guidance: its scale, 1 for the model itself;
    seed: sample i draws from the stream of seed + its row in the data.

    Raises: InputError for what has no meaning together.
    """

    sampler: str | None = None
    tolerance: float | None = None
    steps: int | None = None
    exact: bool | None = None
    probes: int = 1
    dequantisation: str = "uniform"
    draws: int = 16
    chain: int = 1000
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**62:
            raise InputError(f"the seed must be in [0, 2^62), not {self.seed}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a likelihood needs 1 step or more, not {self.steps}")
        if self.probes < 1 or self.draws < 1 or self.chain < 2:
            raise InputError(
                f"a likelihood takes 1 probe, 1 draw and a chain of 2 steps or more, not {self.probes}, {self.draws} "
                f"and {self.chain}"
            )
        if self.exact and self.probes > 1:
            raise InputError(f"the exact divergence has no probes: leave probes={self.probes} out")
        if self.dequantisation not in DEQUANTISATIONS:
            raise unknown("dequantisation", self.dequantisation, DEQUANTISATIONS)
        self.solver()

    def solver(self) -> Sampler:
        """The sampler that walks. Raises: InputError for one that draws noise, and for what it does not take."""
        chosen, grid = (Adaptive(), None) if self.sampler is None else samplers.understand(self.sampler)
        if grid is not None:
            raise InputError(f"a likelihood walks up a grid of its own: leave the grid {grid!r} out")
        if chosen.stochastic:
            raise InputError(f"{chosen!r} draws noise: a likelihood is integrated by a deterministic sampler")
        if not isinstance(chosen, Adaptive):
            if self.tolerance is not None:
                raise InputError(f"a tolerance is of the sampler adaptive: {chosen!r} takes steps")
            return chosen
        if self.steps is not None:
            raise InputError(
                f"steps={self.steps} are of samplers with fixed ones, such as heun: adaptive has tolerance"
            )
        if self.sampler is not None and self.tolerance is None:
            return chosen
        tolerance = TOLERANCE if self.tolerance is None else self.tolerance
        return Adaptive(rtol=tolerance, atol=tolerance, pair=chosen.pair, most=chosen.most)

    def drawn(self, denoiser: BaseDenoiser) -> int:
        """How many steps of the chain are evaluated: no more than it has between its levels."""
        return min(self.draws, len(whole_chain(denoiser, self.chain)) - 1)

    def times(self, denoiser: BaseDenoiser) -> Tensor:
        """The levels that the solver walks up."""
        adaptive = isinstance(self.solver(), Adaptive)
        return levels_up(denoiser, None if adaptive else FIXED_STEPS if self.steps is None else self.steps)


DEFAULT = Settings()


@dataclass(frozen=True)
class BitsPerDim:
    """columns: what was measured of each sample; about: what it was measured of, and how; both ready to be stored.

    about: as `ABOUT` has it, and `ASKED`: the weights by their fingerprint; the data by name, how many they are, which
    part of a split, how many of it were asked for, and a hash of those. shard: (i, N), the i-th of N parts of them.

    Columns (N,), in bits/dimension but for counts: row, of the data; ode, and its terms ode_prior, ode_change and
    dequantisation; ode_error, of the divergence's estimate; evaluations; for bound "continuous" and "discrete" the
    bound, and its terms BOUND_prior and so on; then (N, draws), of the continuous bound: log_snr, by_level (nats) and
    squared_error.
    """

    columns: Columns
    about: dict[str, Any]
    shard: tuple[int, int] = (1, 1)

    def __len__(self) -> int:
        return len(self.columns["row"])

    def ranked(self) -> Tensor:
        """Rows of the data, the most likely first, by the ODE."""
        return self.columns["row"][self.columns["ode"].argsort(stable=True)].long()

    def summary(self) -> dict[str, Any]:
        """The means over the samples, with their standard errors."""
        ode = self._mean("ode", {"prior": "ode_prior", "change": "ode_change", "dequantisation": "dequantisation"})
        errors = self.columns["ode_error"]
        found: dict[str, Any] = {**self.about, "n": len(self)}
        known = bool(errors.isfinite().all())
        found["ode"] = ode | {
            "estimate_error": float(errors.square().sum().sqrt() / len(errors)) if known else None,
            "evaluations": float(self.columns["evaluations"].mean()),
        }
        for kind in ("continuous", "discrete"):
            terms = {name: f"{kind}_{name}" for name in ("prior", "diffusion", "reconstruction")}
            found[f"{kind}_bound"] = self._mean(kind, terms)
        return found

    def _mean(self, name: str, terms: Mapping[str, str]) -> dict[str, Any]:
        values, n = self.columns[name], len(self)
        return {
            "bits_per_dim": float(values.mean()),
            "standard_error": float(values.std() / math.sqrt(n)) if n > 1 else None,
            "terms": {term: float(self.columns[column].mean()) for term, column in terms.items()},
        }

    def bound(self) -> Bound:
        """The continuous bound of all samples, by its levels."""
        nats = math.log(2)
        prior, reconstruction = (self.columns[f"continuous_{name}"] * nats for name in ("prior", "reconstruction"))
        return Bound(prior, reconstruction, *(self.columns[name] for name in ("log_snr", "by_level", "squared_error")))

    def to_json(self) -> dict[str, Any]:
        """The summary, the shard, the curve of rate and distortion, and every column."""
        curve = {name: values.tolist() for name, values in rate_distortion(self.bound())._asdict().items()}
        curve = {name: [None if math.isnan(v) else v for v in values] for name, values in curve.items()}
        columns = {name: _plain(values) for name, values in self.columns.items()}
        return {**self.summary(), "shard": list(self.shard), "rate_distortion": curve, "samples": columns}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BitsPerDim":
        """The inverse of `to_json`. Raises: InputError for what it did not give."""
        try:
            columns = {
                name: torch.tensor(_numbers(column), dtype=torch.float64) for name, column in values["samples"].items()
            }
            about = {name: values[name] for name in (*ABOUT, *(name for name in ASKED if name in values))}
            index, count = (int(number) for number in values["shard"])
            found = cls(columns, about, (index, count))
            found.summary()
            _facts(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is no file of likelihoods: {' '.join(str(error).split()) or error!r:.80}"
            ) from error
        return found


def _plain(values: Tensor) -> list[Any]:
    found: list[Any] = values.tolist()
    return [None if isinstance(value, float) and math.isnan(value) else value for value in found]


def _numbers(column: Sequence[Any]) -> list[Any]:
    return [math.nan if value is None else value for value in column]


def merged(parts: Sequence[BitsPerDim]) -> BitsPerDim:
    """The results of several shards as one, in the order of the data.

    Raises: InputError for none, for parts that were measured otherwise, for samples that come twice, and for shards
        that are missing.
    """
    if not parts:
        raise InputError("there is nothing to merge: name one file of likelihoods or more")
    first, count = _facts(parts[0]), parts[0].shard[1]
    for part in parts[1:]:
        facts = _facts(part)
        differing = [name for name in {**first, **facts} if first.get(name) != facts.get(name)]
        if differing:
            both = ", ".join(f"{name} ({first.get(name)} and {facts.get(name)})" for name in differing)
            raise InputError(f"likelihoods that differ in {both} cannot be merged")
    row = torch.cat([part.columns["row"] for part in parts])
    if len(row.unique()) < len(row):
        raise InputError(f"{len(row) - len(row.unique())} samples come twice: merge shards of one measurement")
    if missing := sorted({*range(1, count + 1)} - {part.shard[0] for part in parts}):
        raise InputError(f"of {count} shards these are missing: {', '.join(f'{i}/{count}' for i in missing)}")
    order = row.argsort()
    columns = {name: torch.cat([part.columns[name] for part in parts])[order] for name in parts[0].columns}
    return BitsPerDim(columns, parts[0].about)


def _facts(part: BitsPerDim) -> dict[str, Any]:
    """What must be equal in all shards, each setting by its own name."""
    facts = {**part.about, **part.about["settings"], "shards": part.shard[1]}
    del facts["settings"]
    return facts


def check(model: Pipeline, dataset: Dataset) -> None:
    """Raises: InputError where the model does not know these samples."""
    channels, height, width = model.shape
    if dataset.shape[0] != channels or dataset.shape[1] < height or dataset.shape[2] < width:
        sizes = "x".join(map(str, dataset.shape)), "x".join(map(str, model.shape))
        raise InputError(f"samples of {sizes[0]} cannot be measured by a model of {sizes[1]}")
    for name, part in model.parts.items():
        if part.derived:
            continue
        if name not in dataset.conditions:
            raise InputError(f"the data {dataset.name} have no condition {name!r}, under which this model is measured")
        known, found = getattr(part, "classes", ()), dataset.classes.get(name, ())
        if not isinstance(known, tuple):  # tokens have a number of them, and no names
            continue
        if known and not set(found) <= set(known):
            strange = ", ".join(sorted(set(found) - set(known))[:5])
            raise InputError(f"this model does not know the classes {strange} of {name}, only {', '.join(known)}")
        if known and tuple(found) != tuple(known)[: len(found)]:
            raise InputError(f"classes of {name} come in another order than in the model: name all {len(known)}")


def measure(
    model: Pipeline,
    dataset: Dataset,
    rows: Tensor,
    settings: Settings = DEFAULT,
    say: Callable[[str, float], None] = lambda what, share: None,
    batch_size: int = BATCH,
) -> BitsPerDim:
    """The bits/dimension of some rows of a data set under a model, each under its own conditions.

    Of 8-bit pictures by the density at dequantised values and by bounds of the values themselves; of other data by the
    density. A sample's numbers depend on its row and the seed, not on what is measured beside it (to float rounding).
    say(what, share done): progress.

    Raises: InputError for data that are not the model's kind, and where a likelihood is not finite.
    """
    check(model, dataset)
    if not len(rows):
        raise InputError("there is no sample to measure")
    denoiser, whole, done = model.denoiser, [], 0
    for few in rows.split(batch_size):
        say("bounds", done / len(rows))
        bounds = _bounds(model, dataset, few, settings)
        say("the ODE", (done + BOUNDS_SHARE * len(few)) / len(rows))
        whole.append(bounds | _ode(model, dataset, few, settings))
        done += len(few)
    columns = {name: torch.cat([part[name] for part in whole]) for name in whole[0]}
    bad = ~columns["ode"].isfinite()
    if bool(bad.any()):
        raise InputError(f"the likelihood of {int(bad.sum())} of {len(rows)} samples is not finite: take more steps")
    dimensions = math.prod(model.shape)
    exact = dimensions <= EXACT_UP_TO if settings.exact is None else settings.exact
    about = {
        "data": dataset.name,
        "data_n": len(dataset),
        "weights": fingerprint(denoiser),
        "undiffuse": undiffuse.__version__,
        "dimensions": dimensions,
        "t_min": denoiser.t_min,
        "log_snr": float(denoiser.schedule.log_snr(denoiser.t_min)),
        "settings": {
            **asdict(settings),
            "sampler": repr(settings.solver()),
            "exact": exact,
            "probes": 0 if exact else settings.probes,
            "dequantisation": settings.dequantisation if isinstance(model.codec, Pixels) else None,
        },
    }
    return BitsPerDim(columns, about)


def _given(model: Pipeline, dataset: Dataset, rows: Tensor, settings: Settings) -> tuple[BaseDenoiser, Tensor, Tensor]:
    """The denoiser under some samples' conditions, those samples as it sees them, and their seeds."""
    denoiser = model.guided(settings.guidance, **conditions_of(dataset, rows, model))
    return denoiser, model.codec.encode(centred(dataset, model.shape, rows)).to(model.device), settings.seed + rows


def _bounds(model: Pipeline, dataset: Dataset, rows: Tensor, settings: Settings) -> Columns:
    denoiser, x0, seeds = _given(model, dataset, rows, settings)
    levels = 256 if isinstance(model.codec, Pixels) else None
    found = {
        "continuous": variational_bound(denoiser, x0, seeds, draws=settings.draws, levels=levels),
        "discrete": discrete_bound(
            denoiser, x0, seeds, steps=settings.chain, draws=settings.drawn(denoiser), levels=levels
        ),
    }
    columns: Columns = {"row": rows.double()}
    for kind, bound in found.items():
        columns[kind] = bound.bits_per_dim
        for term in ("prior", "diffusion", "reconstruction"):
            columns[f"{kind}_{term}"] = getattr(bound, term) / math.log(2)
    by_level = ("log_snr", "by_level", "squared_error")
    return columns | {name: getattr(found["continuous"], name) for name in by_level}


def _ode(model: Pipeline, dataset: Dataset, rows: Tensor, settings: Settings) -> Columns:
    denoiser, x0, seeds = _given(model, dataset, rows, settings)
    log_q = torch.zeros(len(x0), dtype=torch.float64)
    if isinstance(model.codec, Pixels):
        std = math.exp(-0.5 * float(denoiser.schedule.log_snr(denoiser.t_min)))
        x0, log_q = dequantised(x0, seeds, settings.dequantisation, std=std)
    found = log_prob(
        denoiser,
        x0,
        seeds,
        sampler=settings.solver(),
        times=settings.times(denoiser),
        exact=settings.exact,
        probes=settings.probes,
    )
    bit = math.log(2) * found.dimensions
    return {
        "ode": (log_q - found.nats) / bit,
        "ode_prior": -found.prior / bit,
        "ode_change": -found.change / bit,
        "dequantisation": log_q / bit,
        "ode_error": found.standard_error / bit,
        "evaluations": found.evaluations.double(),
    }
