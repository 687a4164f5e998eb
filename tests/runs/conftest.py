"""One small trained run for all tests that only read it, and the command line called in-process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import tiny, train
from undiffuse.bits_per_dim import Settings
from undiffuse.cli import main
from undiffuse.evaluation import base, by_level, curves, likely

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(folder))
    return folder


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, for tests that write into it."""
    return Path(shutil.copytree(run, tmp_path / "runs" / "tiny"))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of few steps, samplers and samples, as long as the test runs."""
    monkeypatch.setattr(base, "FULL_STEPS", 3)
    monkeypatch.setattr(curves, "SWEEP", curves.SWEEP[1:2])
    monkeypatch.setattr(likely, "SAMPLES", 4)
    monkeypatch.setattr(likely, "SETTINGS", Settings("heun", steps=3, exact=False, draws=2))
    monkeypatch.setattr(by_level, "SAMPLES", 24)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The program with arguments: its exit code, standard output and standard error."""

    def run_it(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run_it


def _refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    last = err.strip().splitlines()[-1]
    assert code == 2, err
    assert err.count("undiffuse: ") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in last, last


@pytest.fixture
def refused() -> Callable[..., None]:
    """Checks that a call ended in code 2 and one line that has all these words."""
    return _refused
