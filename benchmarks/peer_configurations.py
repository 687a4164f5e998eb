"""What is run of the peers: every deterministic solver of diffusers and k-diffusion over its flags and grids."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# lambda_min_clipped that diffusers' documentation recommends for the cosine table, whose last beta is 0.999
CLIPPED_LAMBDA = -5.1
NEVER_TO_ZERO = ("DEISMultistep", "SASolver")  # not finite in a step into sigma = 0: they end on the level before it

# solver -> (evaluations per step, except the one into 0; arguments that leave noise out)
K_DIFFUSION: dict[str, tuple[int, dict[str, Any]]] = {
    "euler": (1, {}),
    "heun": (2, {}),
    "dpm_2": (2, {}),
    "lms": (1, {}),
    "dpmpp_2s_ancestral": (2, {"eta": 0.0}),
    "dpmpp_2m": (1, {}),
    "dpmpp_2m_sde": (1, {"eta": 0.0, "noise_sampler": lambda *_: 0.0}),
    "dpmpp_3m_sde": (1, {"eta": 0.0, "noise_sampler": lambda *_: 0.0}),
}


@dataclass(frozen=True)
class Configuration:
    """One peer with its solver, the flags that differ from its defaults, and a grid where the flags choose none.

    peer: "diffusers" or "k-diffusion"; grid: a name in `GRIDS`, or "" where the flags of a diffusers scheduler say it.
    """

    peer: str
    solver: str
    flags: tuple[tuple[str, Any], ...] = ()
    grid: str = ""

    @property
    def name(self) -> str:
        flags = ", ".join(f"{key}={value}" for key, value in self.flags)
        return f"{self.peer} {self.solver}({flags})" + (f" on {self.grid}" if self.grid else "")


def _flags(**choices: Iterable[Any]) -> Iterable[dict[str, Any]]:
    return (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def candidates(schedule_name: str) -> Iterable[Configuration]:
    """All configurations, some of which a peer refuses."""

    def of(solver: str, *parts: dict[str, Any], grid: str = "", peer: str = "diffusers") -> Configuration:
        return Configuration(peer, solver, tuple({k: v for p in parts for k, v in p.items()}.items()), grid)

    orders, upper = [{"solver_order": k} for k in (1, 2, 3)], [{"solver_order": k} for k in (2, 3)]
    heun, stop = {"solver_type": "heun"}, {"final_sigmas_type": "sigma_min"}
    noise_form = {"algorithm_type": "dpmsolver"}
    # the schedulers whose grid is a list of ratios, which can be given; with the flags of their better forms
    settable = [
        *(("DPMSolverMultistep", flags) for flags in (*orders, {**orders[1], **heun})),
        ("DPMSolverMultistep", {"lower_order_final": False, **upper[1]}),
        *(("DPMSolverSinglestep", flags) for flags in upper),
        *(("UniPCMultistep", flags) for flags in upper),
        *(("DEISMultistep", flags) for flags in upper),
        *(("SASolver", {"predictor_order": p, "corrector_order": c}) for p, c in ((2, 2), (3, 3))),
        *((name, {}) for name in ("EulerDiscrete", "LMSDiscrete", "IPNDM")),
    ]

    if schedule_name == "edm":
        sigma_schedules = list(
            _flags(sigma_schedule=("karras", "exponential"), final_sigmas_type=("zero", "sigma_min"))
        )
        solvers = [*orders, *({**flags, **heun} for flags in upper[:1])]
        solvers += [{**flags, "lower_order_final": False} for flags in upper]
        yield from (of("EDMDPMSolverMultistep", a, b) for a in solvers for b in sigma_schedules)
        yield from (of("EDMEuler", a) for a in sigma_schedules)
        own_grids = ["karras", "karras, rho 5", "exponential", "polyexponential, rho 1.5", "quadratic to 1e-3"]
    else:
        spacings = list(_flags(timestep_spacing=("linspace", "leading", "trailing")))
        spacings[1]["steps_offset"] = 1
        sigmas = [{f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")]
        native, lu = [*spacings, *sigmas], {"use_lu_lambdas": True}

        multistep = [*orders, {**orders[1], **heun}]
        multistep += [{"lower_order_final": False, **upper[1]}]
        multistep += [{"euler_at_final": True, **flags, **stop} for flags in upper]  # into 0 all are Euler's
        multistep += [{"lower_order_final": False, **flags, **stop} for flags in upper]
        multistep += [{**flags, **stop} for flags in upper]
        multistep += [{**noise_form, **flags, **stop} for flags in (*upper, {**orders[1], **heun})]
        yield from (of("DPMSolverMultistep", a, b) for a in multistep for b in (*native, lu))

        single = [*upper, {**orders[1], **heun}, *({"lower_order_final": True, **flags} for flags in upper)]
        single += [{**flags, **stop} for flags in upper] + [{**noise_form, **flags, **stop} for flags in upper]
        yield from (of("DPMSolverSinglestep", a, b) for a in single for b in ({}, *sigmas))

        # bh1 is not finite in a step into sigma = 0: its B(h) = h is infinite there
        unipc = [*orders, *({"solver_type": b, **flags, **stop} for b in ("bh1", "bh2") for flags in upper)]
        unipc += [{"disable_corrector": tuple(range(50)), **flags} for flags in upper]
        unipc += [{"predict_x0": False, **flags, **stop} for flags in upper]
        yield from (of("UniPCMultistep", a, b) for a in unipc for b in native)

        yield from (of("DEISMultistep", a, b) for a in orders for b in native)
        sa = [{"predictor_order": p, "corrector_order": c} for p, c in ((2, 2), (3, 3))]
        yield from (of("SASolver", a, b) for a in sa for b in native)
        for name in ("EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete"):
            yield from (of(name, flags) for flags in native)
        yield from (of(name, flags) for name in ("DDIM", "PNDM") for flags in spacings)
        if schedule_name == "cosine":
            clipped = {"lambda_min_clipped": CLIPPED_LAMBDA}
            yield from (of("DPMSolverMultistep", clipped, a, b) for a in upper for b in (*spacings, lu))
            yield from (of("DPMSolverSinglestep", clipped, a) for a in upper)
        own_grids = []

    authors = ["quadratic", "quadratic, stopping at t_0", "quadratic to 1e-4", "uniform"]
    for solver, flags in settable:
        alike = [authors[1]] if solver in NEVER_TO_ZERO else []
        yield from (of(solver, flags, grid=grid) for grid in (*own_grids, *authors) if grid not in alike)
    yield from (of("UniPCMultistep", {"solver_type": "bh1"}, flags, grid=authors[1]) for flags in upper)

    k_grids = ["karras", "karras, rho 5", "exponential", "polyexponential, rho 1.5"]
    k_grids += {"linear": ["vp"], "cosine": ["karras, clipped", "exponential, clipped"], "edm": []}[schedule_name]
    k_solvers = [(name, {}) for name in K_DIFFUSION if name != "lms"]
    k_solvers += [("lms", {"order": k}) for k in (2, 3, 4)] + [("dpmpp_2m_sde", {"solver_type": "heun"})]
    yield from (
        of(name, flags, grid=g, peer="k-diffusion") for name, flags in k_solvers for g in (*k_grids, "quadratic")
    )
    yield of("dpm_fast", peer="k-diffusion")
