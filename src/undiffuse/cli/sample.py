"""undiffuse sample."""

import json
import time
from typing import Annotated

import typer

import undiffuse
from undiffuse import acceleration
from undiffuse.classifying import load_classifier
from undiffuse.cli.common import (
    AsJson,
    CompileNetwork,
    GridName,
    GuidanceScale,
    Overwrite,
    RunFolder,
    SamplerName,
    app,
    console,
    duration,
    parse_size,
    progress_bar,
)
from undiffuse.cli.conditions import ConditionOption, LabelOption, given_conditions
from undiffuse.cli.guidance import (
    ClassifierOption,
    IntervalOption,
    NegativeOption,
    Options,
    RescaleOption,
    SequentialOption,
    ThresholdOption,
    WeakOption,
)
from undiffuse.codecs import Identity
from undiffuse.errors import InputError
from undiffuse.modalities import image


@app.command()
def sample(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", help="How many samples.")] = 64,
    out: Annotated[str, typer.Option(help="grid.png, samples.npz, or a folder for single PNGs.")] = "samples.png",
    label: LabelOption = None,
    condition: ConditionOption = None,
    guidance: GuidanceScale = None,
    negative: NegativeOption = None,
    weak: WeakOption = None,
    interval: IntervalOption = None,
    rescale: RescaleOption = None,
    threshold: ThresholdOption = None,
    sequential: SequentialOption = False,
    classifier: ClassifierOption = None,
    sampler: SamplerName = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the time grid.")] = None,
    grid: GridName = None,
    seed: Annotated[int, typer.Option(help="Sample i is the picture of seed + i.")] = 0,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, other than trained at.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time; changes no sample.")] = 256,
    compile: CompileNetwork = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a trained run.

    Example: undiffuse sample runs/mnist --n 100 --label 0-9 --steps 12 --out digits.png
    """
    image.check_output(out, overwrite)
    model = undiffuse.load(run)
    image.check_output(out, overwrite, latents=isinstance(model.codec, Identity))
    if n < 1 or batch_size < 1:
        raise InputError(f"--n and --batch-size must be at least 1, not {n} and {batch_size}")
    law = None if classifier is None else load_classifier(run)
    given = given_conditions(model, label, condition, n, () if law is None else law.classes)
    shape = None if size is None else parse_size(size, model.shape)
    if not 0 <= seed < 2**63 - n:
        raise InputError(f"--seed must be 0 or more and below 2^63 - n, not {seed}")
    model.check_sampling(sampler, steps, grid)
    options = Options(negative, weak, interval, rescale, threshold, sequential, classifier)
    known = [name for name in given if name in model.parts]
    steering = options.guidance(model, run, guidance, known, law)
    model.fitting(model.guided(steering, **given), shape)
    if compile:
        model.compile()
    began = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("sampling", total=n, note="")

        def show(done: int, total: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            progress.update(task, completed=done, note=f"{done}/{total}  {duration(left)}")

        images = model.sample(
            n, guidance=steering, sampler=sampler, steps=steps, grid=grid, seed=seed,
            shape=shape, batch_size=batch_size, progress=show, **given,
        )  # fmt: skip
    seconds = time.monotonic() - began
    facts = {
        "run": str(run),
        "n": n,
        "seed": seed,
        "label": label,
        "condition": condition or [],
        "guidance": model.scale(guidance, bool(known) or weak is not None),
        **options.facts(),
        "sampler": repr(model.sampler(sampler)),
        "steps": steps or model.sampling["steps"],
        "grid": model.grid(grid, sampler),
        **acceleration.facts(model.denoiser, model.device),
        "undiffuse": undiffuse.__version__,
    }
    labels = given.get(model.label or "label")
    classes = 0 if labels is None else len(set(labels.tolist()))
    columns = n // classes if classes > 1 and n % classes == 0 else None  # one row per class
    image.save(out, images, labels, {"undiffuse": json.dumps(facts)}, overwrite, columns)
    warmup = model.warmup_seconds
    if as_json:
        spent = {"seconds": round(seconds, 3), "warmup_seconds": round(warmup, 3)}
        typer.echo(json.dumps({**facts, "out": out, **spent}))
    else:
        of_it = f" ({warmup:.1f} s of it for compilation)" if compile else ""
        console.print(f"{n} samples in {seconds:.1f} s{of_it}: {out}")
