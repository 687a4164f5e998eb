"""The peers' half of the sampler race: diffusers, k-diffusion and the DPM-Solver authors' grids on exact problems.

    python benchmarks/peers.py --problem ring --schedule linear --evaluations 10

Every deterministic solver is run over its grids and flags with the exact denoiser in the network's place. Each peer is
given what helps it: its float32 tables are replaced by float64 ones, and the denoiser is evaluated at the noise level
on which the sample really stands, where the peer itself would hand over a rounded time step.

Needs diffusers (0.42) and k-diffusion (0.1.1); the packages these import without a use here are replaced by stubs.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from peer_configurations import CLIPPED_LAMBDA, K_DIFFUSION, NEVER_TO_ZERO, Configuration, candidates
from problems import PROBLEMS, SCHEDULES, Problem, keep_memory, references, rms_error
from torch import Tensor

from undiffuse.denoiser import Estimate
from undiffuse.schedule import EDM, Schedule

COUNTS = (5, 6, 8, 10, 15, 20, 30, 50)
EDM_SIGMA_MIN = 0.002  # Karras et al. 2022, table 1
# where the DPM-Solver authors' code starts the cosine schedule (their NoiseScheduleVP: T = 0.9946)
COSINE_T_MAX = 0.9946


class Row(NamedTuple):
    """A configuration's result: real evaluations of the denoiser, root-mean-square error against the exact solution."""

    evaluations: int
    error: float


class Failure(NamedTuple):
    """A configuration that raised or gave numbers that are not finite."""

    cell: str
    configuration: str
    reason: str


failures: list[Failure] = []


# -- the model --------------------------------------------------------------------------------------------------------


class CountedModel:
    """The exact denoiser by noise-to-signal ratio sigma / alpha, the one variable all peers share; counts its calls.

    Samples are handed over as x / alpha. E[x_0 | x_t] and the noise depend on that and the ratio alone, so one
    denoiser, with alpha = 1 and sigma = t, serves every schedule; the schedule says where the peers start and end.
    """

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.schedule, self.denoiser, self.evaluations = schedule, problem.denoiser(EDM(sigma_max=1.0)), 0
        self.largest = self.ratio(1.0)

    def ratio(self, t: float | Tensor) -> Tensor:
        """sigma / alpha at time t."""
        return torch.exp(-self.schedule.half_log_snr(t))

    def __call__(self, x: Tensor, ratio: Tensor) -> Estimate:
        """The estimate for x / alpha (B, D) at sigma / alpha = ratio (a scalar)."""
        if not 0 < float(ratio) <= float(self.largest) * (1 + 1e-5):
            raise ValueError(f"evaluated at sigma / alpha = {float(ratio):.6g}, outside (0, {float(self.largest):.6g}]")
        self.evaluations += 1
        return self.denoiser(x.double(), ratio)


# -- grids: falling ratios sigma / alpha, the last one 0 --------------------------------------------------------------


def _uniform_in(power: float, last: float | None = None, to_zero: bool = True) -> Callable[..., Tensor]:
    """t uniform in t^(1/power) down to `last` (by default a table's first step, sigma_min in EDM), then 0 if `to_zero`.

    power = 2 is "time_quadratic" of the DPM-Solver authors' code, 1 "time_uniform"; the step into 0 their
    "denoise_to_zero", without which the samples are those at `last`.
    """

    def grid(model: CountedModel, steps: int) -> Tensor:
        end = last or model.schedule.finest_time
        start = COSINE_T_MAX if model.schedule == SCHEDULES["cosine"] else 1.0
        u = torch.linspace(start ** (1 / power), end ** (1 / power), steps + (not to_zero), dtype=torch.float64)
        ratios = model.ratio(u**power)
        return torch.cat([ratios, ratios.new_zeros(1)]) if to_zero else ratios

    return grid


def _k_diffusion_grid(name: str, clip: bool = False, **arguments: float) -> Callable[..., Tensor]:
    """k-diffusion's `get_sigmas_<name>` between the schedule's ends; clip: from exp(-CLIPPED_LAMBDA) at most."""

    def grid(model: CountedModel, steps: int) -> Tensor:
        make = getattr(_k_diffusion(), f"get_sigmas_{name}")
        with _double():
            if name == "vp":
                return make(steps)
            smallest, largest = _ends(model, clip)
            return make(steps, smallest, largest, **arguments)

    return grid


def _ends(model: CountedModel, clip: bool = False) -> tuple[float, float]:
    smallest = float(model.ratio(1 / model.schedule.length)) if model.schedule.length else EDM_SIGMA_MIN
    return smallest, min(float(model.largest), math.exp(-CLIPPED_LAMBDA) if clip else math.inf)


GRIDS: dict[str, Callable[..., Tensor]] = {
    "quadratic": _uniform_in(2),
    "quadratic, stopping at t_0": _uniform_in(2, to_zero=False),
    "quadratic to 1e-3": _uniform_in(2, 1e-3),  # a table's first step already
    "quadratic to 1e-4": _uniform_in(2, 1e-4),
    "uniform": _uniform_in(1),
    "karras": _k_diffusion_grid("karras"),
    "karras, rho 5": _k_diffusion_grid("karras", rho=5.0),
    "exponential": _k_diffusion_grid("exponential"),
    "polyexponential, rho 1.5": _k_diffusion_grid("polyexponential", rho=1.5),
    "vp": _k_diffusion_grid("vp"),
    "karras, clipped": _k_diffusion_grid("karras", clip=True),
    "exponential, clipped": _k_diffusion_grid("exponential", clip=True),
}


@contextlib.contextmanager
def _double() -> Iterator[None]:
    """float64 as torch's default inside the block: k-diffusion makes its grids in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# -- what is run ------------------------------------------------------------------------------------------------------


@functools.cache
def configurations(schedule_name: str) -> tuple[Configuration, ...]:
    """The configurations that their peer accepts on a schedule of `SCHEDULES`."""
    return tuple(c for c in candidates(schedule_name) if c.peer != "diffusers" or _accepted(c, schedule_name))


def refused(schedule_name: str) -> int:
    """How many combinations of flags the peers refuse."""
    return sum(1 for _ in candidates(schedule_name)) - len(configurations(schedule_name))


def _accepted(configuration: Configuration, schedule_name: str) -> bool:
    try:
        _scheduler(configuration, SCHEDULES[schedule_name])
    except (ValueError, NotImplementedError):
        return False
    return True


def run(configuration: Configuration, problem: Problem, schedule: Schedule, x_T: Tensor, evaluations: int) -> Tensor:
    """The end samples (B, D) from x_T (B, D) at t = 1, with at most `evaluations` calls of the denoiser."""
    return _counted(configuration, problem, schedule, x_T, evaluations)[0]


def _counted(
    c: Configuration, problem: Problem, schedule: Schedule, x_T: Tensor, evaluations: int
) -> tuple[Tensor, int]:
    model = CountedModel(problem, schedule)
    x = x_T / torch.hypot(schedule.alpha(1.0), schedule.sigma(1.0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        result = (_run_diffusers if c.peer == "diffusers" else _run_k_diffusion)(c, model, x, evaluations)
    if not 0 < model.evaluations <= evaluations:
        raise RuntimeError(f"{model.evaluations} evaluations were made where {evaluations} were allowed")
    return result.double(), model.evaluations


# -- diffusers --------------------------------------------------------------------------------------------------------

SIGMA_SPACE = ("EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete", "EDMEuler", "EDMDPMSolverMultistep")
TABLE_TIME = ("DDIM", "PNDM")  # these know whole steps of the table only
ALWAYS: dict[str, dict[str, Any]] = {
    "DDIM": {"clip_sample": False},
    "PNDM": {"skip_prk_steps": True},
    "SASolver": {"tau_func": lambda t: 0},  # no noise
    "EDMEuler": {"sigma_min": EDM_SIGMA_MIN, "sigma_max": 80.0},
    "EDMDPMSolverMultistep": {"sigma_min": EDM_SIGMA_MIN, "sigma_max": 80.0},
}


def _scheduler(configuration: Configuration, schedule: Schedule) -> Any:
    """The diffusers scheduler on the schedule's own table, in float64."""
    import diffusers

    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    arguments = {**ALWAYS.get(configuration.solver, {}), **dict(configuration.flags)}
    if configuration.solver not in ("IPNDM", "EDMEuler", "EDMDPMSolverMultistep"):
        arguments["beta_schedule"] = "squaredcos_cap_v2" if schedule == SCHEDULES["cosine"] else "linear"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, f"{configuration.solver}Scheduler")(**arguments)
    if schedule.length and hasattr(scheduler, "alphas_cumprod"):
        t = torch.arange(1, schedule.length + 1, dtype=torch.float64) / schedule.length
        scheduler.alphas_cumprod = schedule.alpha(t).square()
        scheduler.alpha_t, scheduler.sigma_t = schedule.alpha(t), schedule.sigma(t)
        scheduler.lambda_t = schedule.half_log_snr(t)
    return scheduler


def _run_diffusers(configuration: Configuration, model: CountedModel, x: Tensor, evaluations: int) -> Tensor:
    solver, scheduler = configuration.solver, _scheduler(configuration, model.schedule)
    for steps in range(evaluations, 0, -1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= evaluations:
            break
    if configuration.grid:
        steps, grid = len(scheduler.timesteps), GRIDS[configuration.grid]
        _set_grid(scheduler, grid(model, steps + 1)[:-1] if solver in NEVER_TO_ZERO else grid(model, steps))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else steps are looked up by rounded times, which can coincide
    if solver in SIGMA_SPACE:
        x = x * (scheduler.sigmas[0].double().square() + 1).sqrt()
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)  # sets the step index of some, and is asked for by others
        ratio = _ratio(solver, scheduler, model, t)
        estimate = model(x if solver in SIGMA_SPACE else x * (1 + ratio.square()).sqrt(), ratio)
        if solver == "IPNDM":
            # in the paper's form its slope is the noise; the scheduler makes it from sigma x + alpha v
            alpha, sigma = 1 / (1 + ratio.square()).sqrt(), ratio / (1 + ratio.square()).sqrt()
            output = alpha * estimate.noise - sigma * estimate.x0
        elif solver.startswith("EDM"):
            # x_0 = c_skip x + c_out F (Karras et al. 2022, table 1)
            variance = scheduler.config.sigma_data**2
            skip = variance / (ratio.square() + variance)
            output = (estimate.x0 - skip * x) / (ratio * skip.sqrt())
        else:
            output = estimate.noise
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def _set_grid(scheduler: Any, ratios: Tensor) -> None:
    """The scheduler, which has as many steps, on the given ratios."""
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = ratios
    else:  # IPNDM, whose betas are our sigmas
        scheduler.betas, scheduler.alphas = (f(ratios.atan()) for f in (torch.sin, torch.cos))


def _ratio(solver: str, scheduler: Any, model: CountedModel, t: Tensor) -> Tensor:
    """sigma / alpha where the sample stands."""
    if solver in TABLE_TIME:
        return model.ratio((t.double() + 1) / model.schedule.length)
    index = scheduler.step_index or 0
    if solver == "IPNDM":
        return (scheduler.betas[index] / scheduler.alphas[index]).double()
    between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
    return (scheduler.sigmas_interpol if between else scheduler.sigmas)[index].double()


# -- k-diffusion ------------------------------------------------------------------------------------------------------


@functools.cache
def _k_diffusion() -> Any:
    """`k_diffusion.sampling` without its package's other modules, which import the whole of image training."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise ModuleNotFoundError("the race needs k-diffusion: pip install --no-deps k-diffusion")
    sys.modules["k_diffusion"] = importlib.util.module_from_spec(spec)  # not executed
    unused = {"torchvision": ["transforms"], "torchdiffeq": [], "torchsde": []}
    stubs = [
        name
        for root, inner in unused.items()
        if importlib.util.find_spec(root) is None
        for name in (root, *(f"{root}.{module}" for module in inner))
    ]
    sys.modules.update({name: mock.MagicMock() for name in stubs})
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in stubs:  # others ask whether these packages are there
            del sys.modules[name]


def _run_k_diffusion(configuration: Configuration, model: CountedModel, x: Tensor, evaluations: int) -> Tensor:
    def denoised(y: Tensor, sigma: Tensor) -> Tensor:
        return model(y, sigma[0].double()).x0

    sampling = _k_diffusion()
    with _double():
        if configuration.solver == "dpm_fast":
            smallest, largest = _ends(model)
            return sampling.sample_dpm_fast(
                denoised, x * math.hypot(1, largest), smallest, largest, evaluations, disable=True
            )
        calls, arguments = K_DIFFUSION[configuration.solver]
        sigmas = GRIDS[configuration.grid](model, (evaluations + calls - 1) // calls)
        sample = getattr(sampling, f"sample_{configuration.solver}")
        start = x * torch.hypot(torch.ones(()), sigmas[0])
        return sample(denoised, start, sigmas, disable=True, **arguments, **dict(configuration.flags))


# -- the table --------------------------------------------------------------------------------------------------------


def peers_rows(problem: Problem, schedule_name: str, count: int) -> dict[str, Row]:
    """Every configuration's row at `count` evaluations. What fails is left out and noted in `failures`."""
    schedule = SCHEDULES[schedule_name]
    start, truth = references(problem, schedule)
    rows = {}
    for configuration in configurations(schedule_name):
        try:
            x, evaluations = _counted(configuration, problem, schedule, start, count)
            reason = "" if bool(x.isfinite().all()) else "not finite"
        except Exception as error:  # a peer's bug is a result here
            reason = f"{type(error).__name__}: {error}"
        if reason:
            failures.append(Failure(f"{problem.name}/{schedule_name}/{count}", configuration.name, reason[:200]))
        else:
            rows[configuration.name] = Row(evaluations, rms_error(x, truth))
    return rows


def peers_table(
    problem: Problem, schedule_name: str, counts: Iterable[int] = COUNTS, cache: Path | None = None
) -> dict[int, dict[str, float]]:
    """{evaluations: {configuration: error}}; cache: a JSON file that is read, and completed with what it lacks.

    The file holds {"problem/schedule/evaluations": {configuration: [real evaluations, error]}}. Delete it when a
    problem or a peer's version changes.
    """
    known = json.loads(cache.read_text()) if cache and cache.exists() else {}
    table = {}
    for count in counts:
        key = f"{problem.name}/{schedule_name}/{count}"
        if key not in known:
            known[key] = peers_rows(problem, schedule_name, count)
            if cache:
                cache.write_text(json.dumps(known, indent=0))
        table[count] = {name: error for name, (_, error) in known[key].items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=PROBLEMS, default="ring")
    parser.add_argument("--schedule", choices=SCHEDULES, default="linear")
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--best", type=int, default=15, help="how many configurations to print")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    rows = peers_rows(PROBLEMS[chosen.problem], chosen.schedule, chosen.evaluations)
    print("RMS error    evaluations    configuration")
    for name, row in sorted(rows.items(), key=lambda item: item[1].error)[: chosen.best]:
        print(f"{row.error:9.3e}    {row.evaluations:11d}    {name}")
    print(f"{len(rows)} ran; {refused(chosen.schedule)} combinations were refused; {len(failures)} failed")
    for failure in failures:
        print(f"failed: {failure.configuration}: {failure.reason}")


if __name__ == "__main__":
    main()
