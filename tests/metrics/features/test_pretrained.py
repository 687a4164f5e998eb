import dataclasses
import hashlib
import pickle

import pytest
import torch

from undiffuse.errors import InputError
from undiffuse.metrics.features.pretrained import Published


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Weights that a folder beside us serves, and empty folders to look for them in."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNDIFFUSE_WEIGHTS", str(tmp_path / "chosen"))
    source = tmp_path / "server" / "net.pth"
    source.parent.mkdir()
    torch.save({"weight": torch.arange(3.0)}, source)
    return Published("net.pth", source.as_uri(), hashlib.sha256(source.read_bytes()).hexdigest())


def test_downloaded_once_into_the_cache(published, tmp_path):
    assert torch.equal(published.load()["weight"], torch.arange(3.0))
    assert [file.name for file in (tmp_path / "cache" / "weights").iterdir()] == ["net.pth"]
    offline = dataclasses.replace(published, address="http://127.0.0.1:9/net.pth")
    assert offline.find() == tmp_path / "cache" / "weights" / "net.pth"


def test_the_chosen_folder_comes_first(published, tmp_path):
    mine = tmp_path / "chosen" / "net.pth"
    mine.parent.mkdir()
    mine.write_bytes((tmp_path / "server" / "net.pth").read_bytes())
    assert published.find() == mine and not (tmp_path / "cache" / "weights").exists()


def test_offline_and_absent_is_one_line_that_says_what_to_put_where(published, tmp_path):
    offline = dataclasses.replace(published, address="http://127.0.0.1:9/net.pth")
    with pytest.raises(InputError) as caught:
        offline.find()
    line = str(caught.value)
    assert "\n" not in line and "net.pth are not on this machine" in line and "UNDIFFUSE_WEIGHTS" in line
    assert "http://127.0.0.1:9/net.pth" in line and str(tmp_path / "cache" / "weights") in line
    assert not list((tmp_path / "cache" / "weights").iterdir())


def test_a_wrong_download_leaves_nothing_behind(published, tmp_path):
    other = dataclasses.replace(published, sha256="0" * 64)
    with pytest.raises(InputError, match="not 00000000"):
        other.find()
    assert not list((tmp_path / "cache" / "weights").iterdir())


def test_a_missing_path_and_what_is_no_tensor_are_refused(published, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        published.find(tmp_path / "nowhere.pth")
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(dataclasses.field, protocol=2))
    loaded = dataclasses.replace(published, sha256=hashlib.sha256(evil.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="cannot read the weights") as caught:
        loaded.load(evil)
    assert "\n" not in str(caught.value)
