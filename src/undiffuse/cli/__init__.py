"""The command-line program. Bad input ends in one line and exit code 2; numbers come as JSON with --json."""

import sys
import warnings

import typer

# in the order of --help
from undiffuse.cli import train, train_classifier, sample, interpolate, evaluate, likelihood, compare, demo, grid, plot  # noqa: F401  # isort: skip
from undiffuse.cli import info, samplers, networks, checkpoints  # noqa: F401  # isort: skip
from undiffuse.cli.common import app, console
from undiffuse.errors import InputError

__all__ = ["app", "main"]

# newer versions of typer carry their own copy of click; this base class is the same either way
UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> None:
    """Run the program; exits with 0, or 2 and one line on standard error for bad input."""
    warnings.showwarning = lambda message, *_, **__: console.print(f"note: {message}", soft_wrap=True)
    try:
        code = app(
            args=(sys.argv[1:] if arguments is None else arguments) or ["--help"],
            prog_name="undiffuse",
            standalone_mode=False,
        )
    except (InputError, UsageError, OSError) as error:
        message = error.format_message() if isinstance(error, UsageError) else str(error)  # type: ignore[attr-defined]
        print(f"undiffuse: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
