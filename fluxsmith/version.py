"""The version, where the package's build finds it too."""

__version__ = "0.1.0"
