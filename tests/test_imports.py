"""Arrows point one way: who may import whom (docs/architecture.md), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import undiffuse

ROOT = Path(undiffuse.__file__).parent
HELPERS = {"errors", "files", "registry", "weights"}
ALGEBRA = {"schedule", "prediction", "noise", "transition"}
DENOISING = ALGEBRA | {"denoiser"}
# name -> what it may import beside itself and the helpers
MAY_SEE = {
    **{name: set() for name in (*HELPERS, "schedule", "noise")},
    "prediction": {"schedule"},
    "transition": {"schedule"},
    "denoiser": ALGEBRA,
    "exact": DENOISING,
    "chain": DENOISING,
    "guidance": DENOISING,
    "samplers": DENOISING | {"guidance"},
    "editing": DENOISING | {"guidance", "samplers"},
    "likelihood": DENOISING | {"chain", "guidance", "samplers"},
    "objective": DENOISING | {"chain"},
    "training": DENOISING | {"objective", "guidance"},  # guidance: the classifier that it trains
    "distillation": DENOISING | {"objective", "training", "samplers"},
    # leaves: they see neither samplers nor training
    **{name: set() for name in ("kernels", "adapters", "codecs", "metrics", "modalities", "conditioning")},
    "networks": {"kernels"},
    "data": {"noise"},
    "pipeline": DENOISING | {"guidance", "samplers", "likelihood", "editing", "networks", "adapters", "codecs"}
    | {"conditioning", "modalities"},
}  # fmt: skip
MAY_SEE["systems"] = MAY_SEE["pipeline"] | {"pipeline"}
MAY_SEE["serving"] = MAY_SEE["systems"] | {"systems"}
SEE_ALL = {
    "__init__", "__main__", "acceleration", "bits_per_dim", "classifying", "cli", "comparison", "config", "evaluation",
    "examples", "experiment", "formats", "plots", "recipes", "reconstruction", "report",
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """The packages of undiffuse that a file imports, anywhere in it; "__init__" for `import undiffuse` itself."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the arrows"
            whole = node.module == "undiffuse"
            names |= {f"undiffuse.{alias.name}" for alias in node.names} if whole else {node.module}
    parts = [name.split(".") for name in names if name and name.split(".")[0] == "undiffuse"]
    return {part[1] if len(part) > 1 else "__init__" for part in parts}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    package = package_of(path)
    if package in SEE_ALL:
        return
    assert package in MAY_SEE, f"{package} is new: say in MAY_SEE what it may import"
    allowed = {package} | MAY_SEE[package]
    if package not in HELPERS:
        allowed |= HELPERS
    else:
        allowed |= {"errors", "files"}
    assert imported(path) <= allowed, f"{path.name} may not import {', '.join(sorted(imported(path) - allowed))}"


def test_the_rules_have_no_cycle():
    done = set()
    while remaining := MAY_SEE.keys() - done:
        ready = {name for name in remaining if MAY_SEE[name] <= done}
        assert ready, f"a cycle among {remaining}"
        done |= ready


def test_import_undiffuse_loads_no_optional_or_heavy_package():
    heavy = ["matplotlib", "sklearn", "typer", "pydantic", "rich", "torchvision", "transformers", "diffusers"]
    code = f"import sys, undiffuse; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT.parents[1] / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_what_is_there(path):
    command = [sys.executable, "-c", f"import {path.stem}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, check=False)
    assert result.returncode == 0, result.stderr[-1000:]
