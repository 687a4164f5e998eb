"""Checkpoints of other libraries on the command line, and in the place of a run folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from tiny import tiny, train


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has an equal in diffusers."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train(tiny(folder, "network.groups=16"))
    return folder


@pytest.fixture(scope="session")
def exported(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "plain"
    ud.formats.diffusers.export(plain, folder)
    return folder


def test_a_run_is_exported_and_imported_and_gives_the_same_samples(plain: Path, tmp_path: Path, call) -> None:
    code, _, err = call("export", plain, "--out", tmp_path / "theirs")
    assert code == 0 and "note: of the 11 classes there, the last, 10, stands for no class" in err
    code, said, err = call("import", tmp_path / "theirs", "--run", tmp_path / "back", "--json")
    facts = json.loads(said)
    assert code == 0 and facts["shape"] == [1, 8, 8] and facts["conditions"] == ["label"]
    for path in (plain, tmp_path / "theirs", tmp_path / "back"):
        code, _, err = call(
            "sample", path, "--label", 7, "--n", 2, "--steps", 4, "--out", tmp_path / f"{path.name}.npz"
        )
        assert code == 0, err
    images = [np.load(tmp_path / f"{name}.npz")["images"].astype(int) for name in ("theirs", "back")]
    assert np.array_equal(*images)
    # their table starts at t = 1/1000, so our grids over it end there; on levels of the table both are one model
    ends, times = [], torch.tensor([1.0, 0.7, 0.4, 0.1, 0.001, 0.0], dtype=torch.float64)
    for path in (plain, tmp_path / "theirs"):
        denoiser = ud.load(path).guided(1.5, label=[3, 8])
        ends.append(ud.samplers.sample(denoiser, ud.samplers.DDIM(), denoiser.prior([0, 1], (1, 8, 8)), times))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)


def test_a_run_is_exported_into_itself_by_default(own_run: Path, plain: Path, call, refused) -> None:
    assert call("export", plain)[0] == 0 and (plain / "diffusers" / "unet" / "config.json").is_file()
    refused(call("export", plain), "exists already")
    assert call("export", plain, "--overwrite")[0] == 0
    refused(call("export", own_run.parent), "is not a run folder")


def test_what_has_no_equal_is_named_before_anything_is_written(tmp_path: Path, call, refused) -> None:
    run = tmp_path / "run"
    train(tiny(run, "network.patch=2", "network.resample=narrow"))
    refused(call("export", run, "--out", tmp_path / "out"), "network.patch=2", "network.resample='narrow'")
    assert not (tmp_path / "out").exists()


def test_info_tells_of_a_folder_of_theirs(exported: Path, call) -> None:
    code, said, _ = call("info", exported, "--json")
    facts = json.loads(said)
    assert (
        code == 0
        and facts["shape"] == [1, 8, 8]
        and facts["conditions"] == ["label (Label, classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"]
    )
    assert facts["sampling"]["sampler"] == "dpm++"


def test_notes_reach_the_user(exported: Path, tmp_path: Path, call, recwarn) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "clipped"))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_sample": True}))
    ud.load(folder)
    assert any("x_0 is not clipped" in str(warning.message) for warning in recwarn)
    again = shutil.copytree(folder, tmp_path / "again")  # Python warns of one thing once
    code, _, err = call("sample", again, "--label", 1, "--n", 1, "--steps", 2, "--out", tmp_path / "x.png")
    assert code == 0 and err.count("x_0 is not clipped") == 1 and "note: " in err
    code, _, err = call("import", folder, "--run", tmp_path / "run")
    assert code == 0 and "x_0 is not clipped" in err


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, exported: Path, call, refused) -> None:
    (tmp_path / "empty").mkdir()
    refused(call("import", tmp_path / "empty", "--run", tmp_path / "run"), str(tmp_path / "empty"))
    refused(call("import", tmp_path / "nowhere", "--run", tmp_path / "run"), "nowhere")
    refused(call("sample", tmp_path / "empty", "--out", tmp_path / "x.png"), "run folder", "diffusers")
    refused(call("import", exported, "--run", exported.parent), "exists already")
    refused(call("import", exported, "--run", tmp_path / "run", "--null-label", 3), "null_label=3")


def test_networks_are_listed_with_their_parameters_counted(call) -> None:
    code, said, _ = call("networks", "--json")
    found = json.loads(said)
    assert code == 0 and set(found["networks"]) == {"unet", "dit", "mlp"}
    assert found["published"]["ddpm-cifar10"]["parameters"] == 35_746_307
    code, said, _ = call("networks")
    assert code == 0 and "859,520,964" in said and "heads" in said


def test_overwriting_spares_what_is_not_ours(exported: Path, plain: Path, tmp_path: Path, call, refused) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "there"))
    (folder / "unet" / "notes.txt").write_text("mine")
    refused(call("export", plain, "--out", folder, "--overwrite"), "only what was exported here is replaced")
    assert (folder / "unet" / "notes.txt").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path)
    refused(call("export", plain, "--out", tmp_path / "link", "--overwrite"), "is a link")


def test_a_grid_is_fitted_where_it_can_be_kept(exported: Path, refused, call) -> None:
    refused(call("grid", exported, "--steps", 2, "--n", 1), "import it first")
