"""undiffuse samplers: all that there are, and what other toolkits call them."""

import contextlib
import dataclasses
import json
import typing
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from undiffuse.cli.common import AsJson, app
from undiffuse.errors import InputError
from undiffuse.samplers import SAMPLERS, Adaptive, Sampler
from undiffuse.samplers.aliases import ALIASES, GRID_ALIASES

WIDTH = 100


def _values(sampler: Sampler, field: dataclasses.Field[Any]) -> list[object]:
    """The values of an argument, where they are few: the words of a Literal, or the orders that the sampler takes."""
    if field.name == "order":
        taken: list[object] = []
        for order in range(1, 6):
            with contextlib.suppress(InputError):
                taken.append(dataclasses.replace(sampler, order=order).order)  # type: ignore[call-arg]
        return taken
    kinds: tuple[Any, ...] = (field.type, *typing.get_args(field.type))
    literals = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    return [False, True] if field.type is bool else [word for kind in literals for word in typing.get_args(kind)]


def _default(value: object) -> object:
    """An argument's default as JSON and a name can hold it: of a sampler, its name in `SAMPLERS`."""
    return next((name for name, kind in SAMPLERS.items() if type(value) is kind), value)


def facts() -> list[dict[str, Any]]:
    """For every sampler: its name, what a step costs and gives, its arguments, and its aliases by our full name."""
    found = []
    for name, kind in SAMPLERS.items():
        sampler = kind()
        per_step = sampler.evaluations(11) - sampler.evaluations(10)
        arguments = {
            field.name: {"default": _default(getattr(sampler, field.name)), "values": _values(sampler, field)}
            for field in dataclasses.fields(sampler)
        }
        stochastic = "yes" if sampler.stochastic else "if eta > 0" if "eta" in arguments else "no"
        aliases = {ours: kinds._asdict() for ours, kinds in ALIASES.items() if ours.partition(":")[0] == name}
        found.append(
            {
                "name": name,
                "class": kind.__name__,
                "order": sampler.convergence_order,
                "evaluations_per_step": per_step,
                "evaluations_once": max(0, sampler.evaluations(10) - 10 * per_step),  # as a start or a restart has
                "adaptive": isinstance(sampler, Adaptive),
                "stochastic": stochastic,
                "arguments": arguments,
                "aliases": aliases,
            }
        )
    return found


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _argument(name: str, about: dict[str, Any]) -> str:
    default = "" if about["default"] is None else f"={_written(about['default'])}"
    allowed = "|".join(_written(value) for value in about["values"])
    return f"{name}{default} ({allowed})" if allowed else f"{name}{default}"


def _calls(entry: dict[str, Any]) -> str:
    once = f", {entry['evaluations_once']} once" if entry["evaluations_once"] else ""
    return f"{entry['evaluations_per_step']}{' or more' if entry['adaptive'] else ''}{once}"


@app.command("samplers")
def samplers_command(as_json: AsJson = False) -> None:
    """List the samplers: order, calls of the network a step, noise, arguments, and their names elsewhere.

    Example: undiffuse samplers
    """
    found = facts()
    if as_json:
        typer.echo(json.dumps({"samplers": found, "grids": GRID_ALIASES}))
        return
    out = Console(width=WIDTH, highlight=False, markup=False)
    table = Table("name", "order", "calls a step", "noise", "arguments, defaults (and values)", box=None)
    for entry in found:
        arguments = ", ".join(_argument(name, about) for name, about in entry["arguments"].items())
        table.add_row(entry["name"], str(entry["order"]), _calls(entry), entry["stochastic"], arguments)
    out.print(table)
    out.print("\nThe order is the one measured. Arguments follow the name: --sampler dpm++:order=3,eta=1\n")
    toolkits = {"diffusers": "diffusers", "k_diffusion": "k-diffusion", "webui": "A1111, ComfyUI"}
    for key, toolkit in toolkits.items():
        table = Table(f"in {toolkit}", "here", box=None, pad_edge=False, collapse_padding=True)
        table.columns[1].no_wrap = True
        for ours, aliases in ALIASES.items():
            if theirs := getattr(aliases, key):
                table.add_row("\n".join(theirs), ours)
        out.print(table, "")
    grids = ", ".join(f"{theirs} = {ours}" for theirs, ours in GRID_ALIASES.items())
    out.print(
        "All of these names are understood, in any case: --sampler 'DPM++ 2M Karras'. Where one is a name of ours too, "
        f"ours is the one spelled as above. A word after the sampler's name is a time grid: {grids}. Ours follow after "
        "@: --sampler adams@angle."
    )
