"""undiffuse sample."""

import json
import time
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
    SamplerName,
    StepName,
    app,
    console,
    duration,
    parse_size,
    parse_step,
    progress_bar,
)
from undiffuse.cli.conditions import ConditionOption, LabelOption, given_conditions
from undiffuse.cli.guidance import (
    ClassifierOption,
    IntervalOption,
    NegativeOption,
    RescaleOption,
    SequentialOption,
    ThresholdOption,
    WeakOption,
)
from undiffuse.cli.request import KEY, Request, recorded
from undiffuse.codecs import Identity
from undiffuse.errors import InputError
from undiffuse.modalities import image
from undiffuse.pipeline import Guided, Pipeline
from undiffuse.samplers import stored
from undiffuse.weights import fingerprint

# what may differ from the picture that is made again, and what that means
DIFFERENCES = {
    "weights": "other weights, of a run that was trained on or of another one: the picture will differ",
    "precision": "another precision: the picture may differ a little",
    "undiffuse": "another version of undiffuse: the picture may differ",
}


@app.command()
def sample(
    run: Annotated[
        Path | None, typer.Argument(help="A run folder, as `train` writes it; with --like, where it is now.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="A picture or .npz that `sample` made: make it again; other options change what they say."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many samples.  [default: 64]")] = None,
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
    seed: Annotated[int | None, typer.Option(help="Sample i is the picture of seed + i.  [default: 0]")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, other than trained at.")] = None,
    step: StepName = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time; changes no sample.")] = 256,
    compile: CompileNetwork = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples from a trained run, or make a picture again from what is written in it.

    Example: undiffuse sample runs/mnist --n 100 --label 0-9 --steps 12 --out digits.png
    """
    image.check_output(out, overwrite)
    asked, before = (Request(), {}) if like is None else recorded(like)
    request = asked.changed(
        {
            "n": n, "seed": seed, "label": label, "condition": condition, "guidance": guidance, "negative": negative,
            "weak": weak, "interval": interval, "rescale": rescale, "threshold": threshold,
            "sequential": sequential or None, "classifier": classifier, "sampler": sampler, "steps": steps,
            "grid": grid, "size": size, "step": parse_step(step),
        }
    )  # fmt: skip
    folder = run or _folder(like, before)
    model = undiffuse.load(folder, step=request.step)
    image.check_output(out, overwrite, latents=isinstance(model.codec, Identity))
    drawing = Drawing.of(model, folder, request)
    for name, what in DIFFERENCES.items():
        if before.get(name, drawing.facts[name]) != drawing.facts[name]:
            console.print(
                f"note: {like} is of {before[name]}, and here is {drawing.facts[name]}: {what}", soft_wrap=True
            )
    if compile:
        model.compile()
    began = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("sampling", total=request.n, note="")

        def show(done: int, total: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            progress.update(task, completed=done, note=f"{done}/{total}  {duration(left)}")

        images = drawing.draw(batch_size, show)
    seconds = time.monotonic() - began
    facts = drawing.facts | acceleration.facts(model.denoiser, model.device)
    alone = "index" in before and request.n == 1  # one of a folder: at its own size, as it was there
    text = {KEY: json.dumps(facts)} | ({"index": "0"} if alone else {})
    image.save(out, images, drawing.labels, text, overwrite, drawing.columns, scale=1 if alone else None)
    warmup = model.warmup_seconds
    if as_json:
        spent = {"seconds": round(seconds, 3), "warmup_seconds": round(warmup, 3)}
        typer.echo(json.dumps({**facts, "out": out, **spent}))
    else:
        of_it = f" ({warmup:.1f} s of it for compilation)" if compile else ""
        console.print(f"{request.n} samples in {seconds:.1f} s{of_it}: {out}")


def _folder(like: Path | None, before: dict[str, Any]) -> Path:
    """The run that a picture names. Raises: InputError without a picture, and where the run is gone."""
    if like is None:
        raise InputError("give RUN, a run folder, or --like PICTURE, one that `undiffuse sample` made")
    folder = Path(str(before.get("run", "")))
    if "run" not in before or not folder.is_dir():
        raise InputError(f"{like} was made from {folder}, which is not there: give RUN, where the run is now")
    return folder


@dataclass(frozen=True)
class Drawing:
    """A request understood by a model: found to be possible, and ready to be drawn.

    facts: what is written into the pictures; known: the conditions, read; shape: of a sample, (C, H, W).
    """

    model: Pipeline
    request: Request
    known: dict[str, Any]
    steering: Guided
    shape: tuple[int, ...]
    facts: dict[str, Any]

    @classmethod
    def of(cls, model: Pipeline, run: Path, request: Request) -> "Drawing":
        """Raises: InputError for what this model cannot do, before any work."""
        if request.n < 1:
            raise InputError(f"--n must be at least 1, not {request.n}")
        if not 0 <= request.seed < 2**63 - request.n:
            raise InputError(f"--seed must be 0 or more and below 2^63 - n, not {request.seed}")
        law = None if request.classifier is None else load_classifier(run)
        index, rows = request.row or (0, request.n)
        if not 0 <= index < rows:
            raise InputError(f"the conditions are those of sample {index}, and there are {rows}")
        given = given_conditions(model, request.label, request.condition, rows, () if law is None else law.classes)
        if request.row:
            given = {part: _row(model, part, value, index) for part, value in given.items()}
        sampler, steps = request.sampler, request.steps or model.sampling["steps"]
        name = model.grid(request.grid, sampler)
        if request.times is not None:
            model.grids = ChainMap({name: {steps: stored.unmeasured(request.times, steps)}}, dict(model.grids))
        model.check_sampling(sampler, request.steps, request.grid)
        known = [part for part in given if part in model.parts]
        steering = request.options.guidance(model, run, request.guidance, known, law)
        shape = None if request.size is None else parse_size(request.size, model.shape)
        shape = model.fitting(model.guided(steering, **given), shape)
        facts = {
            "recipe": model.name,
            "run": str(run),
            **({} if request.step is None else {"step": request.step}),
            "weights": fingerprint(model.denoiser),
            "n": request.n,
            "seed": request.seed,
            "label": request.label,
            "condition": request.condition,
            **({} if request.row is None else {"row": request.row}),
            "size": "x".join(map(str, shape[1:])),
            "guidance": model.scale(request.guidance, bool(known) or request.weak is not None),
            **request.options.facts(),
            "sampler": repr(model.sampler(sampler)),
            "sampler_name": sampler or model.sampling["sampler"],
            "steps": steps,
            "grid": name,
            **({"times": model.times(steps, name).tolist()} if name in model.grids else {}),
            **acceleration.facts(model.denoiser, model.device),
            "undiffuse": undiffuse.__version__,
        }
        return cls(model, request, given, steering, shape, facts)

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each sample, where classes were given: int64 (n,)."""
        labels = self.known.get(self.model.label or "label")
        return None if labels is None else np.broadcast_to(labels, self.request.n)

    @property
    def columns(self) -> int | None:
        """Pictures in a row of the grid: a class a row, where each has as many."""
        classes, n = 0 if self.labels is None else len(set(self.labels.tolist())), self.request.n
        return n // classes if classes > 1 and n % classes == 0 else None

    def draw(self, batch_size: int = 256, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """The pictures, as `Pipeline.sample` gives them."""
        request = self.request
        return self.model.sample(
            request.n, guidance=self.steering, sampler=request.sampler, steps=request.steps, grid=request.grid,
            seed=request.seed, shape=self.shape, batch_size=batch_size, progress=progress, **self.known,
        )  # fmt: skip


def _row(model: Pipeline, name: str, values: Any, index: int) -> Any:
    """The value of one sample, of a condition that has one for each or one for all."""
    read = model.parts[name].read(values) if name in model.parts else values
    return read[index : index + 1] if len(read) > 1 else read
