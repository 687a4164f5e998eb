"""Runs side by side: their evaluations in one table and one report, where what is compared was measured alike."""

import html as escaping
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undiffuse import plots
from undiffuse.errors import InputError
from undiffuse.files import atomic_folder
from undiffuse.plots import Panel
from undiffuse.report import html
from undiffuse.report.html import Drawn, note, section, table
from undiffuse.report.run import PICTURES
from undiffuse.report.words import protocol, value_of

ALIKE = ("n", "reference_n", "reference", "reference_key")  # of a row: what must be equal beside the settings
# pictures of each run that are shown beside one another, each on its own axes
BESIDE = {
    "grid": "Samples",
    "levels": "Loss per noise level",
    "rate_distortion": "Rate and distortion",
    "likelihoods": "Likelihood of held-out images",
    "sweep": "Quality against evaluations",
    "guidance_curve": "What guidance gives and takes",
    "spectra": "Spectra",
}


@dataclass(frozen=True)
class Group:
    """Measurements of several runs that may stand on one axis: the same metric, settings, reference and numbers.

    rows: by the run's name, in the order of the runs; differs: what sets this group apart from others of its metric.
    """

    label: str
    rows: Mapping[str, Mapping[str, Any]]
    real: Sequence[float]
    differs: str = ""

    @property
    def title(self) -> str:
        """The metric, and what sets the group apart."""
        return self.label + (f" ({self.differs})" if self.differs else "")


@dataclass(frozen=True)
class Compared:
    """Runs side by side: what comparison.json holds, the groups behind it, the pictures, and the HTML page."""

    numbers: dict[str, Any]
    groups: Sequence[Group]
    pictures: Mapping[str, Drawn]
    page: str

    @property
    def names(self) -> list[str]:
        """Of the runs."""
        return list(self.numbers["runs"])

    def lines(self) -> list[tuple[str, ...]]:
        """A line a group: the metric, the value of each run or a dash, what real images have, and n."""
        rows = []
        for group in self.groups:
            first = next(iter(group.rows.values()))
            values = [value_of(group.rows[name]) if name in group.rows else "-" for name in self.names]
            real = f"{sum(group.real) / len(group.real):.4g}" if group.real else ""
            rows.append((group.title, *values, real, f"{first['n']:,}"))
        return rows

    def write(self, out: Path) -> Path:
        """Write comparison.json, comparison.html and pictures/ into a folder of their own; returns the page's path."""
        with atomic_folder(out) as folder:
            (folder / "comparison.json").write_text(json.dumps(self.numbers, indent=2) + "\n", encoding="utf-8")
            (folder / "comparison.html").write_text(self.page, encoding="utf-8")
            (folder / PICTURES).mkdir()
            html.save(folder / PICTURES, self.pictures)
        return out / "comparison.html"


def read(run: Path) -> dict[str, Any]:
    """The numbers of a run's evaluation. Raises: InputError where there are none, or of an older version."""
    path = run / "evaluation.json"
    if not path.is_file():
        raise InputError(f"{run} has no evaluation.json: undiffuse evaluate {run}")
    try:
        numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        numbers["measurements"], numbers["samples"]["reference"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, or of an older version: undiffuse evaluate {run}") from error
    return numbers


def groups(evaluations: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The measurements of runs, by name, in groups whose values may be compared."""
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for name, numbers in evaluations.items():
        for row in [*numbers["measurements"], *numbers.get("likelihood", {}).get("measurements", [])]:
            alike = {**row["settings"], **{name: row[name] for name in ALIKE}}
            found.setdefault(row["metric"], {}).setdefault(json.dumps(alike, sort_keys=True), {})[name] = row
    together = []
    for metric, alike in found.items():
        settings = [json.loads(key) for key in alike]
        changing = [key for key in settings[0] if len({json.dumps(each.get(key)) for each in settings}) > 1]
        for each, rows in zip(settings, alike.values(), strict=True):
            differs = ", ".join(f"{key} {each.get(key)}" for key in changing)
            real = [value for name in rows for value in evaluations[name]["real"].get(metric, [])]
            together.append(Group(next(iter(rows.values()))["label"], rows, real, differs))
    return together


def names_of(runs: Sequence[Path]) -> list[str]:
    """Names to tell the runs by: that of the folder, or the whole path where two folders are called alike."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(runs) else [str(run) for run in runs]


def compare(runs: Sequence[Path]) -> Compared:
    """A comparison of evaluated runs.

    Raises: InputError for fewer than 2 runs, the same run twice, and runs without an evaluation.
    """
    if len(runs) < 2 or len({run.resolve() for run in runs}) < len(runs):
        raise InputError(f"a comparison needs 2 different runs or more, not {', '.join(map(str, runs))}")
    evaluations = dict(zip(names_of(runs), map(read, runs), strict=True))
    found = groups(evaluations)
    if not found:
        raise InputError(
            f"no metric was measured of {' and '.join(map(str, runs))}: evaluate them with other --metrics"
        )
    pictures = html.drawn({"measurements": plots.measurements([_panel(group) for group in found])})
    for what in BESIDE:
        for i, run in enumerate(runs):
            path = run / PICTURES / f"{what}.png"
            if path.is_file():
                vector = path.with_suffix(".svg")
                pictures[f"{what}-{i}"] = Drawn(path.read_bytes(), vector.read_bytes() if vector.is_file() else None)
    numbers = {
        "runs": {
            name: {"path": str(run), "trained": of["trained"], "samples": of["samples"]}
            for (name, of), run in zip(evaluations.items(), runs, strict=True)
        },
        "groups": [
            {"label": group.label, "differs": group.differs, "real": list(group.real), "rows": dict(group.rows)}
            for group in found
        ],
    }
    compared = Compared(numbers, found, pictures, "")
    return replace(compared, page=_page(evaluations, compared))


def _of_run(name: str, picture: Drawn, title: str) -> str:
    return note(name) + html.image(picture, f"{title} of {name}")


def _panel(group: Group) -> Panel:
    values = [
        (name, row["value"], None if row["interval"] is None else (row["interval"][0], row["interval"][1]))
        for name, row in group.rows.items()
    ]
    real = (min(group.real), max(group.real)) if group.real else None
    return Panel(group.title, values, real)


def _page(evaluations: Mapping[str, Mapping[str, Any]], compared: Compared) -> str:
    names = compared.names
    facts = [
        (
            name,
            of["trained"]["data"],
            f"{of['trained']['steps']:,} x {of['trained']['batch_size']}",
            f"{of['trained']['parameters']:,}",
            of["trained"]["prediction"],
            protocol(of["samples"]),
        )
        for name, of in evaluations.items()
    ]
    parts = [f"<h1>{escaping.escape(' and '.join(names))}</h1>"]
    parts += [
        section(
            "Measured",
            table(compared.lines(), ("", *names, "real training images", "n")),
            html.image(compared.pictures["measurements"], "each metric with its error bars, a point for each run"),
            note(
                "± one standard error; bars are 95 % intervals; grey is what real training images have. Runs stand on "
                "one axis where features, settings, reference and numbers of images are the same, else on their own."
            ),
        ),
        section("Runs", table(facts, ("", "data", "steps x batch", "parameters", "prediction", "samples"))),
    ]
    for what, title in BESIDE.items():
        shown = [(name, f"{what}-{i}") for i, name in enumerate(names) if f"{what}-{i}" in compared.pictures]
        if shown:
            parts.append(section(title, *(_of_run(name, compared.pictures[key], title) for name, key in shown)))
    return html.page(" and ".join(names), *parts)
