"""The report of a run: one HTML file with its pictures inside, and the same numbers as evaluation.json."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse.evaluation import HELD_OUT_CONDITIONS, Evaluation
from undiffuse.files import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; } img.samples { width: 760px; image-rendering: pixelated; }
table { border-collapse: collapse; } td, th { padding: 0.15rem 0.9rem 0.15rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.three { display: flex; gap: 2rem; flex-wrap: wrap; margin: 1.2rem 0; }
.three b { font-size: 1.9rem; display: block; } .note { color: #666; font-size: 13px; }
"""


def _image(picture: bytes | np.ndarray, alt: str) -> str:
    """An <img> with the picture inside; matplotlib's PNGs scale smoothly, samples stay pixels."""
    plot = isinstance(picture, bytes)
    if isinstance(picture, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG")
        picture = buffer.getvalue()
    data = base64.b64encode(picture).decode()
    kind = "plot" if plot else "samples"
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + (row(head, "th") if head else "") + "".join(row(cells, "td") for cells in rows) + "</table>"


def three_numbers(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """The three that matter, as (value, what it is)."""
    frechet, copying = numbers["frechet_distance"], numbers["memorisation"]
    shown = [
        (
            f"{frechet['ratio']:.2f}x",
            f"Frechet distance to held-out images, samples {frechet['samples_to_held_out']:.3g} against real training "
            f"images {frechet['training_to_held_out']:.3g}, {min(frechet['training_draws']):.3g} to "
            f"{max(frechet['training_draws']):.3g} over {len(frechet['training_draws'])} draws "
            f"(n = {frechet['n']} each, over {frechet['over']})",
        ),
        (
            f"{copying['ratio']:.2f}x",
            f"distance to the nearest training image, samples against held-out images (medians, n = "
            f"{copying['samples_n']} and {copying['held_out_n']}; well under 1 would mean copying)",
        ),
    ]
    if "reconstruction" in numbers:
        found = numbers["reconstruction"]
        what = (
            f"PSNR of one sample against the truth ({found['sample']['standard_error']:.2f} standard error, n = "
            f"{found['sample']['n']}); bicubic enlargement has {found['bicubic']['db']:.2f} dB"
        )
        return [(f"{found['sample']['db']:.2f} dB", what), *shown]
    if "label_agreement" in numbers:
        agreement = numbers["label_agreement"]
        low, high = agreement["interval"]
        what = (
            f"of {agreement['n']} samples are recognised as the class asked for "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        )
        return [(f"{100 * agreement['share']:.1f} %", what), *shown]
    seconds = numbers["samples"]["seconds"]
    return [*shown, (f"{seconds:.1f} s", f"for {numbers['samples']['n']} samples")]


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _guidance(curve: dict[str, Any], pictures: Mapping[str, bytes | np.ndarray]) -> list[str]:
    """The measured curve, or why there is none."""
    if not curve["rows"]:
        return [note(f"Not measured: it takes {curve['fewest']} samples a scale, and there was room for {curve['n']}.")]
    real, measured = curve["training"], ("accuracy", "precision", "recall", "frechet_distance")
    rows = [
        (f"{row['scale']:g}", *(f"{row[name]:.3f}" for name in measured), f"{row['seconds']:.2f}")
        for row in curve["rows"]
    ]
    rows.append(("real training images", "", *(f"{real[name]:.3f}" for name in measured[1:]), ""))
    return [
        _image(pictures["guidance_curve"], "accuracy, precision, recall and Frechet distance against guidance"),
        _table(rows, ("scale", "accuracy", "precision", "recall", "Frechet distance", "seconds")),
        note(
            f"{curve['n']} samples a row, seeds {curve['seeds']}, by {curve['sampler']} in {curve['steps']} steps on "
            f"the grid {curve['grid']}. Accuracy: the share recognised as the class asked for. Precision: samples "
            f"within reach of a held-out image; recall: held-out images within reach of a sample (reach: the "
            f"neighbour number {curve['k']}; {curve['n']} held-out images, the same features as the distance)."
        ),
    ]


def to_html(evaluation: Evaluation) -> str:
    """The whole report."""
    numbers, pictures = evaluation.numbers, evaluation.pictures
    trained, samples, sweep = numbers["trained"], numbers["samples"], numbers["sweep"]
    run, full = numbers["run"], numbers["full_ddpm"]
    parts: list[str] = []

    def section(title: str, *content: str) -> None:
        parts.append(f"<h2>{html.escape(title)}</h2>" + "".join(content))

    near = numbers["grid"] == HELD_OUT_CONDITIONS
    big = "".join(f"<div><b>{html.escape(v)}</b>{html.escape(what)}</div>" for v, what in three_numbers(numbers))
    parts.append(
        f"<h1>{html.escape(run)}</h1>{note('undiffuse ' + numbers['undiffuse'])}<div class='three'>{big}</div>"
    )
    parts.append(
        note(
            f"Measured through {numbers['measured_through']}. "
            "Neither it nor the model has seen the held-out images. This is not FID, nor comparable with it."
            + (" Samples under the conditions of held-out images are nearer to those than others." if near else "")
        )
    )
    facts = [
        ("data", f"{trained['data']}: {trained['train_samples']:,} training, {trained['held_out_samples']:,} held out"),
        ("files skipped as corrupt", str(trained["skipped_files"])),
        ("training", f"{trained['steps']:,} steps of {trained['batch_size']} samples in {trained['seconds']:.0f} s"),
        ("model", f"{trained['parameters']:,} parameters, {trained['prediction']} prediction, {trained['precision']}"),
        ("schedule", trained["schedule"]),
        ("sampler", f"{samples['sampler']}, {samples['steps']} steps on the grid {samples['grid']}"),
        (
            "samples",
            f"{samples['n']} with guidance {samples['guidance']}, seeds {samples['seeds']}: {samples['seconds']} s",
        ),
    ]
    if "bound" in numbers:
        bound = numbers["bound"]
        facts.append(
            (
                "variational bound",
                f"{bound['bits_per_dim']:.3f} bits per dimension (standard error {bound['standard_error']:.3f}, "
                f"{bound['n']} held-out samples, {bound['draws']} levels each)",
            )
        )
    section("What was trained", _table(facts))
    section(
        "Samples",
        _image(pictures["grid"], "samples"),
        note(f"{numbers['grid']}, guided as above, seeds 0-99; not chosen."),
    )
    if "reconstruction" in pictures:
        found = numbers["reconstruction"]
        section(
            "Restoring smaller pictures",
            _image(pictures["reconstruction"], "inputs, bicubic, samples, means of samples and the truth"),
            note(
                f"Rows: the input, {found['factor']} times smaller; bicubic enlargement; one sample; the mean "
                f"of {found['draws']} samples; the truth. Held-out pictures; not chosen."
            ),
            _table(
                [
                    (key.replace("_", " "), f"{value['db']:.2f}", f"{value['standard_error']:.2f}", str(value["n"]))
                    for key, value in found.items()
                    if isinstance(value, dict)
                ],
                ("", "PSNR in dB", "standard error", "n"),
            ),
        )
    section("The schedule", _image(pictures["schedule"], "beta, alpha, sigma and log-SNR over time"))
    section(
        "The forward process",
        _image(pictures["forward"], "one real image with more and more noise"),
        note(f"A held-out image at t = {', '.join(map(str, numbers['forward_times']))}; scaled to constant variance."),
    )
    section("Training and validation loss", _image(pictures["losses"], "losses over steps"))
    section(
        "The reverse process",
        _image(pictures["trajectory"], "samples from noise to data"),
        note(f"Four samples at t = {', '.join(map(str, numbers['trajectory_times']))}."),
    )
    section(
        "Quality against evaluations",
        _image(pictures["sweep"], "Frechet distance against evaluations and seconds"),
        _table(
            [
                (r["sampler"], r["grid"], str(r["evaluations"]), f"{r['frechet_distance']:.3f}", f"{r['seconds']:.2f}")
                for r in sweep["rows"]
            ],
            ("sampler", "grid", "evaluations", "Frechet distance", "seconds"),
        ),
        note(
            f"{sweep['n']} samples a row, conditional, guidance {sweep['guidance']}; {sweep['n']} real training images "
            f"are at {sweep['training_to_held_out']:.3f}. "
            "So few samples bias a distance upwards: compare within the table."
        ),
        _image(pictures["sweep_samples"], "samples of each row of the table"),
        note("Ten samples of each row, in the table's order, from the same seeds."),
    )
    section(
        f"{full['n']} pictures by {full['steps']}-step DDPM",
        _image(pictures["full_ddpm"], "samples by full ancestral sampling"),
        note(f"{full['seconds']:.1f} s for {full['n']} samples, guidance {full['guidance']}."),
    )
    if "guidance" in pictures:
        shown = ", ".join(f"{scale:g}" for scale in numbers["guidance_shown"])
        section(
            "Guidance",
            _image(pictures["guidance"], "the same seeds under four guidance scales"),
            note(f"Rows: scale {shown} (0 = unconditional, 1 = conditional); the same seeds and classes in each row."),
        )
    if "guidance" in numbers:
        section("What guidance gives and takes", *_guidance(numbers["guidance"], pictures))
    nearest = numbers["neighbours"]
    section(
        "Nearest training images",
        _image(pictures["neighbours"], "samples above their nearest training images"),
        note(
            f"Top: {nearest['n']} samples. Below each: its three nearest of {nearest['train_n']:,} training images. "
            f"Nearest {nearest['distance']}: {', '.join(map(str, nearest['nearest']))}."
        ),
    )
    title = f"<title>{html.escape(run)} - undiffuse</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def write(run: Path, evaluation: Evaluation) -> Path:
    """Write evaluation.json and report.html into the run folder; returns the report's path."""
    write_text(run / "evaluation.json", json.dumps(evaluation.numbers, indent=2) + "\n")
    path = run / "report.html"
    write_text(path, to_html(evaluation))
    return path
