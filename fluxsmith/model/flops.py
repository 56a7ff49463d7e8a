"""How much arithmetic a network needs, from its sizes alone."""

from fluxsmith.model.flux import TIMESTEP_WIDTH, FluxParams


def forward_flops(params: FluxParams, txt_tokens: int, img_tokens: int) -> int:
    """Floating-point operations of one image's forward pass, in matrix products and attention.

    A product of (m, k) and (k, n) counts 2 m k n; what goes by element is left out, as is the
    field's habit (and `torch.utils.flop_counter`'s).
    """
    hidden, tokens = params.hidden_size, txt_tokens + img_tokens
    inner = int(hidden * params.mlp_ratio)
    embedders = [params.vec_in_dim, TIMESTEP_WIDTH] + [TIMESTEP_WIDTH] * params.guidance_embed
    into = img_tokens * params.in_channels + txt_tokens * params.context_in_dim
    vector = sum(width + hidden for width in embedders)
    # Dual and single blocks spend the same on a token: qkv and output, MLP in and out.
    per_block = tokens * (4 * hidden + 2 * inner) + 2 * tokens**2
    blocks = (params.depth + params.depth_single_blocks) * per_block
    modulation = hidden * (12 * params.depth + 3 * params.depth_single_blocks + 2)
    out = img_tokens * (params.out_channels or params.in_channels)
    return 2 * hidden * (into + vector + blocks + modulation + out)


def training_flops(params: FluxParams, txt_tokens: int, img_tokens: int) -> int:
    """Of one image's forward and backward pass, where the text is learned with the network.

    Backward makes two products of every one (for the input and for the weights), but for the inputs
    that nobody learns: the noisy image's and the embedded time's.
    """
    unlearned = img_tokens * params.in_channels + TIMESTEP_WIDTH * (1 + params.guidance_embed)
    forward = forward_flops(params, txt_tokens, img_tokens)
    return 3 * forward - 2 * unlearned * params.hidden_size
