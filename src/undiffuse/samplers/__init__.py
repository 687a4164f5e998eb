"""Denoiser -> samples: one file a family, and the one loop that walks a grid of times."""

import ast

from undiffuse.errors import InputError
from undiffuse.registry import build
from undiffuse.samplers import grid
from undiffuse.samplers.base import LinearSampler, Sampler, State, sample, walk
from undiffuse.samplers.ddim import DDIM
from undiffuse.samplers.ddpm import DDPM
from undiffuse.samplers.euler_maruyama import EulerMaruyama
from undiffuse.samplers.exponential import DPMSolverPlusPlus
from undiffuse.samplers.grid import GRIDS
from undiffuse.samplers.runge_kutta import Euler, Heun

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm++": DPMSolverPlusPlus,
    "euler-maruyama": EulerMaruyama,
}


def named(name: str, **arguments: object) -> Sampler:
    """The sampler called `name` in `SAMPLERS`, with its arguments, which the name may hold too: "ddim:eta=0.5".

    Several are separated by commas: "dpm++:order=2,weights=midpoint".
    """
    name, _, given = name.partition(":")
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"a sampler's arguments have the form name:key=value, not {part!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value  # a bare word
    return build("sampler", SAMPLERS, name, arguments)


__all__ = [
    "DDIM", "DDPM", "GRIDS", "SAMPLERS", "DPMSolverPlusPlus", "Euler", "EulerMaruyama", "Heun", "LinearSampler",
    "Sampler", "State", "grid", "named", "sample", "walk",
]  # fmt: skip
