"""Our weights under diffusers' names: the two implementations must then compute the same."""

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

RENAMED = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    # double_blocks.i.
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    # single_blocks.i.
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
SPLIT = {  # one layer of ours, several of theirs, in this order along the output
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
}
BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


def diffusers_weights(weights, hidden):
    """Our state_dict with diffusers' names and layout."""
    theirs = {}
    for key, weight in weights.items():
        layer, kind = key.rsplit(".", 1)
        kind = "weight" if kind == "scale" else kind
        prefix = ""
        if layer.split(".")[0] in BLOCKS:
            stack, number, layer = layer.split(".", 2)
            prefix = f"{BLOCKS[stack]}.{number}."
        if layer == "final_layer.adaLN_modulation.1":  # (shift, scale) here, (scale, shift) there
            theirs[f"norm_out.linear.{kind}"] = torch.cat(weight.chunk(2)[::-1])
        elif layer in SPLIT:
            parts = weight.tensor_split([hidden * i for i in range(1, len(SPLIT[layer]))])
            for name, part in zip(SPLIT[layer], parts, strict=True):
                theirs[f"{prefix}{name}.{kind}"] = part
        else:
            theirs[f"{prefix}{RENAMED[layer]}.{kind}"] = weight
    return theirs


def diffusers_flux(flux):
    """diffusers' FluxTransformer2DModel with the weights of our Flux."""
    p = flux.params
    with torch.device("meta"):
        theirs = FluxTransformer2DModel(
            patch_size=1,
            in_channels=p.in_channels,
            out_channels=p.out_channels,
            num_layers=p.depth,
            num_single_layers=p.depth_single_blocks,
            attention_head_dim=p.hidden_size // p.num_heads,
            num_attention_heads=p.num_heads,
            joint_attention_dim=p.context_in_dim,
            pooled_projection_dim=p.vec_in_dim,
            guidance_embeds=p.guidance_embed,
            axes_dims_rope=p.axes_dim,
        )
    theirs.load_state_dict(diffusers_weights(flux.state_dict(), p.hidden_size), assign=True)
    return theirs.eval()
