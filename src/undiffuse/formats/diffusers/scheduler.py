"""Their schedulers and our schedule, prediction, time grid and sampler, both ways.

A scheduler's configuration is all of that at once. The sampler is the one that `undiffuse.samplers.aliases` knows by
their class and its arguments. What differs in sampling alone becomes a note. Source: `schedulers/` of diffusers 0.42.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from undiffuse import schedule as schedules
from undiffuse.errors import InputError, unknown
from undiffuse.exact import Gaussian
from undiffuse.formats.diffusers.options import Options
from undiffuse.samplers import grid as grids
from undiffuse.samplers import named
from undiffuse.samplers.aliases import ALIASES, GRID_ARGUMENTS

_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon",
}  # fmt: skip
_STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
_LEADING, _LINSPACE = ({"timestep_spacing": spacing, "steps_offset": 0} for spacing in ("leading", "linspace"))
_CLIPS = {"clip_sample": False, "clip_sample_range": 1.0}
_THRESHOLDS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_ZERO = {"rescale_betas_zero_snr": False}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_ENDS = {"final_sigmas_type": "zero"}
_SHIFTS = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_FLOWS = {"use_flow_sigmas": False, "flow_shift": 1.0, **_SHIFTS}
_EULER = {**_TABLE, **_LINSPACE}
_MULTI = {**_TABLE, **_LINSPACE, **_THRESHOLDS, **_SIGMAS, **_FLOWS, "solver_order": 2, "lower_order_final": True}
_DPM = {
    "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lambda_min_clipped": -math.inf, "variance_type": None,
}  # fmt: skip
# what their classes do where scheduler_config.json says nothing; what a class has not, it ignores
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {**_TABLE, **_LEADING, **_CLIPS, **_THRESHOLDS, **_ZERO, "clip_sample": True}
    | {"variance_type": "fixed_small"},
    "DDIMScheduler": {**_TABLE, **_LEADING, **_CLIPS, **_THRESHOLDS, **_ZERO, "clip_sample": True}
    | {"set_alpha_to_one": True},
    "PNDMScheduler": {**_TABLE, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "LCMScheduler": {**_TABLE, **_STABLE, **_LEADING, **_CLIPS, **_THRESHOLDS, **_ZERO}
    | {"beta_schedule": "scaled_linear", "set_alpha_to_one": True}
    | {"original_inference_steps": 50, "timestep_scaling": 10.0},
    "LMSDiscreteScheduler": {**_EULER, **_SIGMAS},
    "EulerDiscreteScheduler": {**_EULER, **_SIGMAS, **_ZERO, **_ENDS, "interpolation_type": "linear"}
    | {"timestep_type": "discrete", "sigma_min": None, "sigma_max": None},
    "EulerAncestralDiscreteScheduler": {**_EULER, **_ZERO},
    "HeunDiscreteScheduler": {**_EULER, **_STABLE, **_SIGMAS, **_CLIPS},
    "KDPM2DiscreteScheduler": {**_EULER, **_STABLE, **_SIGMAS},
    "KDPM2AncestralDiscreteScheduler": {**_EULER, **_STABLE, **_SIGMAS},
    "DPMSolverSDEScheduler": {**_EULER, **_STABLE, **_SIGMAS, "noise_sampler_seed": None},
    "DPMSolverMultistepScheduler": {**_MULTI, **_DPM, **_ZERO, **_ENDS}
    | {"euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": {**_TABLE, **_THRESHOLDS, **_SIGMAS, **_FLOWS, **_DPM, **_ENDS}
    | {"solver_order": 2, "lower_order_final": False},
    "DEISMultistepScheduler": {**_MULTI, "algorithm_type": "deis", "solver_type": "logrho"},
    "UniPCMultistepScheduler": {**_MULTI, **_ZERO, **_ENDS, "solver_type": "bh2", "predict_x0": True}
    | {"disable_corrector": [], "solver_p": None, "sigma_min": None, "sigma_max": None, "shift_terminal": None},
    "FlowMatchEulerDiscreteScheduler": {**_SIGMAS, **_SHIFTS, "num_train_timesteps": 1000, "shift": 1.0}
    | {"invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False}
    | {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096},
}  # fmt: skip
# the last two were dropped in 2022, and never said anything of the model
KNOWN = {name for options in DEFAULTS.values() for name in options} | {"tensor_format", "timestep_values"}
# those that space their levels as our grids of the same names do; of the rest the second take all but the last of
# steps + 1 levels, and the others leave levels of "linspace" between two of the table
EXACT_LINSPACE = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
ONE_MORE = (
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
# those that extrapolate into the last level, or stop before clean data; ours take x_0 as it stands there, always
OTHER_ENDS = ("PNDMScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler")

PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
CHOOSING = (
    "algorithm_type", "solver_type", "solver_order", "predict_x0", "disable_corrector", "solver_p", "skip_prk_steps",
    "stochastic_sampling",
)  # fmt: skip
LEARNED = ("learned", "learned_range")
# option -> (where it changes nothing, what is else left out)
NOTED: dict[str, tuple[Any, str]] = {
    "clip_sample": (False, "x_0 is not clipped while sampling; --threshold static does it"),
    "thresholding": (False, "x_0 is not thresholded while sampling; --threshold dynamic does it"),
    "set_alpha_to_one": (True, "the last step goes to clean data, not to the first level of the table"),
    "final_sigmas_type": ("zero", "the last step goes to clean data, not to the first level of the table"),
    "lambda_min_clipped": (-math.inf, "the time grid starts at the noisiest level"),
    "interpolation_type": ("linear", "levels of the grid are those of the table"),
}
# what matters only together with an option that is read or refused, or for noise and training
BESIDE = (
    "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type",
    "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "noise_sampler_seed", "timestep_scaling",
    "euler_at_final", "lower_order_final", "original_inference_steps",
)  # fmt: skip


class Scheduler(NamedTuple):
    """The sections of a recipe that a scheduler decides; learned: whether it splits the variance off the output."""

    sections: dict[str, dict[str, Any]]
    learned: bool
    notes: tuple[str, ...]


# -- theirs as ours ----------------------------------------------------------------------------------------------------


def read(config: Mapping[str, Any]) -> Scheduler:
    """The schedule, prediction, range and sampling of a scheduler_config.json. Raises: InputError."""
    kind = str(config.get("_class_name"))
    if kind not in DEFAULTS:
        raise unknown("scheduler", kind, DEFAULTS)
    ignored = KNOWN - DEFAULTS[kind].keys()
    if config.get("predict_epsilon") is True:  # as prediction_type="epsilon" was said in 2022
        ignored.add("predict_epsilon")
    options = Options(kind, {name: v for name, v in config.items() if name not in ignored}, DEFAULTS[kind])
    for name in BESIDE:
        if name in options.defaults:
            options.take(name)
    flow = kind.startswith("FlowMatch")
    steps = options.take("num_train_timesteps")
    schedule = _flow(options) if flow else _table(options)
    prediction = {"name": "flow", "label": "time"} if flow else {"name": _prediction(options), "label": "step"}
    sampler, notes = _sampler(kind, options)
    grid, more = ("uniform", []) if flow else _grid(kind, options)
    notes += more
    for name, (neutral, what) in NOTED.items():
        if name in options.defaults and options.take(name) != neutral:
            notes.append(f"{name}={options.take(name)!r} of {kind} is left out: {what}.")
    if kind in OTHER_ENDS:
        notes.append(f"the last step is first order and goes to clean data; that of {kind} is not, or does not.")
    learned = "variance_type" in options.defaults and options.take("variance_type") in LEARNED
    options.check()
    if not _starts(sampler, grid, schedule):
        notes.append(f"{sampler!r} of {kind} cannot start where alpha = 0: 'ddim' is the default instead.")
        sampler = "ddim"
    count = steps if sampler.startswith("ddpm") else 4 if sampler == "consistency" else 50
    sections = {
        "schedule": schedule,
        "prediction": prediction,
        "range": {"t_min": 1 / steps, "t_max": 1.0},
        "sampling": {"sampler": sampler, "grid": grid, "steps": count, "guidance": 1.0},
    }
    return Scheduler(sections, learned, tuple(notes))


def _starts(sampler: str, grid: str, section: Mapping[str, Any]) -> bool:
    """Whether a sampler has finite coefficients from the noisiest level of a schedule on."""
    schedule = _named(section)
    times = grids.named(grid, schedule, 3, schedule.finest_time, 1.0)
    denoiser = Gaussian(schedule, torch.zeros(1), torch.eye(1))
    denoiser.learns_variance = True  # whether the network does is asked elsewhere
    try:
        named(sampler).init(denoiser, torch.zeros(1, 1), times[:, None])
    except InputError:
        return False
    return True


def _flow(options: Options) -> dict[str, Any]:
    options.require(options.take("num_train_timesteps") == 1000, "num_train_timesteps", "c_noise is 1000 t")
    return {"name": "flow"}


def _table(options: Options) -> dict[str, Any]:
    """The schedule whose table is theirs: ours multiply betas by 1000 / T, theirs do not."""
    steps, name, betas = (options.take(key) for key in ("num_train_timesteps", "beta_schedule", "trained_betas"))
    start, end = (options.take(key) for key in ("beta_start", "beta_end"))
    schedule: dict[str, Any] = {}
    if betas is not None:
        options.require(len(betas) == steps, "num_train_timesteps", f"of {len(betas)} trained_betas")
        schedule = _from_betas(torch.tensor(betas, dtype=torch.float64))
    elif name in ("linear", "scaled_linear"):
        ends = {"beta_start": start * steps / 1000, "beta_end": end * steps / 1000}
        schedule = {"name": name.replace("_", "-"), "steps": steps, **ends}
    elif name == "squaredcos_cap_v2":
        schedule = {"name": "cosine-table", "steps": steps}
    elif name == "sigmoid":
        rise = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        schedule = _from_betas(start + (end - start) * rise)
    else:
        options.refuse("beta_schedule")
    zero = "rescale_betas_zero_snr" in options.defaults and options.take("rescale_betas_zero_snr")
    return schedule | ({"zero_terminal": True} if zero else {})


def _from_betas(betas: torch.Tensor) -> dict[str, Any]:
    return {"name": "table", "alpha_bar": schedules.Table.from_betas(betas).alpha_bar}


def _prediction(options: Options) -> str:
    given = options.take("prediction_type")
    options.require(given in PREDICTIONS, "prediction_type")
    return PREDICTIONS.get(given, "")


def _sampler(kind: str, options: Options) -> tuple[str, list[str]]:
    """The sampler that does the same; where there is none, that of the class's default arguments, and a note."""
    names = [name for name in CHOOSING if name in options.defaults]
    if kind == "DDPMScheduler":
        names.append("variance_type")
    chosen = {name: str(options.take(name)) for name in names}
    if chosen.get("variance_type") == "fixed_small_log":  # the same number, computed through its logarithm
        chosen["variance_type"] = "fixed_small"
    usual = {name: str(options.defaults[name]) for name in names}
    known = {}
    for ours, aliases in ALIASES.items():
        for alias in aliases.diffusers:
            their_class, _, arguments = alias.removesuffix(")").partition("(")
            if their_class == kind:
                given = dict(part.strip().split("=") for part in arguments.split(",") if part)
                known[tuple((usual | given).items())] = ours
    notes = []
    if kind == "DPMSolverSinglestepScheduler":
        notes.append(
            f"{kind} counts evaluations as steps, and its steps of second order go over two levels of its grid; ours "
            "have their second level between those of the grid, so samples of as many steps are others."
        )
    if kind in ONE_MORE and options.take("lower_order_final") and options.take("solver_order") > 2:
        notes.append(f"lower_order_final=True of {kind} is left out: the last step but one keeps its order.")
    if (found := known.get(tuple(chosen.items()))) is not None:
        return found, notes
    nearest = known[tuple(usual.items())]
    asked = ", ".join(f"{name}={value}" for name, value in chosen.items() if value != usual[name])
    return nearest, [*notes, f"{kind}({asked}) has no equal among the samplers: {nearest!r} is the default instead."]


def _grid(kind: str, options: Options) -> tuple[str, list[str]]:
    """The time grid, and a note where theirs of that name has other levels."""
    asked = {}
    for argument, grid in GRID_ARGUMENTS.items():
        name, _, value = argument.partition("=")
        if name in options.defaults and str(options.take(name)) == value:
            asked[argument] = grid
    if kind == "LCMScheduler":
        return "trailing", [
            "LCMScheduler takes its levels out of original_inference_steps, the grid 'trailing' evenly."
        ]
    argument = next(iter(asked), "timestep_spacing=linspace")
    grid, name = asked.get(argument, "linspace"), argument.partition("=")[0]
    if grid == "linspace" and kind in ONE_MORE:
        grid = "linspace+1"
    other = grid == "beta" or (name != "timestep_spacing" and kind in ONE_MORE)
    other = other or (grid == "linspace" and kind not in EXACT_LINSPACE) or (grid == "leading" and kind in ONE_MORE)
    notes = [f"{argument} of {kind} gives levels other than those of the grid {grid!r}."] if other else []
    if grid == "linspace" and kind in ("DDIMScheduler", "PNDMScheduler"):
        notes.append(
            f"{kind} steps down by T / steps, and calls the network at the levels of {argument}, which lie closer."
        )
    if "timestep_spacing" in options.defaults:
        spacing, offset = options.take("timestep_spacing"), options.take("steps_offset")
        options.require(f"timestep_spacing={spacing}" in GRID_ARGUMENTS, "timestep_spacing")
        if grid == "leading" and offset == 1:
            grid = "leading+1"
        elif grid == "leading" and offset:
            notes.append(f"steps_offset={offset} of {kind} is left out: the levels are those of the grid 'leading'.")
    return grid, notes


# -- ours as theirs ----------------------------------------------------------------------------------------------------


def refused(spec: Mapping[str, Any]) -> list[str]:
    """What of the schedule, the prediction and the range has no equal there."""
    schedule, prediction, found = _named(spec["schedule"]), spec["prediction"], []
    alpha, sigma = schedule.scales(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64))
    if not torch.allclose(alpha.square() + sigma.square(), torch.ones_like(alpha)):
        found.append(f"schedule.name={spec['schedule']['name']!r} (not variance preserving)")
    if prediction["name"] not in PREDICTIONS.values():
        found.append(f"prediction.name={prediction['name']!r}")
    if label_of(spec) not in ("time", "step"):
        found.append(f"prediction.label={prediction['label']!r}")
    if spec["range"]["t_max"] != 1:
        found.append(f"range.t_max={spec['range']['t_max']}")
    return found


def label_of(spec: Mapping[str, Any]) -> str:
    """How the network is told its noise level."""
    return spec["prediction"].get("label") or "time"


def config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler_config.json, a DDIMScheduler, of a recipe that `refused` has nothing against."""
    given, schedule = spec["schedule"], _named(spec["schedule"])
    steps = schedule.length if label_of(spec) == "step" else 1000
    assert steps is not None
    learned = bool(spec["network"].get("learned_variance"))
    found = {
        "_class_name": "DDPMScheduler" if learned else "DDIMScheduler",
        "num_train_timesteps": steps,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[spec["prediction"]["name"]],
        "clip_sample": False,
        **({"variance_type": "learned_range"} if learned else {"set_alpha_to_one": True}),
        "timestep_spacing": "trailing",
    }
    base = schedules.named(**{k: v for k, v in given.items() if k not in ("zero_terminal", "shift")})
    zero = {"rescale_betas_zero_snr": bool(given.get("zero_terminal"))}
    if schedule.length == steps and not given.get("shift"):
        if isinstance(base, schedules.Linear | schedules.ScaledLinear):
            ends = {"beta_start": base.beta_start * 1000 / steps, "beta_end": base.beta_end * 1000 / steps}
            return found | zero | {"beta_schedule": given["name"].replace("-", "_"), **ends}
        if base == schedules.CosineTable(steps):
            return found | zero | {"beta_schedule": "squaredcos_cap_v2"}
    log_alpha_bar = 2 * schedule.alpha(torch.arange(steps + 1, dtype=torch.float64) / steps).log()
    return found | {"trained_betas": (-torch.expm1(log_alpha_bar.diff())).tolist()}


def _named(section: Mapping[str, Any]) -> schedules.Schedule:
    return schedules.named(**section)


def check_variance(learned: bool, network: Mapping[str, Any]) -> None:
    """Raises: InputError where the scheduler learns a variance that the network seems not to give."""
    if learned and not network["learned_variance"]:
        raise InputError(
            f"the scheduler's variance is learned, but the network gives {network['channels']} channels for "
            f"{network['channels']}: which of them are the variance cannot be told"
        )
