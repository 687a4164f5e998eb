"""Names -> samplers: the registry, and arguments within a name."""

import ast

from undiffuse.errors import InputError
from undiffuse.registry import build
from undiffuse.samplers.adaptive import Adaptive
from undiffuse.samplers.ancestral import Ancestral
from undiffuse.samplers.base import Sampler
from undiffuse.samplers.churn import Churn
from undiffuse.samplers.consistency import Consistency
from undiffuse.samplers.ddim import DDIM
from undiffuse.samplers.ddpm import DDPM
from undiffuse.samplers.euler_maruyama import EulerMaruyama
from undiffuse.samplers.langevin import Langevin
from undiffuse.samplers.multistep import DEIS, IPNDM, LMS, Adams, DPMSolver, DPMSolverPlusPlus, UniPC
from undiffuse.samplers.pndm import PNDM
from undiffuse.samplers.restart import Restart
from undiffuse.samplers.single_step import DPMSolverPlusPlusSingle, DPMSolverSingle, Euler, Heun, Midpoint

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "midpoint": Midpoint,
    "adams": Adams,
    "lms": LMS,
    "dpm": DPMSolver,
    "dpm++": DPMSolverPlusPlus,
    "dpm-single": DPMSolverSingle,
    "dpm++-single": DPMSolverPlusPlusSingle,
    "deis": DEIS,
    "unipc": UniPC,
    "ipndm": IPNDM,
    "pndm": PNDM,
    "adaptive": Adaptive,
    "euler-maruyama": EulerMaruyama,
    "ancestral": Ancestral,
    "churn": Churn,
    "langevin": Langevin,
    "restart": Restart,
    "consistency": Consistency,
}


def _split(text: str) -> list[str]:
    """The parts between commas that are not within parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def named(name: str, **arguments: object) -> Sampler:
    """The sampler called `name` in `SAMPLERS`, with its arguments, which the name may hold too: "ddim:eta=0.5".

    Several are separated by commas: "dpm++:order=2,eta=1". A sampler around another takes it by name:
    "restart:sampler=dpm++" or "restart:sampler=(dpm++:order=3),repeats=4".

    Raises: InputError for unknown names and arguments, with the nearest known.
    """
    name, _, given = name.partition(":")
    for part in _split(given):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"a sampler's arguments have the form name:key=value, not {part!r}")
        try:
            arguments[key] = value == "true" if value in ("true", "false") else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value  # a bare word
    inner = arguments.get("sampler")
    if isinstance(inner, str):
        arguments["sampler"] = named(inner.removeprefix("(").removesuffix(")"))
    return build("sampler", SAMPLERS, name, arguments)
