"""How large a config's model is, from its numbers alone, before anything of it is built."""

from fluxsmith.config.sections import RunConfig

TRAINING_BYTES = 20  # of a parameter: itself, gradient, average and AdamW's two moments, in float32


def parameters_at_least(config: RunConfig) -> int:
    """The parameters of the matrices in the blocks: nearly all, and never more than there are."""
    model = config.model
    h, inner = model.hidden_size, int(model.hidden_size * model.mlp_ratio)
    stream = (6 + 3 + 1) * h * h + 2 * h * inner  # modulation, qkv, projection; MLP
    single = (3 + 3 + 1) * h * h + 2 * h * inner
    return model.depth * 2 * stream + model.depth_single_blocks * single + _text(config)


def _text(config: RunConfig) -> int:
    """Of the learned text encoder; a frozen one is neither trained nor in a checkpoint."""
    if config.text.encoder != "bytes":
        return 0
    text = config.text.settings()
    hidden: int = text["hidden_size"]
    return hidden * (12 * hidden * text["depth"] + 2 * text["width"])
