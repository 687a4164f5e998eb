"""An extension of griffe: our docstrings, prose with indented formulas, as the Markdown that they mean.

x: (B, D); t: in [0, 1]        arguments, at the start of a line and after semicolons, are items of a list
Args:                          so are those of an indented block
"""

import re
import textwrap
from typing import Any

import griffe

WORD = re.compile(r"(?m)^(Args|Returns|Raises|References?|Yields):(?= |$)")
ARGUMENTS = re.compile(r"\*{0,2}([a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*): ")


def listed(block: str, known: set[str]) -> str:
    """A paragraph, with a list where its lines say what the arguments `known` are."""
    lines: list[str] = []
    for line in re.sub(r"; (?=[a-z_]+: )", ";\n", block).splitlines():
        names = ARGUMENTS.match(line)
        if names and known & set(names[1].replace("*", "").split(", ")):
            lines += [""] if lines and not lines[-1].startswith(("- ", "  ")) else []
            lines.append("- " + ", ".join(f"`{name}`" for name in names[1].split(", ")) + ": " + line[names.end() :])
        elif lines and lines[-1].startswith(("- ", "  ")):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def markdown(text: str, known: set[str]) -> str:
    """The docstring with lists where it has arguments, and its section words in bold."""
    text = re.sub(r"(?m)^(Args|Returns):\n((?:    .*\n?)+)", lambda m: f"{m[1]}:\n\n{textwrap.dedent(m[2])}", text)
    blocks = (block if block.startswith("    ") else listed(block, known) for block in re.split(r"\n{2,}", text))
    return WORD.sub(r"**\1:**", "\n\n".join(blocks))


class Prose(griffe.Extension):
    """Puts `markdown` of it in the place of the docstring of every function, and of every class once it is read."""

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        rewrite(func, {parameter.name for parameter in func.parameters})

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        rewrite(cls, {*cls.members, *(parameter.name for parameter in cls.parameters)})


def rewrite(documented: griffe.Object, known: set[str]) -> None:
    """Its docstring, as Markdown."""
    if documented.docstring:
        documented.docstring.value = markdown(documented.docstring.value, known)
