"""Fitted grids on disk: the same back, merged by name, and corrupt files refused."""

import json

import pytest
import torch

from undiffuse import InputError
from undiffuse.samplers import stored
from undiffuse.samplers.stored import StoredGrid

GRID = StoredGrid((1.0, 0.5, 0.1, 0.0), "DDIM()", 1.5, 16, 0.01, 0.02, "angle")


def test_what_is_written_is_read_back(tmp_path):
    path = stored.write(tmp_path, "mine", {3: GRID})
    assert path == tmp_path / "grids" / "mine.json"
    assert dict(stored.Folder(tmp_path)) == {"mine": {3: GRID}}
    assert torch.equal(stored.points("mine", {3: GRID}, 3), torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64))
    assert [p.name for p in path.parent.iterdir()] == ["mine.json"]
    assert dict(stored.Folder(tmp_path / "elsewhere")) == {}


def test_a_number_of_steps_that_was_not_fitted_is_refused():
    with pytest.raises(InputError, match="not fitted for 5 steps, but for 3, 8: `undiffuse grid RUN --steps 5"):
        stored.points("mine", {8: GRID, 3: GRID}, 5)


@pytest.mark.parametrize("name", ["karras", "", "a/b", "..", "-x", "a b"])
def test_names_that_cannot_be_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="name"):
        stored.write(tmp_path, name, {3: GRID})
    assert not list(tmp_path.iterdir())


def changed(**changes):
    grid = {**vars(GRID), "times": list(GRID.times), **changes}
    return json.dumps({"steps": {"3": {k: v for k, v in grid.items() if v is not None}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a fitted grid"),
        ("[]", "is not a fitted grid"),
        ("{}", "no 'steps'"),
        ('{"steps": {"3": 1}}', "is not a fitted grid"),
        (changed(sampler=None), "sampler"),
        (changed(colour="red"), "colour"),
        (changed(times=[1.0, 0.5, 0.0]), "its 3 steps are not 4 times that fall to 0"),
        (changed(times=[1.0, 0.5, 0.6, 0.0]), "fall to 0"),
        (changed(times=[1.0, 0.5, 0.1, 0.01]), "fall to 0"),
        (changed(times=[1.5, 0.5, 0.1, 0.0]), "fall to 0"),
        (changed(times=[1.0, "a", 0.1, 0.0]), "is not a fitted grid"),
        (changed(times=[1.0, float("nan"), 0.1, 0.0]), "fall to 0"),
        (changed(times=7), "is not a fitted grid"),
    ],
)
def test_a_corrupt_file_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "mine.json").write_text(text)
    with pytest.raises(InputError, match=rf"mine\.json.*{message}.*: delete it, or fit it again"):
        stored.Folder(tmp_path)["mine"]
