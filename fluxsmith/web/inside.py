"""What a network looks at: how much each part of the picture attends to each word, in every block
and at every state of the way from noise; and the code of its parts."""

import base64
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.flow import path, solvers
from fluxsmith.model import attention, blocks, flux, rope
from fluxsmith.model.attention import Norm, joint_attention
from fluxsmith.model.flux import Flux
from fluxsmith.model.rope import RotaryTable, rotate
from fluxsmith.model.tokens import token_grid
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.byte_encoder import CONTINUED, ByteEncoder, pieces
from fluxsmith.web.drawing import Request, draw
from fluxsmith.web.line import Emit

CODE: dict[str, Callable[..., Any]] = {
    "path": path.interpolate,
    "loss": path.flow_matching_loss,
    "velocity": path.velocity_from_x0,
    "step": solvers.euler,
    "text": ByteEncoder.embed,
    "time": blocks.timestep_embedding,
    "embedder": blocks.MLPEmbedder,
    "modulation": blocks.Modulation,
    "modulate": blocks.modulate,
    "double": blocks.DoubleStreamBlock.forward,
    "single": blocks.SingleStreamBlock.forward,
    "attention": attention.joint_attention,
    "norm": attention.rms_norm,
    "rope": rope.rotate,
    "last": blocks.LastLayer.forward,
    "flux": flux.Flux.forward,
}


def code() -> dict[str, str]:
    """The source of the network's parts, as the package has it."""
    return {name: inspect.cleandoc("\n" + inspect.getsource(of)) for name, of in CODE.items()}


def look_inside(pipeline: Pipeline, asked: Request, emit: Emit) -> None:
    """Emits the states of one picture, then {"words", "blocks", "rows", "columns", "attention"}:
    for each state but the last, block and word, the shares of attention of the image's tokens to
    it, as bytes (states, blocks, words, rows columns) in base64, 255 being `most`."""
    if len(asked.prompts) != 1:
        raise UserError("look inside one picture at a time")
    states = draw(pipeline, asked, emit, kernels="off")
    x = torch.cat(states.latents)  # (states, c, h, w)
    times = torch.tensor(states.times[:-1], device=x.device)
    cond = pipeline.encode_text(asked.prompts).expand(len(x))
    words = _words(pipeline, asked.prompts[0], cond.tokens.shape[1])
    scale = asked.guidance if pipeline.config.model.guidance_embed else 1.0
    with torch.no_grad(), watching(pipeline.network, len(words)) as seen:
        pipeline.velocity(x, times, cond, scale)
    shares = torch.stack(seen, dim=1)  # (states, blocks, words, l_img)
    most = float(shares.max())
    _, _, height, width = x.shape
    rows, columns = token_grid(height, width, pipeline.config.model.patch_size)
    scaled = (shares / max(most, 1e-12) * 255).round().to(torch.uint8).contiguous()
    network = pipeline.network
    named = [(network.double_blocks, "dual"), (network.single_blocks, "single")]
    emit(
        {
            "words": words,
            "blocks": [f"{name} {i + 1}" for of, name in named for i in range(len(of))],
            "rows": rows,
            "columns": columns,
            "most": most,
            "attention": base64.b64encode(scaled.cpu().numpy().tobytes()).decode(),
        }
    )


@contextmanager
def watching(network: Flux, words: int) -> Iterator[list[Tensor]]:
    """Inside, every block notes how much each image token attends to each text token, on average
    over its heads: (b, words, l_img), block after block."""
    seen: list[Tensor] = []

    def watched(
        streams: Sequence[tuple[Tensor, Norm]],
        num_heads: int,
        pe: RotaryTable,
        mask: Tensor | None,
    ) -> tuple[Tensor, ...]:
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        for qkv, norm in streams:
            q, k, _ = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
            for part, one in zip((queries, keys), norm(q, k), strict=True):
                part.append(one)  # (b, h, l_i, k)
        q, k = (rotate(torch.cat(parts, dim=2), pe) for parts in (queries, keys))
        logits = q[:, :, words:] @ k.mT / q.shape[-1] ** 0.5  # (b, h, l_img, l)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
        seen.append(logits.softmax(-1)[..., :words].mean(1).mT.float())
        return joint_attention(streams, num_heads, pe, mask)

    for block in network.blocks:
        cast(Any, block).attention = watched
    try:
        yield seen
    finally:
        for block in network.blocks:
            del block.attention


def _words(pipeline: Pipeline, prompt: str, tokens: int) -> list[str]:
    """What each text token stands for: a word, where the encoder is the learned one."""
    cut = pieces(prompt) if pipeline.config.text.encoder == "bytes" else ()
    words = [piece.lstrip(CONTINUED).decode(errors="replace") for piece in cut]
    return [words[i] if i < len(words) else f"token {i + 1}" for i in range(tokens)]
