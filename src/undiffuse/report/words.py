"""Numbers in words, for the terminal and for reports alike."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_SETTINGS = {"features", "key", "inception"}  # what is said once, elsewhere


def protocol(samples: Mapping[str, Any]) -> str:
    """How samples were made and what they were measured against."""
    return (
        f"{samples['sampler']} in {samples['steps']} steps on the grid {samples['grid']} ({samples['evaluations']:g} "
        f"evaluations a sample), guidance {samples['guidance']:g}, seeds {samples['seeds']}; against "
        f"{samples['reference']}; undiffuse {samples['undiffuse']}"
    )


def fewer_measured(numbers: Mapping[str, Any]) -> str:
    """A sentence where metrics are of fewer samples than were drawn."""
    n, drawn = numbers["measured_n"], numbers["samples"]["n"]
    if n == drawn:
        return ""
    return f" Metrics are of the first {n:,} of {drawn:,} samples: there are no more held-out images, or training ones."


def value_of(row: Mapping[str, Any], name: str | None = None) -> str:
    """A value with its standard error: of a measurement, or the one called `name` in a row of several.

    A share of 0 or 1 has no spread to tell an error by, but an interval.
    """
    value, error = (row["value"], row["error"]) if name is None else (row[name], row.get(f"{name}_error"))
    if name is None and not error and row["interval"] is not None and row["interval"][0] < row["interval"][1]:
        return f"{value:.4g} ({row['interval'][0]:.3g} to {row['interval'][1]:.3g})"
    return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")


def rows_of(
    measurements: Sequence[Mapping[str, Any]], real: Mapping[str, Sequence[float]], features: str
) -> list[tuple[str, ...]]:
    """A line a measurement: its name, value and error, 95 % interval, that of real images, n, how, and settings.

    features: those that most rows are over, which are not named in each.
    """
    lines: list[tuple[str, ...]] = []
    for row in measurements:
        low_high = "" if row["interval"] is None else f"{row['interval'][0]:.4g} to {row['interval'][1]:.4g}"
        draws = real.get(row["metric"], [])
        beside = "" if not draws else f"{sum(draws) / len(draws):.4g}"
        beside += f" ({min(draws):.4g} to {max(draws):.4g})" if len(draws) > 1 else ""
        n = f"{row['n']:,}" + ("" if row["reference_n"] is None else f" / {row['reference_n']:,}")
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items() if name not in SHOWN_SETTINGS)
        name = row["label"].replace(f" over {features}", "")
        lines.append((name, value_of(row), low_high, beside, n, row["error_by"], settings))
    return lines


def likelihood_rows(likelihood: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line a likelihood: its name, value and error, 95 % interval, n, and what it was computed by."""
    lines: list[tuple[str, ...]] = []
    for row in likelihood["measurements"]:
        low_high = "" if row["interval"] is None else f"{row['interval'][0]:.4g} to {row['interval'][1]:.4g}"
        by = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        lines.append((row["label"], value_of(row), low_high, f"{row['n']:,}", by))
    return lines


def three_numbers(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The three that matter, as (value, what it is)."""
    found = {row["metric"]: row for row in numbers["measurements"]}
    shown = []
    if frechet := found.get("fid") or found.get("frechet-distance"):
        draws = numbers["real"][frechet["metric"]]
        real = sum(draws) / len(draws)
        shown.append(
            (
                f"{frechet['value'] / real:.2f}x" if real > 0 else f"{frechet['value']:.3g}",
                f"{frechet['label']} to real images, samples {value_of(frechet)} against real training images "
                f"{real:.3g}, {min(draws):.3g} to {max(draws):.3g} over {len(draws)} draws (n = {frechet['n']} each)",
            )
        )
    if copying := found.get("pixel-memorisation"):
        shown.append(
            (
                f"{copying['value']:.2f}x",
                f"distance to the nearest training image, samples against held-out images (medians, n = "
                f"{copying['n']} and {copying['reference_n']}; well under 1 would mean copying)",
            )
        )
    if "reconstruction" in numbers:
        one, bicubic = (numbers["reconstruction"][name]["psnr"] for name in ("sample", "bicubic"))
        what = (
            f"PSNR of one sample against the truth ({one['error']:.2f} standard error, n = {one['n']}); bicubic "
            f"enlargement has {bicubic['value']:.2f} dB"
        )
        return [(f"{one['value']:.2f} dB", what), *shown]
    if agreement := found.get("label-agreement"):
        low, high = agreement["interval"]
        what = (
            f"of {agreement['n']} samples are recognised as the class asked for "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
        return [(f"{100 * agreement['value']:.1f} %", what), *shown]
    return [*shown, (f"{numbers['samples']['seconds']:.1f} s", f"for {numbers['samples']['n']} samples")]
