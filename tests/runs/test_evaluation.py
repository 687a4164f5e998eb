"""The evaluation and the report of a small run: every picture there, every number with what it was measured by."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import undiffuse
from undiffuse import evaluation, judge, metrics, report
from undiffuse.bits_per_dim import Settings
from undiffuse.data.dataset import turns
from undiffuse.errors import InputError
from undiffuse.evaluation import base, by_level, curves, likely, measured
from undiffuse.examples import balanced, drawn
from undiffuse.experiment import load_experiment_data, validation
from undiffuse.report import html, runs
from undiffuse.training import loss_by_level

JUDGES: list[evaluation.Judge] = []
PROTOCOL = {"sampler", "grid", "steps", "evaluations", "guidance", "seeds", "reference", "undiffuse", "n"}


def remembered(*arguments: Any, **named: Any) -> evaluation.Judge:
    """The judge of an evaluation, kept: to train another takes seconds."""
    JUDGES.append(evaluation.Judge(*arguments, **named))
    return JUDGES[-1]


@pytest.fixture(scope="module")
def result(run: Path) -> evaluation.Evaluation:
    patch = pytest.MonkeyPatch()
    few = tuple((name, sampler, grid, (2, 3)) for name, sampler, grid, _ in curves.SWEEP)
    patch.setattr(base, "FULL_STEPS", 12)
    patch.setattr(base, "Judge", remembered)
    patch.setattr(curves, "SWEEP", few)
    patch.setattr(curves, "CURVE", (1.0, 3.0))
    patch.setattr(curves, "CURVE_FEWEST", 20)
    patch.setattr(likely, "SAMPLES", 12)
    patch.setattr(likely, "SETTINGS", Settings("heun", steps=5, exact=False, draws=4))
    patch.setattr(by_level, "SAMPLES", 48)
    made = evaluation.evaluate(run, n=40, sweep_n=20)
    patch.undo()
    return made


@pytest.fixture(scope="module")
def written(run: Path, result: evaluation.Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with its report."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("evaluated") / "tiny"))
    report.write(folder, result)
    return folder


def rows_by_metric(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in numbers["measurements"]}


def test_every_number_carries_how_it_was_measured_and_its_error(result: evaluation.Evaluation) -> None:
    numbers = result.numbers
    for row in [*numbers["measurements"], *numbers["by_class"]]:
        assert row.keys() >= PROTOCOL, row["label"]
        assert row["seeds"] == "0-39" and row["evaluations"] == 40 and "359 held-out images" in row["reference"]
        assert len(row["reference_key"]) == 16
        assert row["error"] is not None and row["error"] >= 0 and row["error_by"], row["label"]
        assert row["settings"]["features"]
    assert {row["n"] for row in numbers["measurements"] if row["metric"] != "real-diversity"} == {40}
    assert numbers["sweep"]["n"] == 20 and {row["evaluations"] for row in numbers["sweep"]["rows"]} == {2, 3}
    assert numbers["trained"]["train_samples"] + numbers["trained"]["held_out_samples"] == 1797
    assert "trained on 1,438 real training images" in numbers["measured_through"]


def test_the_table_has_every_metric_that_needs_no_published_network(result: evaluation.Evaluation) -> None:
    found = rows_by_metric(result.numbers)
    assert {*metrics.suite.NUMBERS} - {"fid"} | {"pixel-memorisation"} == set(found)
    assert found["pixel-memorisation"]["settings"]["features"] == "pixels"
    judge, numbers = JUDGES[-1], result.numbers
    assert numbers["real"]["frechet-distance"] == pytest.approx(judge.real(40))
    assert len(numbers["real"]["precision"]) == 4 and "pixel-memorisation" not in numbers["real"]


def test_one_pass_gives_what_the_plain_functions_give(run: Path, result: evaluation.Evaluation) -> None:
    judge, found = JUDGES[-1], rows_by_metric(result.numbers)
    model = undiffuse.load(run)
    images = evaluation.as_tensor(model.sample(40, seed=0, label=[i % 10 for i in range(40)]))
    features, _ = judge.features(images)
    assert found["frechet-distance"]["value"] == pytest.approx(judge.distance(images).value, rel=1e-6)
    real = judge.equal_reference(40)
    assert real.features is not None and real.labels is not None and len(real.features) == 40
    assert real.labels.unique(return_counts=True)[1].tolist() == [4] * 10
    by_hand = metrics.precision_recall(real.features, features)
    assert (found["precision"]["value"], found["recall"]["value"]) == (by_hand["precision"], by_hand["recall"])
    copying = metrics.memorisation(images, judge.train, judge.held_out)
    assert found["pixel-memorisation"]["value"] == pytest.approx(copying["ratio"])


def test_classes_are_left_out_where_they_are_too_small(result: evaluation.Evaluation, monkeypatch) -> None:
    assert result.numbers["by_class"] == [] and "need 20 pictures" in result.numbers["by_class_note"]  # 4 each
    judge = JUDGES[-1]
    labels = torch.arange(200) % 2
    samples = judge.see(judge.held_out[:200], labels)
    monkeypatch.setattr(judge, "reference", judge.see(judge.held_out[100:300], labels))
    rows, note = measured._by_class(samples, judge, ["precision", "frechet-distance"])
    assert not note
    assert {(row.metric, row.of) for row in rows} == {(m, c) for m in ("precision", "frechet-distance") for c in (0, 1)}


def test_the_report_is_one_file_with_its_pictures_inside(written: Path, result: evaluation.Evaluation) -> None:
    page = (written / "report.html").read_text()
    numbers = json.loads((written / "evaluation.json").read_text())
    assert numbers.pop("pictures") == list(result.pictures)
    assert numbers == json.loads(json.dumps(result.numbers))
    assert len(re.findall(r"data:image/(?:png|svg\+xml);base64,", page)) == len(result.pictures) == 19
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page
    assert "This is not FID" in page and "20 samples a row, seeds 0-19, by dpm++ in 20 steps" in page


def test_every_picture_is_a_file_and_plots_are_vectors_too(written: Path, result: evaluation.Evaluation) -> None:
    for name, picture in result.pictures.items():
        with Image.open(written / "pictures" / f"{name}.png") as image:
            assert image.size[0] > 20
        assert (written / "pictures" / f"{name}.svg").is_file() == isinstance(picture, Figure)


def test_likelihoods_of_samples_are_ranked(result: evaluation.Evaluation) -> None:
    found = result.numbers["likelihood"]
    assert found["n"] == len(found["samples"]) == 12
    assert found["ode"]["bits_per_dim"] == pytest.approx(float(np.mean(found["samples"])), abs=1e-3)
    rows = {row["metric"]: row for row in found["measurements"]}
    assert list(rows) == ["bits-per-dimension", "continuous-bound", "discrete-bound"]
    assert rows["bits-per-dimension"]["value"] == pytest.approx(found["ode"]["bits_per_dim"])
    assert rows["discrete-bound"]["error"] == pytest.approx(found["discrete_bound"]["standard_error"])
    assert all(row["settings"]["guidance"] == 1 and row["reference_key"] for row in rows.values())


def test_levels_are_measured_on_both_parts(run: Path, result: evaluation.Evaluation) -> None:
    levels = result.numbers["levels"]["rows"]
    assert set(levels) == {"training images", "held-out images"}
    assert all(len(rows) == by_level.LEVELS for rows in levels.values())
    split, model = load_experiment_data(run)[1], undiffuse.load(run)
    few = split.train.subset(drawn(len(split.train), 48))
    batches = validation(few.samples, model.codec.encode, lambda rows: {"label": few.label[rows]})
    by_hand = loss_by_level(model.denoiser.eval(), batches, by_level.LEVELS)
    assert [row["loss"] for row in levels["training images"]] == pytest.approx([row["loss"] for row in by_hand])


def test_the_most_likely_pictures_come_first(run: Path, result: evaluation.Evaluation) -> None:
    """The first picture of the upper row is the one of the fewest bits, the last of the lower row that of the most."""
    split, bits = load_experiment_data(run)[1], result.numbers["likelihood"]["samples"]
    rows = balanced(split.held_out, 12)
    picture = result.pictures["extremes"]
    assert isinstance(picture, np.ndarray)
    shown = [picture[:32:4, :32:4, 0], picture[-32::4, -32::4, 0]]
    for which, pixels in zip((int(np.argmin(bits)), int(np.argmax(bits))), shown, strict=True):
        assert np.array_equal(pixels, split.held_out.samples[rows[which]][0].numpy())


@pytest.mark.parametrize("names", [["bits-per-dim"], ["bound"]])
def test_likelihoods_alone(run: Path, hasty: None, names: list[str]) -> None:
    made = evaluation.evaluate(run, n=4, sweep_n=0, names=names)
    assert made.numbers["measurements"] == [] and len(made.numbers["likelihood"]["measurements"]) == 3
    assert "No metric of samples" in report.to_html(made.numbers, html.drawn(made.pictures))


def test_fewer_samples_than_classes_are_evaluated(run: Path, hasty: None) -> None:
    made = evaluation.evaluate(run, n=5, sweep_n=0)
    assert "frechet-distance" in rows_by_metric(made.numbers)


def test_evaluations_are_counted(run: Path, hasty: None) -> None:
    for guidance, sampler, least, most in ((0.0, "ddim", 4, 4), (3.0, "ddim", 8, 8), (1.0, "adaptive", 7, 1000)):
        made = evaluation.evaluate(
            run, n=4, sweep_n=0, names=["frechet-distance"], guidance=guidance, sampler=sampler, steps=4
        )
        assert least <= made.numbers["samples"]["evaluations"] <= most


def test_rows_name_the_seeds_that_they_are_of(run: Path, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are fewer held-out images than samples."""
    whole = evaluation.Judge

    def fewer(split: Any, *arguments: Any, **named: Any) -> evaluation.Judge:
        return whole(type(split)(split.train, split.held_out.subset(torch.arange(15))), *arguments, **named)

    monkeypatch.setattr(base, "Judge", fewer)
    made = evaluation.evaluate(run, n=20, sweep_n=0, names=["frechet-distance"], features="pixels")
    row = rows_by_metric(made.numbers)["frechet-distance"]
    assert row["n"] == 15 and row["seeds"] == "0-14"
    assert "first 15 of 20 samples" in report.to_html(made.numbers, html.drawn(made.pictures))


def test_what_lies_in_the_folder_of_pictures_stays(own_run: Path, hasty: None, call: Any, refused: Any) -> None:
    (own_run / "pictures").write_text("mine")
    refused(call("evaluate", own_run, "--n", 4, "--sweep-n", 0), "pictures is a file")
    (own_run / "pictures").unlink()
    (own_run / "pictures").mkdir()
    (own_run / "pictures" / "mine.txt").write_text("mine")
    options = ["--n", 4, "--sweep-n", 0, "--features", "pixels"]
    assert call("evaluate", own_run, *options, "--metrics", "kid,bound")[0] == 0
    assert (own_run / "pictures" / "likelihoods.svg").is_file()
    assert call("evaluate", own_run, *options, "--metrics", "kid")[0] == 0
    assert (own_run / "pictures" / "mine.txt").read_text() == "mine"
    assert not (own_run / "pictures" / "likelihoods.svg").exists()  # of the evaluation before


def test_a_share_of_nothing_has_an_interval() -> None:
    row = {"value": 0.0, "error": 0.0, "interval": [0.0, 0.031]}
    assert report.value_of(row) == "0 (0 to 0.031)"
    assert report.value_of(row | {"value": 0.5, "error": 0.1}) == "0.5 ± 0.1"
    assert report.value_of({"precision": 0.5, "precision_error": 0.1}, "precision") == "0.5 ± 0.1"


def test_named_metrics_alone(run: Path, hasty: None) -> None:
    made = evaluation.evaluate(run, n=20, sweep_n=0, names=["recall", "kid"], features="pixels")
    assert [row["metric"] for row in made.numbers["measurements"]] == ["recall", "kid"]
    assert "likelihood" not in made.numbers and "sweep" not in made.numbers
    assert "pooled pixels" in made.numbers["measured_through"]
    report.to_html(made.numbers, html.drawn(made.pictures))


def test_what_is_not_known_is_refused_before_any_work(run: Path, call: Any, refused: Any) -> None:
    refused(call("evaluate", run, "--metrics", "fidd"), "'fidd'", "did you mean 'fid'")
    refused(call("evaluate", run, "--features", "inceptoin"), "did you mean 'inception'")
    refused(call("evaluate", run, "--sweep-n", 1), "--sweep-n 0 or at least 2")
    with pytest.raises(InputError, match="at least 2 samples, not 1"):
        evaluation.evaluate(run, n=1)


def test_what_cannot_be_measured_is_refused_before_sampling(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "timed", lambda *_: pytest.fail("work was done"))
    for names, features, words in (
        (["fid"], "pixels", "FID is over"),
        (["inception-score"], "pixels", "without a network that gives scores"),
        (["psnr"], "pixels", "not shown the sample made smaller"),
        (["diversity"], "pixels", "a class with 2 samples"),
        (["recall"], "pixels", "6 samples"),
    ):
        with pytest.raises(InputError, match=words):
            evaluation.evaluate(run, n=4, names=names, features=features)


def test_statistics_of_a_run_are_written_and_measured_against(
    call: Any, refused: Any, run: Path, tmp_path: Path, hasty: None
) -> None:
    out = tmp_path / "real.npz"
    code, text, err = call("statistics", run, "--features", "pixels", "--out", out, "--json")
    assert code == 0, err
    assert json.loads(text)["n"] == 359
    measured = ["--metrics", "frechet-distance", "--features", "pixels", "--sweep-n", 0, "--n", 20, "--json"]
    values = []
    for more in ([], ["--reference", out]):
        code, text, err = call("evaluate", run, *measured, *more)
        assert code == 0, err
        values.append(rows_by_metric(json.loads(text))["frechet-distance"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    refused(call("statistics", run, "--features", "pixels", "--out", out), "exists already")
    refused(call("statistics", run, "--features", "pixel"), "did you mean 'pixels'")
    refused(call("evaluate", run, "--features", "pixels:side=4", "--reference", out), "over other features")
    np.savez(tmp_path / "five.npz", mu=np.zeros(5), sigma=np.eye(5))
    refused(
        call("evaluate", run, "--features", "pixels", "--reference", tmp_path / "five.npz"), "five.npz", "64 pooled"
    )
    assert call("statistics", run, "--features", "embedded", "--out", tmp_path / "own.npz")[0] == 0
    own = ["--reference", tmp_path / "own.npz", "--metrics", "frechet-distance", "--sweep-n", 0, "--n", 4]
    assert call("evaluate", run, *own)[0] == 0
    refused(call("evaluate", run, "--guidance", "nan"), "finite number, not nan")


def test_a_classifier_is_trained_once_for_all_runs_on_the_same_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_experiment_data(run)[1]
    first = evaluation.Judge(split, (1, 8, 8), "label")
    monkeypatch.setattr(judge.classifiers, "train", lambda *_, **__: pytest.fail("it was trained again"))
    again = evaluation.Judge(split, (1, 8, 8), "label")
    assert again.features.key == first.features.key


@pytest.mark.slow
def test_an_early_deadline_shrinks_the_sweep(run: Path, hasty: None) -> None:
    made = evaluation.evaluate(run, n=10, sweep_n=70, deadline=0.0)
    assert made.numbers["sweep"]["n"] == 50
    assert made.numbers["guidance"]["rows"] == [] and "guidance_curve" not in made.pictures
    assert "Not measured: it takes 100 samples a scale" in report.to_html(made.numbers, html.drawn(made.pictures))


def test_the_guidance_curve_is_measured_on_the_same_seeds_and_classes(run: Path, result: evaluation.Evaluation) -> None:
    curve = result.numbers["guidance"]
    assert [row["scale"] for row in curve["rows"]] == [1.0, 3.0] and curve["n"] == 20
    split, model, judge = load_experiment_data(run)[1], undiffuse.load(run), JUDGES[-1]
    labels = split.train.label.unique()[torch.arange(20) % 10]
    images = evaluation.as_tensor(model.sample(20, seed=0, label=labels, guidance=3.0))
    assert judge.classifier is not None
    held_out = judge.features(judge.held_out[balanced(split.held_out, 20)])[0]
    found, row = metrics.precision_recall(held_out, judge.features(images)[0]), curve["rows"][1]
    assert row["accuracy"] == pytest.approx(float((judge.classifier.predict(images) == labels).float().mean()))
    assert (row["precision"], row["recall"]) == (pytest.approx(found["precision"]), pytest.approx(found["recall"]))
    assert row["frechet_distance"] == pytest.approx(judge.distance(images).value, abs=1e-3)
    real = metrics.precision_recall(held_out, judge.features(judge.shuffled_train[:20])[0])
    assert curve["training"]["recall"] == pytest.approx(real["recall"])


def test_real_images_are_drawn_with_classes_in_turn() -> None:
    """Each draw of real images has every class equally often, as the samples it is compared with."""
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 1, 2, 1, 2, 1, 2])
    order = torch.argsort(turns(labels), stable=True)
    for draw in labels[order].split(3):
        assert sorted(draw.tolist()) == [0, 1, 2]


# -- runs side by side ------------------------------------------------------------------------------------------------


@pytest.fixture
def other(written: Path, tmp_path: Path) -> Path:
    """Another evaluated run, whose kernel distance was measured over other features."""
    folder = Path(shutil.copytree(written, tmp_path / "other"))
    numbers = json.loads((folder / "evaluation.json").read_text())
    numbers["real"]["frechet-distance"] = [5.0, 6.0]
    for row in numbers["measurements"]:
        row["value"] += 0.1
        if row["metric"] == "kid":
            row["settings"]["key"] = "another"
    (folder / "evaluation.json").write_text(json.dumps(numbers))
    return folder


def test_runs_stand_on_one_axis_only_where_they_were_measured_alike(written: Path, other: Path) -> None:
    compared = runs.compare([written, other])
    assert compared.names == ["tiny", "other"]
    groups = [group for group in compared.groups if "Kernel" in group.label]
    assert [set(group.rows) for group in groups] == [{"tiny"}, {"other"}]
    assert all("key" in group.differs for group in groups)
    assert any("Bits per dimension" in group.label for group in compared.groups)
    frechet = next(group for group in compared.groups if "Frechet" in group.label)
    assert {5.0, 6.0} < set(frechet.real)  # of both runs
    alike = [group for group in compared.groups if "Kernel" not in group.label]
    assert alike and all(set(group.rows) == {"tiny", "other"} and not group.differs for group in alike)


def test_runs_are_compared_from_the_command_line(call: Any, refused: Any, written: Path, other: Path, tmp_path) -> None:
    out = tmp_path / "compared"
    code, text, err = call("compare", written, other, "--out", out, "--json")
    assert code == 0, err
    assert set(json.loads(text)["runs"]) == {"tiny", "other"}
    page = (out / "comparison.html").read_text()
    assert "Samples of other" in page and "Loss per noise level of tiny" in page
    assert (out / "pictures" / "measurements.svg").is_file() and (out / "pictures" / "grid-1.png").is_file()
    refused(call("compare", written, other, "--out", out), "exists already")
    assert call("compare", written, other, "--out", out, "--overwrite")[0] == 0
    refused(call("compare", written, written), "2 different runs")
    refused(call("compare", written), "2 different runs")
    refused(call("compare", written, other, "--steps", "5"), "are of --samplers")
    refused(call("compare", written, other, "--samplers", "ddim"), "samplers of one run, not of 2")
    refused(call("compare", written, tmp_path / "nowhere"), "nowhere is not a run folder")
    numbers = json.loads((other / "evaluation.json").read_text())
    numbers["measurements"][0]["value"] = "x"
    (other / "evaluation.json").write_text(json.dumps(numbers))
    refused(call("compare", written, other, "--out", tmp_path / "again"), "evaluation.json is damaged")
    (other / "evaluation.json").unlink()
    refused(call("compare", written, other, "--out", tmp_path / "again"), "undiffuse evaluate")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    refused(call("compare", written, other, "--out", tmp_path / "mine"), "holds other things")


def test_runs_against_other_images_of_one_name_stand_apart(written: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "elsewhere"))
    numbers = json.loads((folder / "evaluation.json").read_text())
    for row in numbers["measurements"]:
        row["reference_key"] = "of other pixels"
    (folder / "evaluation.json").write_text(json.dumps(numbers))
    groups = [group for group in runs.compare([written, folder]).groups if "Frechet" in group.label]
    assert len(groups) == 2 and all("reference_key" in group.differs for group in groups)
