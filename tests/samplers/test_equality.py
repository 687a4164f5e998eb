"""Equality with independent implementations: the schedulers of diffusers and the samplers of k-diffusion.

The same model (an exact denoiser), the same levels (those on which the scheduler stands) and the same noise give the
same trajectory. Where a peer means something else, or is wrong, the exact solution decides.

k-diffusion is compared where it is installed: pip install --no-deps k-diffusion==0.1.1.post1
"""

import functools
import importlib
import importlib.util
import math
import sys
import warnings
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import pytest
import torch

from undiffuse.exact import Gaussian, Mixture, solve
from undiffuse.noise import NoiseSource
from undiffuse.samplers import named, walk
from undiffuse.schedule import EDM, Flow, Linear, VarianceExploding, VariancePreserving

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the peers are not ours
STEPS, SEEDS = 10, range(6)
VP, VE = Linear(), EDM(sigma_max=200.0)
Z = NoiseSource(SEEDS, (2,), dtype=torch.float64).normal("prior")
NOISE = NoiseSource(SEEDS, (2,), dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.5], [0.2, -1.2]], dtype=torch.float64)
COVARIANCES = torch.tensor([[0.2, 0.1], [0.1, 0.3], [0.15, 0.2]], dtype=torch.float64)


def mixture(schedule):
    return Mixture(schedule, torch.tensor([0.3, 0.5, 0.2]), MEANS, COVARIANCES, t_min=1e-9)


def ratio_time(schedule, ratio):
    """The time at which sigma / alpha is `ratio`."""
    return schedule.time(-2 * torch.as_tensor(ratio, dtype=torch.float64).log())


def start_at(schedule, t):
    return Z * torch.hypot(schedule.alpha(t), schedule.sigma(t))


def ours(name, schedule, times, x=None, seeds=SEEDS):
    x = start_at(schedule, times[0]) if x is None else x
    sampler = named(name) if isinstance(name, str) else name
    return list(walk(mixture(schedule), sampler, x, times, seeds if sampler.stochastic else None))


def assert_same(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    worst = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    assert max(worst) < tolerance, worst


def brownian_pairs(schedule, times, nodes=2):
    """Noise for a method of two stages whose peer asks for it twice, from t to the middle and from t to s."""
    snr = schedule.log_snr(times).exp()
    for k, (t, s) in enumerate(pairwise(snr)):
        middle = (t * s).sqrt()
        share = ((middle - t) / (s - t)).sqrt() if t < s < math.inf else 1.0
        first, second = NOISE.normal("step", 2 * k), NOISE.normal("step", 2 * k + 1)
        yield first
        yield share * first + (1 - share**2) ** 0.5 * second


def step_noise(schedule, times):
    return (NOISE.normal("step", k) for k in range(len(times) - 1))


# -- diffusers --------------------------------------------------------------------------------------------------------

# where x is x_0 + sigma noise
SIGMA_SPACE = ("Euler", "Heun", "KDPM2", "LMS", "EDM", "DPMSolverSDE", "CMStochastic", "CosineDPM")
UNIFORM = torch.exp(torch.linspace(4, -2, 13, dtype=torch.float64))  # sigma / alpha, uniform in lambda
KARRAS = torch.linspace(30 ** (1 / 7), 0.05 ** (1 / 7), 11, dtype=torch.float64) ** 7
STOP = {"final_sigmas_type": "sigma_min"}
NOISE_FORM = {"algorithm_type": "dpmsolver", **STOP}
SDE, NOISE_SDE = {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver", **STOP}
PAIRS, FULL, HEUN = brownian_pairs, {"lower_order_final": False}, {"solver_type": "heun"}
EPSILON = {"prediction_type": "epsilon"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def orders(name, flags, ours, orders=(1, 2, 3), **options):
    return [(name, {"solver_order": p, **FULL, **flags}, ours.format(p), options) for p in orders]


# the scheduler, its arguments, our name; calls: evaluations of its first steps, the last for all that follow;
# sigmas: levels given to it (without 0 at the end) in place of its own; last: whether the last step is the same;
# noise: what its draws are, of ours; step: arguments of `step`
TABLE = [
    ("DDPM", {"variance_type": "fixed_small"}, "ddpm", {}),
    ("DDPM", {"variance_type": "fixed_large"}, "ddpm:variance=beta", {}),
    ("DDPM", {"timestep_spacing": "linspace"}, "ddpm", {}),
    ("DDIM", {}, "ddim", {}),
    ("DDIM", {"timestep_spacing": "trailing"}, "ddim", {}),
    ("DDIM", {}, "ddim:eta=0.5", {"step": {"eta": 0.5}}),
    ("DDIM", {}, "ddim:eta=1", {"step": {"eta": 1.0}}),
    ("DDPMParallel", {}, "ddpm", {}),
    ("DDIMParallel", {}, "ddim", {}),
    ("LCM", {}, "consistency", {}),
    ("TCD", {}, "ddim", {"step": {"eta": 0.0}, "last": False}),
    ("PNDM", {"skip_prk_steps": True}, "pndm", {"calls": (2, 1), "last": False}),
    ("PNDM", {"skip_prk_steps": False}, "pndm:start=runge-kutta", {"calls": (4, 4, 4, 1), "last": False}),
    ("IPNDM", {}, "ipndm:order=4", {"sigmas": KARRAS}),
    ("LMSDiscrete", {}, "lms:order=4", {"last": False}),
    ("LMSDiscrete", {}, "lms:order=2", {"step": {"order": 2}, "last": False}),
    ("EulerDiscrete", {}, "euler:variable=ratio", {}),
    ("EulerDiscrete", {"use_karras_sigmas": True}, "ddim", {}),
    ("EulerDiscrete", {"timestep_spacing": "trailing"}, "dpm++:order=1", {}),
    ("EulerAncestralDiscrete", {}, "ancestral:sampler=(euler:variable=ratio)", {}),
    ("EulerAncestralDiscrete", {}, "ddpm", {}),
    ("HeunDiscrete", {}, "heun:variable=ratio", {"calls": (2,)}),
    ("HeunDiscrete", {"use_karras_sigmas": True}, "heun:variable=ratio", {"calls": (2,)}),
    ("KDPM2Discrete", {}, "dpm-single:order=2", {"calls": (2,)}),
    ("KDPM2Discrete", {"use_karras_sigmas": True}, "dpm-single:order=2", {"calls": (2,)}),
    ("KDPM2AncestralDiscrete", {}, "ancestral:sampler=dpm-single", {"calls": (2,)}),
    *orders("DPMSolverMultistep", {}, "dpm++:order={},weights=published"),
    *orders("DPMSolverMultistep", {"use_karras_sigmas": True}, "dpm++:order={},weights=published"),
    *orders("DPMSolverMultistep", {"use_lu_lambdas": True}, "dpm++:order={},weights=published"),
    *orders("DPMSolverMultistep", FLOW, "dpm++:order={},weights=published"),
    *orders("DPMSolverMultistep", HEUN, "dpm++:order={},weights=exact", (2,)),
    *orders("DPMSolverMultistep", NOISE_FORM, "dpm:order={},weights=published"),
    *orders("DPMSolverMultistep", {**NOISE_FORM, **HEUN}, "dpm:order={},weights=exact", (2,)),
    *orders("DPMSolverMultistep", SDE, "dpm++:order={},eta=1", (1, 2)),
    *orders("DPMSolverMultistep", {**SDE, **HEUN}, "dpm++:order={},eta=1,weights=exact", (2,)),
    *orders("DPMSolverMultistep", NOISE_SDE, "dpm:order={},eta=1", (1, 2)),
    *orders("DPMSolverMultistep", {**NOISE_SDE, **HEUN}, "dpm:order={},eta=1,weights=exact", (2,)),
    *orders("DPMSolverMultistepInverse", {}, "dpm++:order={},weights=published"),
    *orders("CosineDPMSolverMultistep", {"sigma_max": 80.0, **EPSILON}, "dpm++:order={},eta=1", (1, 2)),
    *orders("DPMSolverSinglestep", STOP, "dpm++-single:order={}", (2,), sigmas=UNIFORM),
    *orders("DPMSolverSinglestep", {**STOP, **HEUN}, "dpm++-single:order={},weights=exact", (2, 3), sigmas=UNIFORM),
    *orders("DPMSolverSinglestep", NOISE_FORM, "dpm-single:order={}", (2,), sigmas=UNIFORM),
    *orders("DPMSolverSinglestep", {**NOISE_FORM, **HEUN}, "dpm-single:order={},weights=exact", (2, 3), sigmas=UNIFORM),
    *orders("DPMSolverSinglestep", {**STOP, **SDE}, "dpm++-single:order={},eta=1", (2,), sigmas=UNIFORM, noise=PAIRS),
    ("DPMSolverSDE", {}, "dpm++-single:order=2,eta=1", {"calls": (2,), "noise": PAIRS}),
    ("DPMSolverSDE", {"use_karras_sigmas": True}, "dpm++-single:order=2,eta=1", {"calls": (2,), "noise": PAIRS}),
    *orders("DEISMultistep", {}, "deis:variable=lambda,order={}", last=False),
    *[row for b in ("bh1", "bh2") for form, x0 in (("data", True), ("noise", False))
      for row in orders("UniPCMultistep", {"solver_type": b, "predict_x0": x0},
                        f"unipc:order={{}},weights={b},form={form}", sigmas=KARRAS)],
    *orders("UniPCMultistep", {"disable_corrector": list(range(50))}, "unipc:order={},corrector=false", sigmas=KARRAS),
    *orders("UniPCMultistep", FLOW, "unipc:order={}", (1, 2), last=False),
    *[("SASolver", {"tau_func": lambda t: 0.0, "predictor_order": p, "corrector_order": p + 1, **FULL},
       f"unipc:order={p},weights=bh1", {"sigmas": KARRAS}) for p in (1, 2, 3)],
    ("EDMEuler", {"sigma_max": 80.0}, "euler:variable=ratio", {}),
    *orders("EDMDPMSolverMultistep", {}, "dpm++:order={},weights=published"),
    *orders("EDMDPMSolverMultistep", SDE, "dpm++:order={},eta=1", (1, 2)),
    ("CMStochasticIterative", {"sigma_min": 1e-7, "clip_denoised": False}, "consistency", {}),
    ("FlowMatchEulerDiscrete", {}, "ddim", {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, "dpm++:order=1", {}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "consistency", {}),
    ("FlowMatchLCM", {}, "consistency", {}),
]  # fmt: skip


def scheduler_of(name, module=None, **flags):
    """A scheduler of diffusers, its table in float64."""
    diffusers = pytest.importorskip("diffusers")
    if name in ("DPMSolverSDE", "CosineDPMSolverMultistep"):
        pytest.importorskip("torchsde")
    diffusers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = {"clip_sample": False, **flags} if name.startswith(("DDPM", "DDIM")) else flags
        made = getattr(module or diffusers, f"{name}Scheduler")(**flags)
    if hasattr(made, "alphas_cumprod"):
        made.alphas_cumprod = VP.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000).square()
    return made


class Peer:
    """A diffusers scheduler with the exact denoiser in the network's place, told the level on which x stands."""

    def __init__(self, name, flags, sigmas=None, steps=STEPS):
        self.name, self.scheduler = name, scheduler_of(name, **flags)
        self.scheduler.set_timesteps(steps if sigmas is None else len(sigmas) - 1)
        self.flow = name.startswith("FlowMatch") or "use_flow_sigmas" in flags
        self.schedule = Flow() if self.flow else VE if name.startswith(SIGMA_SPACE) else VP
        if sigmas is not None:
            self.scheduler.sigmas, self.scheduler.num_inference_steps = sigmas, len(sigmas) - 1
            self.scheduler.betas, self.scheduler.alphas = sigmas.atan().sin(), sigmas.atan().cos()
            self.scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
            if hasattr(self.scheduler, "order_list"):
                self.scheduler.order_list = self.scheduler.get_order_list(len(sigmas) - 1)
        elif hasattr(self.scheduler, "sigmas"):
            self.scheduler.sigmas = self.scheduler.sigmas.double()
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)

    @property
    def times(self):
        """The levels on which the scheduler stands, as times of our schedule, down to 0 where it goes there."""
        levels = self.levels()
        return torch.unique_consecutive(levels)

    def levels(self):
        s = self.scheduler
        if self.name == "IPNDM":
            return ratio_time(self.schedule, s.betas / s.alphas)
        if getattr(s, "sigmas", None) is not None:
            return s.sigmas if self.flow else ratio_time(self.schedule, s.sigmas)
        steps = s.timesteps if self.name != "PNDM" else torch.from_numpy(s._timesteps[::-1].copy())
        return torch.cat([(steps.double() + 1) / 1000, torch.zeros(1).double()])

    def level(self, t):
        """Where x stands, as a time."""
        s = self.scheduler
        index = getattr(s, "step_index", None) or 0
        if not getattr(s, "state_in_first_order", True) and "KDPM2" in self.name:
            interpolated = s.sigmas_interpol[index - 1 if "Ancestral" in self.name else index]
            return ratio_time(self.schedule, interpolated.double())
        if not getattr(s, "state_in_first_order", True) and "SDE" in self.name:
            return ratio_time(self.schedule, s.mid_point_sigma.double())
        if self.name.startswith(("DDPM", "DDIM", "PNDM", "LCM", "TCD")):
            return (t.double() + 1) / 1000
        return self.levels()[index]

    def output(self, x, t):
        level = self.level(t)
        estimate = mixture(self.schedule)(x, level)
        if self.flow:
            return estimate.flow
        if self.name == "IPNDM":  # whose slope, the noise, is made from v
            return estimate.v
        if hasattr(self.scheduler.config, "sigma_data"):  # x_0 = c_skip x + c_out F
            sigma, data = float(VE.sigma(level)), self.scheduler.config.sigma_data
            if self.name.startswith("CM"):
                c_skip, c_out = self.scheduler.get_scalings_for_boundary_condition(sigma)
            else:
                c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
            return (estimate.x0 - c_skip * x) / c_out
        return estimate.noise

    def walk(self, x, **step):
        for t in self.scheduler.timesteps:
            if hasattr(self.scheduler, "is_scale_input_called"):
                self.scheduler.scale_model_input(x, t)  # which also finds the step's number
            x = self.scheduler.step(self.output(x, t), t, x, return_dict=False, **step)[0]
            yield x


def whole_steps(path, calls):
    """Of the results of all calls, those that end a step."""
    path, found, k = list(path), [], 0
    while path:
        count = min(calls[min(k, len(calls) - 1)], len(path))
        found.append(path[count - 1])
        path, k = path[count:], k + 1
    return found


def draw_from(monkeypatch, scheduler, noise):
    """The scheduler's noise is `noise`'s."""
    monkeypatch.setattr(
        sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, **__: next(noise), raising=False
    )
    scheduler.noise_sampler = lambda *_: next(noise)


@pytest.mark.parametrize(("name", "flags", "mine", "options"), TABLE, ids=[f"{a} {c}" for a, _, c, _ in TABLE])
def test_diffusers_walks_the_same_path(monkeypatch, name, flags, mine, options):
    peer = Peer(name, flags, options.get("sigmas"))
    schedule, times = peer.schedule, peer.times
    calls = options.get("calls", (1,))
    if name == "DPMSolverSinglestep":
        calls = (flags["solver_order"],)
        times = times[:: calls[0]]
    draw_from(monkeypatch, peer.scheduler, options.get("noise", step_noise)(schedule, times))
    theirs = whole_steps(peer.walk(start_at(schedule, times[0]), **options.get("step", {})), calls)
    expected = ours(mine, schedule, times)
    count = len(expected) if options.get("last", True) else len(expected) - 1
    assert len(theirs) in (count, count + 1) and count >= 3
    assert_same(theirs[:count], expected[:count])


# -- where diffusers means something else, or is wrong ----------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "misses"), [("linspace", 19), ("leading", 0), ("trailing", 0)])
def test_ddim_of_diffusers_guesses_the_level_that_its_grid_states(spacing, misses):
    """It lands 1000 // steps below, wherever the network is called next; ours reads the grid."""
    scheduler = scheduler_of("DDIM", timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    missed = 0
    for t, following in pairwise(scheduler.timesteps):
        alpha = scheduler.alphas_cumprod.sqrt()
        # data at 1 and no noise: x is alpha
        landed = scheduler.step(torch.zeros(1).double(), t, alpha[t].reshape(1), return_dict=False)[0]
        missed += bool((landed - alpha[following]).abs() > 1e-6)
    assert missed == misses


def test_pndm_of_diffusers_guesses_too_and_loses_its_order():
    def errors(steps):
        peer = Peer("PNDM", {"timestep_spacing": "linspace", "skip_prk_steps": True}, steps=steps)
        x, denoiser = start_at(VP, peer.times[0]), mixture(VP)
        truth = denoiser(solve(denoiser, x, float(peer.times[0]), 1e-4), 1e-4).x0
        ends = list(peer.walk(x))[-1], ours("pndm", VP, peer.times)[-1]
        return [float((end - truth).norm()) for end in ends]

    (their_coarse, our_coarse), (their_fine, our_fine) = errors(25), errors(50)
    assert our_coarse < 0.1 * their_coarse and our_fine < 0.1 * their_fine
    assert 1.8 < their_coarse / their_fine < 2.2  # first order


def test_ddim_inversion_of_diffusers_is_ours_where_the_network_is_told_the_level_of_x():
    """Its pipelines tell the network the level to which the step goes: also first order, with another constant."""
    scheduler, denoiser = scheduler_of("DDIMInverse"), mixture(VP)
    scheduler.set_timesteps(STEPS)
    levels = (scheduler.timesteps.double() + 1) / 1000
    x, theirs = Z, []
    for at, t in zip(levels, scheduler.timesteps[1:], strict=False):
        x = scheduler.step(denoiser(x, at).noise, t, x, return_dict=False)[0]
        theirs.append(x)
    assert_same(theirs, ours("ddim", VP, levels, Z))


PRIMED = 3


@functools.cache
def exact_path(steps):
    """(lambdas, x there), uniform in lambda from -2 to 2 in so many steps, and `PRIMED` before them."""
    lambdas = -2 + 4 / steps * torch.arange(-PRIMED, steps + 1, dtype=torch.float64)
    times = VP.time(2 * lambdas)
    start = start_at(VP, times[0])
    return lambdas, [start, *solve(mixture(VP), start, float(times[0]), times[1:].tolist(), tolerance=1e-9)]


def error_with_exact_history(steps, name, flags=None):
    """The error at lambda = 2, uniform in lambda, from exact values at the first levels; ours where no flags."""
    lambdas, exact = exact_path(steps)
    times, denoiser, x = VP.time(2 * lambdas), mixture(VP), exact[0]
    if flags is None:
        sampler, grid = named(name), times[:, None].expand(-1, len(x))
        state = sampler.init(denoiser, x, grid)
    else:
        peer = Peer(name, flags, torch.exp(-lambdas))
    for k in range(len(times) - 1):
        x = exact[k] if k <= PRIMED else x
        if flags is None:
            x, state = sampler.step(denoiser, x, grid[k], grid[k + 1], state, None)
        else:
            t = peer.scheduler.timesteps[k]
            x = peer.scheduler.step(peer.output(x, t), t, x, return_dict=False)[0]
    return float((x - exact[-1]).norm())


@pytest.mark.parametrize(("form", "flags"), [("dpm++", STOP), ("dpm++", {**STOP, **HEUN}), ("dpm", NOISE_FORM)])
def test_the_published_third_order_multistep_solver_is_second_order(form, flags):
    """Half of the second difference: ours has it as weights=published; with exact weights it is third order."""
    flags = {"solver_order": 3, **FULL, **flags}
    runs = [("DPMSolverMultistep", flags), (f"{form}:order=3,weights=published",), (f"{form}:order=3,weights=exact",)]
    coarse, fine = ([error_with_exact_history(n, *run) for run in runs] for n in (64, 128))
    slopes = [math.log2(a / b) for a, b in zip(coarse, fine, strict=True)]
    assert abs(slopes[0] - 2) < 0.1 and abs(slopes[1] - 2) < 0.1 and abs(slopes[2] - 3) < 0.2, slopes
    assert abs(fine[0] / fine[1] - 1) < 0.01 and fine[2] < 0.15 * fine[0]


class Basis(NoiseSource):
    """Noise for linear problems: sample k + 1 of the batch has 1 in draw k and no other noise, sample 0 has none."""

    def __init__(self, steps):
        super().__init__(range(steps + 1), (1,))
        self.vectors = torch.eye(steps + 1, dtype=torch.float64)[..., None]

    def normal(self, purpose, k=0, shape=None):
        return self.vectors[int(torch.as_tensor(k).flatten()[0]) + 1]


def variance_error(steps, name, flags=None):
    """Of the variance at lambda = 2, relative, from the exact marginal at -2, on Gaussian data; ours where no flags."""
    lambdas = torch.linspace(-2, 2, steps + 1, dtype=torch.float64)
    times, noise = VP.time(2 * lambdas), Basis(steps)
    denoiser = Gaussian(VP, torch.zeros(1), torch.full((1,), 0.36))
    variance = VP.alpha(times).square() * 0.36 + VP.sigma(times).square()
    x = noise.vectors[0] * variance[0].sqrt()
    if flags is None:
        sampler, grid = named(name), times[:, None].expand(-1, len(x))
        state = sampler.init(denoiser, x, grid)
        for k in range(steps):
            x, state = sampler.step(denoiser, x, grid[k], grid[k + 1], state, noise)
    else:
        scheduler = Peer(name, flags, torch.exp(-lambdas)).scheduler
        for k, t in enumerate(scheduler.timesteps):
            output = denoiser(x, times[k]).noise
            x = scheduler.step(output, t, x, variance_noise=noise.normal("step", k), return_dict=False)[0]
    return abs(float(x.square().sum() / variance[-1]) - 1)


def test_the_third_order_sde_solver_of_diffusers_has_a_wrong_sign_and_is_worse_than_its_second():
    """`- 0.5` in its last coefficient where the integral gives `+ 0.5`: a term of first order stays."""
    third, second = ({"solver_order": p, **FULL, **STOP, **SDE} for p in (3, 2))
    coarse, fine = (
        [
            variance_error(n, "DPMSolverMultistep", third),
            variance_error(n, "DPMSolverMultistep", second),
            variance_error(n, "dpm++:order=3,eta=1,weights=published"),
            variance_error(n, "dpm++:order=3,eta=1"),
        ]
        for n in (50, 100)
    )
    slopes = [math.log2(a / b) for a, b in zip(coarse, fine, strict=True)]
    assert slopes[0] < 1.1 and min(slopes[1:]) > 1.8, slopes
    assert fine[0] > 30 * max(fine[1:]), fine


def test_heun_over_the_time_of_flows_has_the_order_of_ours_and_midpoint_is_closer():
    """FlowMatchHeun's rule is the trapezoid over flow time; ours are over the angle (or sigma / alpha)."""

    def errors(steps):
        peer = Peer("FlowMatchHeunDiscrete", {}, steps=steps)
        x, denoiser = start_at(peer.schedule, peer.times[0]), mixture(peer.schedule)
        truth = solve(denoiser, x, float(peer.times[0]), float(peer.times[-2]))
        ends = [whole_steps(peer.walk(x), (2,))[-2]]
        ends += [ours(name, peer.schedule, peer.times)[-2] for name in ("heun", "midpoint")]
        return [float((end - truth).norm()) for end in ends]

    coarse, fine = errors(20), errors(40)
    assert all(1.8 < math.log2(a / b) < 2.2 for a, b in zip(coarse, fine, strict=True))
    assert fine[2] < 0.5 * fine[0]


@pytest.mark.parametrize(("churn", "same"), [(0.0, True), (2.0, False)])
def test_churn_in_diffusers_depends_on_what_the_network_predicts(monkeypatch, churn, same):
    """EulerDiscrete adds its noise after the network was called: Karras et al. call it where x then stands."""
    theirs = []
    for prediction in ("epsilon", "v_prediction", "sample"):
        peer = Peer("EulerDiscrete", {"prediction_type": prediction, "use_karras_sigmas": True})
        draw_from(monkeypatch, peer.scheduler, step_noise(VE, peer.times))
        x = start_at(VE, peer.times[0])
        for k, t in enumerate(peer.scheduler.timesteps):
            peer.scheduler.scale_model_input(x, t)
            estimate, sigma = mixture(VE)(x, peer.times[k]), peer.scheduler.sigmas[k]
            v = (estimate.noise - sigma * estimate.x0) / (1 + sigma**2).sqrt()
            output = {"epsilon": estimate.noise, "v_prediction": v, "sample": estimate.x0}[prediction]
            x = peer.scheduler.step(output, t, x, s_churn=churn, return_dict=False)[0]
        theirs.append(x)
    for other in theirs[1:]:
        assert (float((other - theirs[0]).norm() / theirs[0].norm()) < 1e-4) == same


# -- score_sde's predictor-corrector and Euler-Maruyama, in diffusers --------------------------------------------------


def test_predictor_corrector_of_score_sde(monkeypatch):
    """ScoreSdeVe; its corrector takes batch means of norms where ours takes each sample's, so one sample."""
    scheduler, schedule = scheduler_of("ScoreSdeVe", snr=0.16), VarianceExploding(sigma_max=60.0)
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS, sigma_min=0.05, sigma_max=50.0)
    sigmas = scheduler.discrete_sigmas = scheduler.discrete_sigmas.double()
    times = torch.cat([ratio_time(schedule, sigmas.flip(0)), torch.zeros(1).double()])
    x, denoiser, one = 50 * Z[:1], mixture(schedule), NoiseSource([0], (2,), dtype=torch.float64)
    expected = ours("langevin:snr=0.16,norms=measured,sampler=(ddpm:variance=beta)", schedule, times, x, [0])
    draws = (one.normal(purpose, k) for k in range(STEPS) for purpose in ("correction", "step"))
    draw_from(monkeypatch, scheduler, draws)
    theirs = []
    for t, level in zip(scheduler.timesteps, times, strict=False):
        x = scheduler.step_correct(denoiser(x, level).score, x, return_dict=False)[0]
        x = scheduler.step_pred(denoiser(x, level).score, t, x, return_dict=False)[0]
        theirs.append(x)
    assert_same(theirs[:-1], expected[:-1])


def test_euler_maruyama_of_score_sde(monkeypatch):
    """ScoreSdeVp says dt = 1 / steps; its own grid has steps of 0.999 / (steps - 1), so it is given one that agrees."""
    diffusers = pytest.importorskip("diffusers")
    module = importlib.import_module(f"{diffusers.__name__}.schedulers.deprecated.scheduling_sde_vp")
    scheduler, schedule = scheduler_of("ScoreSdeVp", module), VariancePreserving()
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    scheduler.timesteps = times[:-1]
    x, denoiser = start_at(schedule, times[0]), mixture(schedule)
    expected = ours("euler-maruyama", schedule, times)
    draw_from(monkeypatch, scheduler, step_noise(schedule, times))
    theirs = []
    for t in scheduler.timesteps:
        x = scheduler.step_pred(denoiser(x, t).noise, x, t)[0]
        theirs.append(x)
    assert_same(theirs[:-1], expected[:-1])


# -- k-diffusion ------------------------------------------------------------------------------------------------------

LAST_OFF = {"last": False}
K_TABLE = [
    ("euler", {}, "euler:variable=ratio", {}),
    ("euler", {"s_churn": 3.0, "s_tmax": 20.0}, "churn:sampler=(euler:variable=ratio),amount=3,low=0,high=20", {}),
    ("heun", {}, "heun:variable=ratio", {}),
    ("heun", {"s_churn": 3.0, "s_tmax": 20.0, "s_noise": 1.003}, "churn:amount=3,low=0,high=20,noise_std=1.003", {}),
    ("dpm_2", {}, "dpm-single:order=2", {}),
    ("lms", {}, "lms:order=4", LAST_OFF),
    ("lms", {"order": 2}, "lms:order=2", LAST_OFF),
    ("euler_ancestral", {}, "ancestral:sampler=ddim", {}),
    ("euler_ancestral", {}, "ddpm", {}),
    ("euler_ancestral", {"eta": 0.6}, "ddim:eta=0.6", {}),
    ("dpm_2_ancestral", {}, "ancestral:sampler=dpm-single", {}),
    ("dpm_2_ancestral", {"eta": 0.6}, "ancestral:sampler=dpm-single,eta=0.6", {}),
    ("dpmpp_2s_ancestral", {}, "ancestral:sampler=dpm++-single", {}),
    ("dpmpp_2s_ancestral", {"eta": 0.6}, "ancestral:sampler=dpm++-single,eta=0.6", {}),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, "dpm++-single:order=2", {}),
    ("dpmpp_sde", {}, "dpm++-single:order=2,eta=1", {"noise": PAIRS}),
    ("dpmpp_2m", {}, "dpm++:order=2", {}),
    ("dpmpp_2m_sde", {}, "dpm++:order=2,eta=1", {}),
    ("dpmpp_2m_sde", HEUN, "dpm++:order=2,eta=1,weights=exact", {}),
    ("dpmpp_2m_sde", {"eta": 0.49}, "dpm++:order=2,eta=0.7", {}),  # its eta is the square of ours
    ("dpmpp_3m_sde", {}, "dpm++:order=3,eta=1,weights=published", {}),
    ("dpmpp_3m_sde", {"eta": 0.0}, "dpm++:order=3,weights=published", {}),
]


@pytest.fixture(scope="module")
def k_diffusion():
    """`k_diffusion.sampling`, alone: the package's other modules import the whole of image training."""
    found = importlib.util.find_spec("k_diffusion") or pytest.skip("k-diffusion is not installed")
    names = ("torchvision", "torchvision.transforms", "torchdiffeq", "torchsde")
    stubs = {name: mock.MagicMock() for name in names if not importlib.util.find_spec(name.partition(".")[0])}
    with mock.patch.dict(sys.modules):
        sys.modules.update({"k_diffusion": importlib.util.module_from_spec(found), **stubs})
        yield importlib.import_module("k_diffusion.sampling")


class ExactSecondStep:
    """The second step of `sampler`, which has two points only, by exact weights in place of the middle."""

    def __new__(cls, sampler):
        class Changed(type(sampler)):
            def rows(self, schedule, times):
                rows = super().rows(schedule, times)
                rows[1] = replace(sampler, weights="exact").rows(schedule, times)[1]
                return rows

        return Changed(**vars(sampler))


@pytest.mark.parametrize(("name", "flags", "mine", "options"), K_TABLE, ids=[f"{a} {c}" for a, _, c, _ in K_TABLE])
def test_k_diffusion_walks_the_same_path(monkeypatch, k_diffusion, name, flags, mine, options):
    sigmas = torch.cat([KARRAS, torch.zeros(1).double()])
    times, x, theirs, denoiser = ratio_time(VE, sigmas), 30 * Z, [], mixture(VE)
    noise = options.get("noise", step_noise)(VE, times)
    if name not in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m"):
        flags = {**flags, "noise_sampler": lambda *_: next(noise)}
    churn = (NOISE.normal("churn", k) for k in range(len(sigmas)))
    monkeypatch.setattr(k_diffusion.torch, "randn_like", lambda x: next(churn))
    last = getattr(k_diffusion, f"sample_{name}")(
        lambda x, sigma: denoiser(x, ratio_time(VE, sigma)).x0, x, sigmas, disable=True,
        callback=lambda found: theirs.append(found["x"]), **flags,
    )  # fmt: skip
    sampler = ExactSecondStep(named(mine)) if name == "dpmpp_3m_sde" else named(mine)
    expected = ours(sampler, VE, times, x)
    theirs = [*theirs[1:], last]
    if "s_churn" in flags:  # it reports x with the noise of the next step
        theirs, expected = theirs[-1:], expected[-1:]
    count = len(expected) if options.get("last", True) else len(expected) - 1
    assert_same(theirs[:count], expected[:count])
