"""Names -> samplers: the registry, arguments within a name, and the names of other toolkits."""

import ast
import difflib
import re

from undiffuse.errors import InputError
from undiffuse.registry import build
from undiffuse.samplers.adaptive import Adaptive
from undiffuse.samplers.aliases import ALIASES, GRID_ALIASES, GRID_ARGUMENTS
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


def _plain(name: str) -> str:
    """A name without what does not tell names apart: case, spaces, hyphens, underscores, quotes, "sample_", ..."""
    letters = re.sub(r"[\s_'\"-]", "", name.lower()).replace("++", "pp")
    return re.sub(r"^sample(?=.)|scheduler(?=$|\()|(?<=sde)gpu", "", letters)


def _translations() -> dict[str, str]:
    """Plain names -> ours: those of other toolkits, then our own."""
    found = {_plain(alias): ours for ours, kinds in ALIASES.items() for kind in kinds for alias in kind}
    return {_plain(name): name for name in SAMPLERS} | found


_OURS = _translations()
_GRIDS = {_plain(alias): grid for alias, grid in GRID_ALIASES.items()}
_GRID_ARGUMENTS = {_plain(argument): grid for argument, grid in GRID_ARGUMENTS.items()}


def split(text: str) -> list[str]:
    """The parts between commas that are not within parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def split_names(text: str) -> list[str]:
    """Several samplers' names, with commas between them; `key=value` belongs to the name before it.

    >>> split_names("dpm++:order=3,eta=1, DPM++ 2M Karras,adams@angle")
    ['dpm++:order=3,eta=1', 'DPM++ 2M Karras', 'adams@angle']
    """
    names: list[str] = []
    for part in split(text):
        if names and re.match(r"\w+=", part):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def _translated(name: str) -> tuple[str, str | None]:
    """A name without arguments of ours -> our name, which may have some, and the grid it asks for.

    Raises: InputError for an unknown name, with the nearest known.
    """
    if name in SAMPLERS:  # as it stands: "heun" is ours, "Heun" that of A1111
        return name, None
    grid, plain = None, _plain(name)
    if called := re.fullmatch(r"([^()]+)\(([^()]*)\)", plain):  # Class(argument=value, ...)
        given = split(called[2])
        grid = next((_GRID_ARGUMENTS[argument] for argument in given if argument in _GRID_ARGUMENTS), None)
        rest = sorted(argument for argument in given if argument not in _GRID_ARGUMENTS)
        plain = f"{called[1]}({','.join(rest)})" if rest else called[1]
    else:
        ends = sorted((end for end in _GRIDS if plain.endswith(end)), key=len, reverse=True)
        end = next((end for end in ends if plain.removesuffix(end) in _OURS), None)
        if end is not None and plain not in _OURS:
            grid, plain = _GRIDS[end], plain.removesuffix(end)
    if plain not in _OURS:
        raise _unknown(name)
    return _OURS[plain], grid


def _unknown(name: str) -> InputError:
    shown = {alias.lower(): alias for kinds in ALIASES.values() for kind in kinds for alias in kind}
    shown |= {own: own for own in SAMPLERS}
    near = [repr(shown[lower]) for lower in difflib.get_close_matches(name.lower(), shown, n=3, cutoff=0.5)]
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return InputError(
        f"unknown sampler {name!r}:{hint} Known: {', '.join(SAMPLERS)}, and the names of diffusers, k-diffusion, A1111 "
        "and ComfyUI that `undiffuse samplers` lists"
    )


def _value(text: str) -> object:
    """A number, a truth value, or a bare word."""
    try:
        return text == "true" if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def understand(name: str, **arguments: object) -> tuple[Sampler, str | None]:
    """The sampler that a name means, and the name of the time grid that it asks for, if it asks for one.

    A name is one of `SAMPLERS`, or what diffusers, k-diffusion, A1111 or ComfyUI say, in whatever case and with or
    without spaces, hyphens and underscores: "DPM++ 2M", "sample_euler_ancestral", "DPMSolverMultistepScheduler",
    "DPMSolverMultistepScheduler(use_karras_sigmas=True)". Where a name of ours is also one of theirs, ours is spelled
    as in `SAMPLERS`: "heun" goes over the angle, "Heun" is k-diffusion's.

    Arguments of ours follow after a colon: "ddim:eta=0.5", "dpm++:order=2,eta=1". A sampler around another takes it by
    name: "restart:sampler=dpm++", "restart:sampler=(dpm++:order=3),repeats=4". A grid follows after "@", or in the
    words of A1111 and ComfyUI: "adams@angle", "DPM++ 2M Karras"; after "@" no more than its form is checked here,
    because a run may have fitted grids of its own.

    Raises: InputError for unknown names and arguments, with the nearest known.
    """
    if not isinstance(name, str):
        raise InputError(f"a sampler is given by its name, or as an instance, not as {name!r}")
    if name.count("(") != name.count(")"):
        raise InputError(f"the parentheses of {name!r} do not match")
    name, at, grid = name.partition("@")
    if at and not grid.strip():
        raise InputError(f"the name of a time grid is missing after {name}@")
    name, _, given = name.partition(":")
    ours, asked = _translated(name.strip())
    name, _, own = ours.partition(":")
    written: dict[str, object] = {}
    for part in [*split(own), *split(given)]:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise InputError(f"a sampler's arguments have the form name:key=value, not {part!r}")
        written[key] = _value(value)
    chosen = {**written, **arguments}
    if isinstance(inner := chosen.get("sampler"), str):
        chosen["sampler"] = named(inner.removeprefix("(").removesuffix(")"))
    return build("sampler", SAMPLERS, name, chosen), grid.strip() or asked


def named(name: str, **arguments: object) -> Sampler:
    """The sampler that a name means, as `understand` reads it; a grid that the name asks for is left to the caller.

    Raises: InputError for unknown names and arguments, with the nearest known.
    """
    return understand(name, **arguments)[0]
