"""`fluxsmith encode`."""

import os

import typer

from fluxsmith.cli.options import ConfigFile, Overrides


def encode(config: ConfigFile, overrides: Overrides = None) -> None:
    """Encode a config's captions and pictures once, so that training need not.

    Under torchrun, the processes share the pictures.
    """
    from fluxsmith.config import read_config
    from fluxsmith.training.caption_encoding import encode_captions
    from fluxsmith.training.latent_encoding import encode_latents, keeps_latents

    settings = read_config(config, overrides or [])
    latents, first = keeps_latents(settings), os.environ.get("RANK", "0") == "0"
    lines = []
    kept = getattr(settings.text, "cache", "memory") != "memory"  # embeddings, for later runs
    if not latents or (kept and first):
        lines += encode_captions(settings)
    if latents:
        lines += encode_latents(settings)
    for line in lines:
        typer.echo(line)
