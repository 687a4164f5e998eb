"""The report of a run: one HTML file with its pictures inside, the same numbers as JSON, and every picture."""

import html as escaping
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undiffuse.errors import InputError
from undiffuse.evaluation import Evaluation
from undiffuse.evaluation.base import HELD_OUT_CONDITIONS
from undiffuse.files import write_text
from undiffuse.report import html
from undiffuse.report.html import Drawn, image, note, section, table
from undiffuse.report.words import fewer_measured, likelihood_rows, protocol, rows_of, three_numbers, value_of

PICTURES = "pictures"  # the folder in a run for single pictures


def to_html(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> str:
    """The whole report, of what an evaluation measured and drew."""
    run = numbers["run"]
    parts = [f"<h1>{escaping.escape(run)}</h1>", note(f"undiffuse {numbers['undiffuse']}")]
    parts += [html.large(three_numbers(numbers)), note(_through(numbers))]
    parts += [note(alarm, "alarm") for alarm in numbers.get("alarms", [])]
    parts += [section("Measured", *_measured(numbers, pictures)), section("What was trained", table(_facts(numbers)))]
    parts.append(
        section(
            "Samples",
            image(pictures["grid"], "samples"),
            note(f"{numbers['grid']}, guided as above, seeds 0-99; not chosen."),
        )
    )
    parts += _by_class(numbers)
    parts += _restored(numbers, pictures)
    parts += _process(numbers, pictures)
    parts += _likelihood(numbers, pictures)
    parts += _curves(numbers, pictures)
    parts += _pixels(numbers, pictures)
    return html.page(run, *parts)


def check(run: Path) -> None:
    """Find out before any work whether the report can be written. Raises: InputError."""
    if (run / PICTURES).exists() and not (run / PICTURES).is_dir():
        raise InputError(f"{run / PICTURES} is a file, and pictures go into a folder of that name: move it")


def write(run: Path, evaluation: Evaluation) -> Path:
    """Write pictures/, report.html and, at last, evaluation.json into the run folder; returns the report's path.

    Each picture is a PNG; plots are SVGs too. Those of the last evaluation that are not drawn again are taken away.
    """
    check(run)
    pictures, before = html.drawn(evaluation.pictures), _pictures(run)
    html.save(run / PICTURES, pictures)
    path = run / "report.html"
    write_text(path, to_html(evaluation.numbers, pictures))
    numbers = {**evaluation.numbers, "pictures": list(pictures)}
    write_text(run / "evaluation.json", json.dumps(numbers, indent=2) + "\n")
    for name in before - pictures.keys():
        for ending in (".png", ".svg"):
            (run / PICTURES / f"{name}{ending}").unlink(missing_ok=True)
    return path


def _pictures(run: Path) -> set[str]:
    """The names of the pictures that the last evaluation drew."""
    try:
        names = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and name.replace("_", "").isalnum()}


def _through(numbers: Mapping[str, Any]) -> str:
    near = numbers["grid"] == HELD_OUT_CONDITIONS
    fid = any(row["metric"] == "fid" for row in numbers["measurements"])
    reference = numbers["samples"]["reference"]
    unseen = (
        "Neither the model nor what is trained on its data has seen the held-out images."
        if "held-out images of" in reference
        else "Real training images stand too low beside it, if it was made of them."
    )
    return (
        f"Measured through {numbers['measured_through']}, against {reference}. {unseen}"
        + ("" if fid else " This is not FID, nor comparable with it.")
        + (" Samples under the conditions of held-out images are nearer to those than others." if near else "")
    )


def _measured(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    if not numbers["measurements"]:
        return [note("No metric of samples was asked for.")]
    head = ("", "value", "95 %", "real training images", "n", "error by", "settings")
    return [
        table(rows_of(numbers["measurements"], numbers["real"], numbers["features"]), head),
        note(
            f"Over {numbers['features']} where nothing else is said; ± one standard error. Every row: "
            f"{protocol(numbers['samples'])}.{fewer_measured(numbers)}"
        ),
        image(pictures["measurements"], "each metric with its error bar, and what real images have"),
        note(
            "Points: samples, with 95 % intervals. Grey: real training images, as many, measured in the same way (the "
            "range of their draws; dashed: the mean). Each metric has an axis of its own."
        ),
    ]


def _facts(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    trained, samples = numbers["trained"], numbers["samples"]
    return [
        ("recipe", trained["recipe"]),
        ("data", f"{trained['data']}: {trained['train_samples']:,} training, {trained['held_out_samples']:,} held out"),
        ("files skipped as corrupt", str(trained["skipped_files"])),
        ("training", f"{trained['steps']:,} steps of {trained['batch_size']} samples in {trained['seconds']:.0f} s"),
        ("model", f"{trained['parameters']:,} parameters, {trained['prediction']} prediction, {trained['precision']}"),
        ("schedule", trained["schedule"]),
        ("samples", f"{samples['n']}, {protocol(samples)}: {samples['seconds']} s on {samples['device']}"),
    ]


def _by_class(numbers: Mapping[str, Any]) -> list[str]:
    rows = numbers["by_class"]
    if not rows:
        why_not = numbers["by_class_note"]
        return [section("By class", note(f"Not measured: {why_not}."))] if why_not else []
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    classes = list(dict.fromkeys(row["class"] for row in rows))
    cells = {(row["class"], row["metric"]): row for row in rows}
    names = numbers["classes"]

    def cell(row: Mapping[str, Any] | None) -> str:
        return "-" if row is None else f"{row['value']:.3g}" + (f" ± {row['error']:.1g}" if row["error"] else "")

    lines = [
        (names[c], *(cell(cells.get((c, m))) for m in metrics), str(max(r["n"] for r in rows if r["class"] == c)))
        for c in classes
    ]
    head = ("class", *(m.replace("-", " ") for m in metrics), "n")
    return [
        section(
            "By class",
            table(lines, head),
            note("± one standard error. The samples asked for each class, against the real images of it."),
        )
    ]


def _restored(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    if "reconstruction" not in pictures:
        return []
    found = numbers["reconstruction"]
    rows = [
        (key.replace("_", " "), *(value_of(row) for row in value.values()), f"{value['psnr']['n']:,}")
        for key, value in found.items()
        if isinstance(value, dict) and "psnr" in value
    ]
    apart = found["diversity"]
    head = [row["label"] for row in found["sample"].values()]
    return [
        section(
            "Restoring smaller pictures",
            image(pictures["reconstruction"], "inputs, bicubic, samples, means of samples and the truth"),
            note(
                f"Rows: the input, {found['factor']} times smaller; bicubic enlargement; one sample; the mean "
                f"of {found['draws']} samples; the truth. Held-out pictures; not chosen."
            ),
            table(rows, ("", *head, "n")),
            note(
                f"± one standard error over pictures; PSNR in dB. Two of the {found['draws']} samples of one input "
                f"differ by {value_of(apart)} grey levels (root-mean-square, n = {apart['n']})."
            ),
        )
    ]


def _process(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    parts = [
        section("The schedule", image(pictures["schedule"], "beta, alpha, sigma and log-SNR over time")),
        section(
            "The forward process",
            image(pictures["forward"], "one real image with more and more noise"),
            note(
                f"A held-out image at t = {', '.join(map(str, numbers['forward_times']))}; scaled to constant variance."
            ),
        ),
        section("Training and validation loss", image(pictures["losses"], "losses over steps")),
    ]
    if "levels" in pictures:
        parts.append(
            section(
                "Loss per noise level",
                image(pictures["levels"], "training and validation loss over log-SNR"),
                note(numbers["levels"]["note"]),
            )
        )
    parts.append(
        section(
            "The reverse process",
            image(pictures["trajectory"], "samples from noise to data"),
            note(f"Four samples at t = {', '.join(map(str, numbers['trajectory_times']))}."),
        )
    )
    return parts


def _likelihood(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    if "likelihood" not in numbers:
        return []
    found = numbers["likelihood"]
    first = found["measurements"][0]
    terms = "; ".join(
        f"{what}: " + ", ".join(f"{term} {value:.3f}" for term, value in found[key]["terms"].items())
        for key, what in (("ode", "ODE"), ("continuous_bound", "continuous"), ("discrete_bound", "discrete"))
    )
    parts = [
        table(likelihood_rows(found), ("", "bits per dimension", "95 %", "n", "by")),
        note(
            f"{first['reference']}, under their own conditions; ± one standard error, over samples; "
            f"{found['ode']['evaluations']:.0f} evaluations a sample by the ODE. The density is the model's at log-SNR "
            f"{found['log_snr']:.2f}. Terms: {terms}. undiffuse {first['undiffuse']}."
        ),
    ]
    if "likelihoods" in pictures:
        parts.append(image(pictures["likelihoods"], "bits per dimension of single samples"))
    if "extremes" in pictures:
        parts += [image(pictures["extremes"], "the most and the least likely pictures"), note(found["extremes"])]
    if "rate_distortion" in pictures:
        parts.append(image(pictures["rate_distortion"], "rate, distortion and bits per noise level"))
    return [section("Likelihood", *parts)]


def _curves(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    parts = []
    if "sweep" in numbers:
        sweep = numbers["sweep"]
        cells = [
            (r["sampler"], r["grid"], f"{r['evaluations']:g}", value_of(r, "frechet_distance"), f"{r['seconds']:.2f}")
            for r in sweep["rows"]
        ]
        parts.append(
            section(
                "Quality against evaluations",
                image(pictures["sweep"], "Frechet distance against evaluations and seconds"),
                table(cells, ("sampler", "grid", "evaluations", "Frechet distance", "seconds")),
                note(
                    f"{sweep['n']} samples a row, conditional, guidance {sweep['guidance']}, seeds {sweep['seeds']}; "
                    f"over {sweep['features']}, against {sweep['reference']}; undiffuse {sweep['undiffuse']}. "
                    f"{sweep['n']} real training images are at {sweep['training_to_real']:.3f}. "
                    "± and bars: one standard error. So few samples bias a distance upwards: compare within the table."
                ),
                image(pictures["sweep_samples"], "samples of each row of the table"),
                note("Ten samples of each row, in the table's order, from the same seeds."),
            )
        )
    full = numbers["full_ddpm"]
    parts.append(
        section(
            f"{full['n']} pictures by {full['steps']}-step DDPM",
            image(pictures["full_ddpm"], "samples by full ancestral sampling"),
            note(f"{full['seconds']:.1f} s for {full['n']} samples, guidance {full['guidance']}."),
        )
    )
    if "guidance" in pictures:
        scales = ", ".join(f"{scale:g}" for scale in numbers["guidance_shown"])
        parts.append(
            section(
                "Guidance",
                image(pictures["guidance"], "the same seeds under four guidance scales"),
                note(f"Rows: scale {scales} (0 = unconditional, 1 = conditional); the same seeds and classes in each."),
            )
        )
    if "guidance" in numbers:
        parts.append(section("What guidance gives and takes", *_guidance(numbers["guidance"], pictures)))
    return parts


def _guidance(curve: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    """The measured curve, or why there is none."""
    if not curve["rows"]:
        return [note(f"Not measured: it takes {curve['fewest']} samples a scale, and there was room for {curve['n']}.")]
    real, measured = curve["training"], ("accuracy", "precision", "recall", "frechet_distance")
    rows = [
        (f"{row['scale']:g}", *(value_of(row, name) for name in measured), f"{row['seconds']:.2f}")
        for row in curve["rows"]
    ]
    rows.append(("real training images", "", *(value_of(real, name) for name in measured[1:]), ""))
    return [
        image(pictures["guidance_curve"], "accuracy, precision, recall and Frechet distance against guidance"),
        image(pictures["guidance_trade"], "precision against recall, a point for each guidance scale"),
        table(rows, ("scale", "accuracy", "precision", "recall", "Frechet distance", "seconds")),
        note(
            f"{curve['n']} samples a row, seeds {curve['seeds']}, by {curve['sampler']} in {curve['steps']} steps on "
            f"the grid {curve['grid']}. Accuracy: the share recognised as the class asked for. Precision: samples "
            f"within reach of a held-out image; recall: held-out images within reach of a sample (reach: the "
            f"neighbour number {curve['k']}; {curve['n']} held-out images). Over {curve['features']}, the distance "
            f"against {curve['reference']}; undiffuse {curve['undiffuse']}."
        ),
    ]


def _pixels(numbers: Mapping[str, Any], pictures: Mapping[str, Drawn]) -> list[str]:
    nearest, n = numbers["neighbours"], numbers["spectra"]["n"]
    sizes = ", ".join(f"{count:,} {name}" for name, count in n.items())
    return [
        section(
            "Nearest training images",
            image(pictures["neighbours"], "samples above their nearest training images"),
            note(
                f"Top: {nearest['n']} samples. Below each: its three nearest of {nearest['train_n']:,} training "
                f"images. Nearest {nearest['distance']}: {', '.join(map(str, nearest['nearest']))}."
            ),
        ),
        section(
            "Spectra and values",
            image(pictures["spectra"], "radial power of samples and held-out images"),
            image(pictures["histograms"], "histograms of pixel values"),
            note(
                f"{sizes}. Too little power at the right is blur; too much is noise. Values that data have and samples "
                "have not (an exact black, say) are seen in the histogram."
            ),
        ),
    ]
