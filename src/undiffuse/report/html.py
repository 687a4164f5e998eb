"""The few parts that reports are made of: sections, tables, notes, and pictures inside the page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from undiffuse import plots
from undiffuse.files import atomic_path
from undiffuse.plots import Picture

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; } img.samples { width: 760px; image-rendering: pixelated; }
table { border-collapse: collapse; } td, th { padding: 0.15rem 0.9rem 0.15rem 0; text-align: left; }
th { vertical-align: bottom; } td { font-variant-numeric: tabular-nums; }
.three { display: flex; gap: 2rem; flex-wrap: wrap; margin: 1.2rem 0; } .three div { flex: 1 1 14rem; }
.three b { font-size: 1.9rem; display: block; } .note { color: #555; font-size: 13px; }
.alarm { border-left: 4px solid #D55E00; padding-left: 0.8rem; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } h2, img, table { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""


class Drawn(NamedTuple):
    """A picture as the bytes of files; what is pixels has no SVG."""

    png: bytes
    svg: bytes | None = None


def drawn(pictures: Mapping[str, Picture]) -> dict[str, Drawn]:
    """Pictures by their names, each drawn once."""
    return {name: _drawn(picture) for name, picture in pictures.items()}


def _drawn(picture: Picture) -> Drawn:
    if isinstance(picture, Figure):
        return Drawn(plots.to_png(picture), plots.to_svg(picture))
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG")
    return Drawn(buffer.getvalue())


def save(folder: Path, pictures: Mapping[str, Drawn]) -> None:
    """Write each picture by its name into a folder, as PNG; plots as SVG too."""
    for name, picture in pictures.items():
        for ending, content in ((".png", picture.png), (".svg", picture.svg)):
            if content is not None:
                with atomic_path(folder / f"{name}{ending}") as temporary:
                    temporary.write_bytes(content)


def image(picture: Drawn, alt: str) -> str:
    """An <img> with the picture inside. Plots are drawn as vectors; samples stay pixels."""
    data = base64.b64encode(picture.svg or picture.png).decode()
    kind, form = ("plot", "svg+xml") if picture.svg else ("samples", "png")
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/{form};base64,{data}">'


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of cells, as text."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + (row(head, "th") if head else "") + "".join(row(cells, "td") for cells in rows) + "</table>"


def note(text: str, kind: str = "note") -> str:
    """A paragraph in small letters; kind="alarm": one that catches the eye."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def section(title: str, *content: str) -> str:
    """A heading, and what stands under it."""
    return f"<h2>{html.escape(title)}</h2>" + "".join(content)


def large(numbers: Sequence[tuple[str, str]]) -> str:
    """The numbers that matter, large, each above what it says."""
    return (
        "<div class='three'>"
        + "".join(f"<div><b>{html.escape(value)}</b>{html.escape(what)}</div>" for value, what in numbers)
        + "</div>"
    )


def page(title: str, *parts: str) -> str:
    """The whole file: it stands alone, with no script and nothing from elsewhere."""
    titled = f"<title>{html.escape(title)} - undiffuse</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{titled}<style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
