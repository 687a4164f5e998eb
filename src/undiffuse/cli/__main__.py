"""`python -m undiffuse.cli`."""

from undiffuse.cli import main

main()
