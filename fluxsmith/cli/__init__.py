"""The command line: commands import what they need when they run, so that --help is quick."""

from fluxsmith.cli.entry import main

__all__ = ["main"]
