"""The same work around diffusers' transformer, as its own training examples do it, and the lesson's
practice of padding the text and running two frozen encoders on every step."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith.config import RunConfig
from fluxsmith.device import autocast
from fluxsmith.errors import UserError
from fluxsmith.flow.timesteps import DENSITIES
from fluxsmith.model.flux import FluxParams
from fluxsmith.model.tokens import image_ids, patchify, text_ids, token_grid, unpatchify
from fluxsmith.optional import optional
from fluxsmith.training.run import build_trainer

CLIP_TOKENS, T5_TOKENS = 77, 128  # as the lesson pads them


class Diffusers:
    """FluxTransformer2DModel with the same batch, text tokens, precision, optimiser and Euler loop.

    Its text is embedded beforehand and not learned, which is in its favour.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        *,
        compiled: bool,
        text_tokens: int | None = None,  # None: as many as ours takes for the same captions
    ) -> None:
        self.name = "diffusers, compiled" if compiled else "diffusers, eager"
        self.config, self.device = config, device
        # Ours lends its data, its sizes and its optimiser's settings; its own step is never made.
        lender = build_trainer(config, device)
        self.loader = lender.loader
        self.shape = lender.pipeline.latent_shape
        params = lender.pipeline.network.params
        self.model = transformer(params).to(device).train()
        if compiled:
            self.model.compile_repeated_blocks(fullgraph=True)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.train.learning_rate,
            betas=(config.train.betas[0], config.train.betas[1]),
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.ema = optional("diffusers.training_utils", "dev", "--against diffusers").EMAModel(
            self.model.parameters(), decay=config.train.ema_decay, foreach=True
        )
        batch = config.train.batch_size
        if text_tokens is None:
            captions = self.loader.batch(0).captions
            text_tokens = lender.pipeline.encode_text(captions).tokens.shape[1]
        self.text = torch.randn(batch, text_tokens, params.context_in_dim, device=device)
        self.pooled = torch.randn(batch, params.vec_in_dim, device=device)
        self.density = DENSITIES[config.flow.timesteps](**config.flow.parameters())
        self.generator = torch.Generator(device).manual_seed(0)
        self.steps_done = 0

    def train_step(self) -> None:
        x0 = self.loader.batch(self.steps_done).images
        u = torch.rand(len(x0), generator=self.generator, device=self.device)
        t = self.density.quantile(u)
        eps = torch.randn(x0.shape, generator=self.generator, device=self.device)
        weight = t[:, None, None, None]
        x_t = (1 - weight) * x0 + weight * eps
        v = self.velocity(x_t, t, self.text, self.pooled, self.config.train.precision)
        F.mse_loss(v, eps - x0).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.step(self.model.parameters())
        self.steps_done += 1

    @torch.no_grad()
    def sample(self, prompts: list[str], steps: int, guidance: float) -> Tensor:
        """Euler with classifier-free guidance in two passes a step, as diffusers' FluxPipeline
        has it: for many pictures on a CPU quicker than one doubled batch."""
        n = len(prompts)
        x = torch.randn(n, *self.shape, device=self.device)
        text, pooled = self.text[:1].expand(n, -1, -1), self.pooled[:1].expand(n, -1)
        ts = torch.linspace(1, 0, steps + 1).tolist()
        precision = self.config.sample.precision
        for t, after in itertools.pairwise(ts):
            v = self.velocity(x, x.new_full((n,), t), text, pooled, precision)
            if guidance != 1:
                unconditional = self.velocity(x, x.new_full((n,), t), text, pooled, precision)
                v = unconditional + guidance * (v - unconditional)
            x = x + (after - t) * v
        return x.clamp(-1, 1).cpu()

    def velocity(
        self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor, precision: str
    ) -> Tensor:
        _, _, height, width = x.shape
        patch = self.config.model.patch_size
        with autocast(self.device, precision):
            tokens = self.model(
                hidden_states=patchify(x, patch),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=t,
                img_ids=image_ids(*token_grid(height, width, patch), x.device),
                txt_ids=text_ids(text.shape[1], x.device),
                return_dict=False,
            )[0]
        return unpatchify(tokens.float(), patch, height, width)


class Lesson(Diffusers):
    """128 padded text tokens, and CLIP ViT-L/14 and T5-v1.1-base run on every step."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        super().__init__(config, device, compiled=False, text_tokens=T5_TOKENS)
        self.name = "the lesson's practice"
        self.clip, self.t5 = (encoder.to(device).eval() for encoder in encoders())
        batch = config.train.batch_size
        self.clip_ids = torch.randint(1, 40_000, (batch, CLIP_TOKENS), device=device)
        self.t5_ids = torch.randint(1, 30_000, (batch, T5_TOKENS), device=device)

    def train_step(self) -> None:
        with torch.no_grad():
            self.clip(input_ids=self.clip_ids)
            self.t5(input_ids=self.t5_ids)
        super().train_step()


def transformer(params: FluxParams) -> Any:
    """diffusers' network at these sizes; a UserError where it has none."""
    diffusers = optional("diffusers", "dev", "--against diffusers")
    fixed = {"mlp_ratio": 4.0, "theta": 10_000, "qkv_bias": True}
    for key, value in fixed.items():
        if getattr(params, key) != value:
            raise UserError(f"model.{key}={getattr(params, key)}: diffusers' Flux has only {value}")
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=params.in_channels,
        num_layers=params.depth,
        num_single_layers=params.depth_single_blocks,
        attention_head_dim=params.hidden_size // params.num_heads,
        num_attention_heads=params.num_heads,
        joint_attention_dim=params.context_in_dim,
        pooled_projection_dim=params.vec_in_dim,
        guidance_embeds=False,
        axes_dims_rope=params.axes_dim,
    )


def encoders() -> tuple[Any, Any]:
    """CLIP ViT-L/14's text tower and T5-v1.1-base's encoder, with random weights."""
    transformers = optional("transformers", "hf", "--against lesson")
    clip = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    t5 = transformers.T5Config(
        d_model=768,
        d_kv=64,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return transformers.CLIPTextModel(clip), transformers.T5EncoderModel(t5)
