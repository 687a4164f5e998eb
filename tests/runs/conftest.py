"""One small trained run for all tests that only read it."""

from pathlib import Path

import pytest

from tiny import tiny, train


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny(folder))
    return folder
