"""Named recipes: whole configurations, one file each, with what was measured in their docstrings."""

from pathlib import Path

from undiffuse.config import Recipe, read
from undiffuse.errors import unknown
from undiffuse.recipes import cifar10, demo, digits, folder, mnist, mnist_super_resolution

RECIPES: dict[str, Recipe] = {
    "demo": demo.RECIPE,
    "digits": digits.RECIPE,
    "mnist": mnist.RECIPE,
    "mnist-super-resolution": mnist_super_resolution.RECIPE,
    "cifar10": cifar10.RECIPE,
    "folder": folder.RECIPE,
}


def named(name: str) -> Recipe:
    """A recipe by name, or from a path that ends in .yaml."""
    if name.endswith((".yaml", ".yml")):
        return read(Path(name))
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
