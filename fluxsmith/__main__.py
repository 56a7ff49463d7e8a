"""`python -m fluxsmith` is the command line."""

from fluxsmith.cli import main

main()
