"""What is documented runs: every ```python block of a page, in order, in one namespace."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from undiffuse import recipes
from undiffuse.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def commands(text: str) -> list[list[str]]:
    """The arguments of every call of the program in a page's shell blocks."""
    blocks = "\n".join(block[1] for block in re.finditer(r"^```sh\n(.*?)^```", text, re.M | re.S))
    calls = re.split(r"\n|&&", blocks.replace("\\\n", " "))
    return [shlex.split(call, comments=True)[1:] for call in calls if call.strip().startswith("undiffuse ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_those_of_the_program(page: Path) -> None:
    """Each is read as the program reads it, up to its work; recipes take the changes that are shown."""
    program = typer.main.get_command(app)
    for name, *arguments in commands(page.read_text(encoding="utf-8")):
        made = program.commands[name].make_context(name, list(arguments))
        if name == "train":
            changes = [change for change in made.params["overrides"] or [] if not change.startswith("run=")]
            recipes.named(made.params["recipe"]).changed(changes)


def test_the_files_that_the_papers_are_in_are_there() -> None:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", text))
    assert len(named) > 30
    assert not [path for path in named if not (ROOT / "src" / "undiffuse" / path).exists()]
