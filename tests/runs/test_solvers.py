"""The commands about samplers and grids: samplers, grid, compare; and their names in Python and in recipes."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import undiffuse as ud
from undiffuse import InputError, comparison, config, evaluation, recipes, samplers
from undiffuse.cli import main
from undiffuse.samplers import DDIM, SAMPLERS, DPMSolverPlusPlus, fit
from undiffuse.samplers.aliases import ALIASES

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """A shorter fine solution and fewer rounds of fitting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undiffuse.samplers.fit.truth", functools.partial(fit.truth, steps=30))
        patch.setattr("undiffuse.comparison.truth", functools.partial(fit.truth, steps=30))
        patch.setattr("undiffuse.samplers.fit.fit", functools.partial(fit.fit, rounds=3))
        yield


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_foreign_name_is_its_sampler_on_its_grid_in_python(run: Path) -> None:
    model = ud.load(run)
    theirs = model.sample(3, label=1, steps=4, sampler="DPM++ 2M Beta")
    assert np.array_equal(theirs, model.sample(3, label=1, steps=4, sampler=DPMSolverPlusPlus(2), grid="beta"))
    assert not np.array_equal(theirs, model.sample(3, label=1, steps=4, sampler=DPMSolverPlusPlus(2)))
    given = model.sample(3, label=1, steps=4, sampler="DPM++ 2M Beta", grid="uniform")
    assert np.array_equal(given, model.sample(3, label=1, steps=4, sampler="dpm++", grid="uniform"))
    walked = list(model.walk([5], condition={"label": 1}, steps=4, sampler="DPM++ 2M Beta"))
    assert np.array_equal(model.decode(walked[-1]), model.sample(1, label=1, steps=4, sampler="dpm++@beta", seed=5))
    assert torch.equal(model.times(4, sampler="DPM++ 2M Beta"), model.times(4, "beta"))


def test_a_foreign_name_on_the_command_line(call: Call, run: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "x.npz"
    code, printed, err = call(
        "sample", run, "--n", 2, "--steps", 3, "--sampler", "Euler a Beta", "--out", out, "--json"
    )
    assert code == 0, err
    facts = json.loads(printed)
    assert (facts["sampler"], facts["grid"]) == ("DDIM(eta=1, brownian=False)", "beta")
    refused(call("sample", run, "--sampler", "DPM++ 5M", "--out", tmp_path / "y.png"), "did you mean 'DPM++ 2M'")
    refused(call("sample", run, "--sampler", "dpm++@karass", "--out", tmp_path / "y.png"), "did you mean 'karras'")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_foreign_name_in_a_recipe() -> None:
    recipe = recipes.named("digits").changed(["sampling.sampler=DPM++ 2M SDE Karras"])
    assert recipe.sampling.sampler == "DPM++ 2M SDE Karras"
    for override, message in (
        ("sampling.sampler=DPM++ 5M", "did you mean 'DPM\\+\\+ 2M'"),
        ("sampling.sampler=dpm++:ordr=3", "did you mean 'order'"),
        ("sampling.sampler=dpm++@karass", "did you mean 'karras'"),
    ):
        with pytest.raises(InputError, match=message):
            recipes.named("digits").changed([override])
    assert config.plain(recipe)["sampling"]["sampler"] == "DPM++ 2M SDE Karras"


def test_the_default_of_a_recipe_may_be_a_foreign_name(own_run: Path) -> None:
    path = own_run / "recipe.yaml"
    path.write_text(path.read_text().replace("sampler: dpm++", "sampler: DPM++ 2M Beta"))
    model = ud.load(own_run)
    assert torch.equal(model.times(), model.times(grid="beta"))
    assert (model.sampling["grid"], model.grid()) == ("beta", "beta")
    assert model.grid(sampler="heun") == "beta"
    model.prefer(steps=7, grid="uniform")
    assert torch.equal(model.times(), model.times(7, "uniform"))
    model.prefer("Euler a Karras")
    assert (model.grid(), model.sampler()) == ("karras", DDIM(eta=1))


def test_samplers_lists_every_entry_within_100_columns(call: Call) -> None:
    code, out, _ = call("samplers")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert "…" not in out
    firsts = [line.split()[0] for line in out.splitlines() if line.strip()]
    assert set(SAMPLERS) <= set(firsts)
    for kinds in ALIASES.values():
        for alias in (alias for kind in kinds for alias in kind):
            assert all(part in out for part in alias.split(", ")), alias


def test_samplers_as_json(call: Call) -> None:
    code, out, _ = call("samplers", "--json")
    assert code == 0
    found = {entry["name"]: entry for entry in json.loads(out)["samplers"]}
    assert list(found) == list(SAMPLERS)
    assert found["ddpm"]["stochastic"] == "yes"
    assert found["ddim"]["stochastic"] == "if eta > 0"
    assert found["heun"]["stochastic"] == "no"
    assert found["heun"]["evaluations_per_step"] == found["heun"]["order"] == 2
    assert found["heun"]["arguments"]["variable"] == {"default": "angle", "values": ["angle", "ratio"]}
    assert found["dpm++"]["arguments"]["order"] == {"default": 2, "values": [1, 2, 3]}
    assert found["restart"]["arguments"]["sampler"]["default"] == "heun"
    assert found["pndm"]["evaluations_once"] == 1
    assert found["dpm++"]["aliases"]["dpm++:order=2"]["webui"] == ["DPM++ 2M", "dpmpp_2m"]


# -- fitted grids ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with a grid fitted for 3 and for 4 steps."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("fitted") / "tiny"))
    for steps in ("3", "4"):
        with pytest.raises(SystemExit) as exit_:
            main(["grid", str(folder), "--steps", steps, "--n", "3", "--json"])
        assert not exit_.value.code
    return folder


def test_a_fitted_grid_is_written_measured_and_used_by_name(call: Call, fitted: Path, tmp_path: Path) -> None:
    held = json.loads((fitted / "grids" / "fitted.json").read_text())["steps"]
    assert list(held) == ["3", "4"]
    assert held["4"]["n"] == 3
    assert held["4"]["guidance"] == 1.25
    assert held["4"]["sampler"].startswith("DPMSolverPlusPlus")
    assert held["4"]["error"] < held["4"]["before"]
    model = ud.load(fitted)
    assert model.times(4, "fitted").tolist() == held["4"]["times"]
    assert np.array_equal(
        model.sample(2, label=1, steps=4, grid="fitted"), model.sample(2, label=1, steps=4, sampler="dpm++@fitted")
    )
    how = ("--n", 2, "--label", 1, "--grid", "fitted")
    code, _, err = call("sample", fitted, *how, "--steps", 4, "--out", tmp_path / "x.npz")
    assert code == 0, err
    with np.load(tmp_path / "x.npz") as arrays:
        assert np.array_equal(arrays["images"], model.sample(2, label=1, steps=4, grid="fitted"))


def test_the_error_before_and_after_is_printed(call: Call, own_run: Path) -> None:
    how = ("--steps", 3, "--n", 2, "--label", "1,2", "--guidance", 1, "--sampler", "DDIM", "--name", "quick")
    code, _, err = call("grid", own_run, *how)
    assert code == 0, err
    grid = json.loads((own_run / "grids" / "quick.json").read_text())["steps"]["3"]
    assert f"3 steps: error {grid['error']:.4f}, {grid['before']:.4f} on the best named grid" in err
    assert grid["guidance"] == 1.0
    assert grid["sampler"].startswith("DDIM")


def test_steps_that_were_not_fitted_and_names_that_are_not_known(
    call: Call, fitted: Path, tmp_path: Path, refused: Refused
) -> None:
    out = ("--out", tmp_path / "x.png")
    refused(call("sample", fitted, "--grid", "fitted", "--steps", 7, *out), "not fitted for 7 steps, but for 3, 4")
    refused(call("sample", fitted, "--grid", "fited", *out), "did you mean 'fitted'")
    with pytest.raises(InputError, match="not fitted for 20 steps, but for 3, 4"):
        ud.load(fitted).times(grid="fitted")
    assert not list(tmp_path.iterdir())


def test_an_evaluation_takes_a_fitted_grid(call: Call, fitted: Path, hasty: None, refused: Refused) -> None:
    refused(call("evaluate", fitted, "--grid", "fitted", "--steps", 9), "not fitted for 9 steps, but for 3, 4")
    refused(call("evaluate", fitted, "--sampler", "ddimm"), "did you mean 'ddim'")
    result = evaluation.evaluate(fitted, n=12, sweep_n=6, sampler="DDIM", grid="fitted", steps=4)
    samples = result.numbers["samples"]
    assert (samples["sampler"], samples["grid"], samples["steps"]) == ("DDIM", "fitted", 4)
    assert len(result.numbers["trajectory_times"]) == 5


def test_a_corrupt_grid_is_refused_by_name(call: Call, own_run: Path, tmp_path: Path, refused: Refused) -> None:
    (own_run / "grids").mkdir()
    (own_run / "grids" / "mine.json").write_text('{"steps"')
    asked = call("sample", own_run, "--grid", "mine", "--out", tmp_path / "x.png")
    refused(asked, "mine.json is not a fitted grid", "delete it")
    assert call("sample", own_run, "--n", 1, "--out", tmp_path / "y.png")[0] == 0  # others go on


def test_grid_refuses_before_any_work(call: Call, own_run: Path, monkeypatch, refused: Refused) -> None:
    monkeypatch.setattr("undiffuse.samplers.fit.fit", lambda *_: pytest.fail("work was done"))
    refused(call("grid", own_run, "--steps", "1"), "--steps", "2 or more", "'1'")
    refused(call("grid", own_run, "--steps", "eight"), "'eight'")
    refused(call("grid", own_run, "--n", 0), "--n", "0")
    refused(call("grid", own_run, "--name", "karras"), "'karras' is one of the time grids")
    refused(call("grid", own_run, "--name", "a/b"), "'a/b'")
    refused(call("grid", own_run, "--sampler", "ddpm"), "without noise", "DDPM")
    refused(call("grid", own_run, "--sampler", "ddimm"), "did you mean 'ddim'")
    refused(call("grid", own_run, "--label", "11"), "unknown class '11'")
    refused(call("grid", own_run.parent), "not a run folder")
    assert not (own_run / "grids").exists()


def test_fitted_grids_are_plotted(call: Call, fitted: Path, tmp_path: Path) -> None:
    sizes = []
    for name, arguments in (
        ("all", []),
        ("one", ["--grid", "fitted"]),
        ("two", ["--grid", "fitted", "--grid", "beta"]),
    ):
        code, _, err = call("plot", "grids", fitted, *arguments, "--out", tmp_path / f"{name}.png")
        assert code == 0, err
        sizes.append(Image.open(tmp_path / f"{name}.png").size[1])
    assert sizes[1] < sizes[2] < sizes[0]


# -- compare ---------------------------------------------------------------------------------------------------------


def test_compare_draws_and_counts(call: Call, own_run: Path) -> None:
    how = ("--samplers", "ddim,DPM++ 2M Beta,heun@angle,ddpm", "--steps", "3,6", "--n", 20, "--json")
    code, out, err = call("compare", own_run, *how)
    assert code == 0, err
    numbers = json.loads((own_run / "compare.json").read_text())
    assert json.loads(out) == {**numbers, "out": str(own_run / "compare.png")}
    assert Image.open(own_run / "compare.png").size[0] > 800
    rows = numbers["rows"]
    assert [(row["name"], row["grid"], row["steps"], row["evaluations"]) for row in rows] == [
        ("ddim", "karras", 3, 3), ("ddim", "karras", 6, 6),
        ("DPM++ 2M Beta", "beta", 3, 3), ("DPM++ 2M Beta", "beta", 6, 6),
        ("heun@angle", "angle", 3, 5), ("heun@angle", "angle", 6, 11),
        ("ddpm", "karras", 3, 3), ("ddpm", "karras", 6, 6),
    ]  # fmt: skip
    assert all(row["frechet_distance"] > 0 and row["seconds"] > 0 for row in rows)
    assert [row["error"] is None for row in rows] == [False] * 6 + [True] * 2
    model = ud.load(own_run)
    denoiser = model.guided(label=np.arange(20) % 10)  # classes in turn, under the run's guidance
    x = denoiser.prior(range(20), model.shape)
    end = samplers.sample(denoiser, DDIM(), x, model.times(6))
    fine = comparison.truth(denoiser, x)  # where the model's own flow ends
    assert rows[1]["error"] == pytest.approx(float((end - fine).square().mean().sqrt()), rel=1e-3)
    assert rows[1]["error"] < rows[0]["error"]
    code, _, err = call("compare", own_run, *how[:-1])  # the run's own files are written anew
    assert code == 0
    assert "DPM++ 2M Beta" in err


def test_compare_refuses_before_any_work(
    call: Call, own_run: Path, tmp_path: Path, monkeypatch, refused: Refused
) -> None:
    monkeypatch.setattr("undiffuse.comparison.compare", lambda *_: pytest.fail("work was done"))
    before = sorted(own_run.iterdir())
    refused(call("compare", own_run, "--samplers", "ddim,dmp++"), "did you mean 'dpm++'")
    refused(call("compare", own_run, "--samplers", "ddim@karass"), "did you mean 'karras'")
    refused(call("compare", own_run, "--samplers", "ddim@fitted"), "unknown time grid 'fitted'")
    refused(call("compare", own_run, "--samplers", ","), "at least 1 sampler")
    refused(call("compare", own_run, "--samplers", "ddim@trailing"), "are for tables")
    refused(call("compare", own_run, "--samplers", "ddim", "--steps", "5,0"), "--steps", "'5,0'")
    refused(call("compare", own_run, "--samplers", "ddim", "--n", 1), "at least 2", "1")
    refused(call("compare", own_run, "--samplers", "ddim", "--out", tmp_path / "x.jpg"), ".png", "x.jpg")
    (tmp_path / "x.json").write_text("mine")
    refused(call("compare", own_run, "--samplers", "ddim", "--out", tmp_path / "x.png"), "x.json exists")
    refused(call("compare", tmp_path, "--samplers", "ddim"), "not a run folder")
    assert sorted(own_run.iterdir()) == before
