"""The arithmetic of a Flux, counted from its sizes: what no implementation can do without.

One multiplication and one addition are two operations; only matrix products are counted, as is the
field's habit (and `torch.utils.flop_counter`'s, which a test holds this against).
"""

from fluxsmith.model.flux import TIMESTEP_WIDTH, FluxParams


def forward_operations(params: FluxParams, batch: int, img: int, txt: int) -> int:
    """Of one forward pass over `batch` pictures of `img` tokens with `txt` text tokens each."""
    d, inner = params.hidden_size, int(params.hidden_size * params.mlp_ratio)
    length = img + txt
    embedders = d * (TIMESTEP_WIDTH + d) * (2 if params.guidance_embed else 1)
    embedders += d * (params.vec_in_dim + d)
    modulation = params.depth * 2 * 6 * d * d + params.depth_single_blocks * 3 * d * d + 2 * d * d
    per_picture = embedders + modulation

    per_token = 4 * d * d + 2 * d * inner  # qkv and out; the MLP: alike in both kinds of block
    attention = 2 * length * length * d  # q k^T and its product with v
    blocks = (params.depth + params.depth_single_blocks) * (length * per_token + attention)
    ends = img * d * (params.in_channels + (params.out_channels or params.in_channels))
    ends += txt * d * params.context_in_dim
    return 2 * batch * (per_picture + blocks + ends)


def training_operations(params: FluxParams, batch: int, img: int, txt: int) -> int:
    """Of forward and backward, where the text is learned with the network.

    Backward makes two products of every one (for the input and for the weights), but for the inputs
    that nobody learns: the noisy picture's and the embedded time's.
    """
    d = params.hidden_size
    unlearned = img * params.in_channels * d + TIMESTEP_WIDTH * d
    if params.guidance_embed:
        unlearned += TIMESTEP_WIDTH * d
    return 3 * forward_operations(params, batch, img, txt) - 2 * batch * unlearned
