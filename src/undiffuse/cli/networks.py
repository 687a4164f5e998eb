"""undiffuse networks: what there is, and published architectures with their parameters counted."""

import inspect
import json

import typer
from rich.console import Console
from rich.table import Table

from undiffuse.cli.common import AsJson, app
from undiffuse.networks import NETWORKS
from undiffuse.networks.published import PUBLISHED, parameters


@app.command()
def networks(as_json: AsJson = False) -> None:
    """List the networks, and count the parameters of published architectures, which are choices of their arguments.

    Example: undiffuse networks --json
    """
    arguments = {name: list(inspect.signature(network).parameters) for name, network in NETWORKS.items()}
    counted = {name: parameters(name) for name in PUBLISHED}
    if as_json:
        published = {
            name: {"parameters": count, "published_millions": entry.millions, "source": entry.source}
            for (name, entry), count in zip(PUBLISHED.items(), counted.values(), strict=True)
        }
        typer.echo(json.dumps({"networks": arguments, "published": published}))
        return
    for name, network in NETWORKS.items():
        typer.echo(f"{name}: {(inspect.getmodule(network).__doc__ or '').splitlines()[0]}")
        typer.echo(f"    {', '.join(arguments[name])}")
    table = Table("architecture", "parameters", "published", "source")
    for name, count in counted.items():
        table.add_row(name, f"{count:,}", f"{PUBLISHED[name].millions:g} M", PUBLISHED[name].source)
    Console().print(table)
