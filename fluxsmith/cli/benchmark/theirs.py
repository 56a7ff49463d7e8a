"""The same work around diffusers' transformer, as its own training examples do it, and the lesson's
practice of padding the text and running two frozen encoders on every step."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fluxsmith.config import RunConfig
from fluxsmith.device import autocast
from fluxsmith.flow.guidance import classifier_free
from fluxsmith.flow.path import Velocity, flow_matching_loss
from fluxsmith.flow.solvers import euler, uniform_grid
from fluxsmith.flow.timesteps import sample
from fluxsmith.interop.diffusers_folder import check_diffusers, transformer_config
from fluxsmith.model.flux import FluxParams
from fluxsmith.model.tokens import image_ids, patchify, text_ids, token_grid, unpatchify
from fluxsmith.optional import optional
from fluxsmith.training.run import build_trainer

CLIP_TOKENS, T5_TOKENS = 77, 128  # as the lesson pads them


class Diffusers:
    """FluxTransformer2DModel with the same batch, text tokens, precision, optimiser and Euler loop.

    Its text is embedded beforehand and not learned, which is in its favour.
    """

    def __init__(self, config: RunConfig, device: torch.device, *, compiled: bool) -> None:
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
        # As many text tokens as ours takes for the same captions.
        captions = self.loader.batch(0).captions
        tokens = lender.pipeline.encode_text(captions).tokens.shape[1]
        self.text = torch.randn(batch, tokens, params.context_in_dim, device=device)
        self.pooled = torch.randn(batch, params.vec_in_dim, device=device)
        self.density = config.flow.choice
        self.generator = torch.Generator(device).manual_seed(0)
        self.steps_done = 0

    def train_step(self) -> None:
        x0 = self.loader.batch(self.steps_done).images
        t = sample(self.density, len(x0), self.generator, stratified=False)
        eps = torch.randn(x0.shape, generator=self.generator, device=self.device)
        flow_matching_loss(self._velocity(self.text, self.pooled), x0, eps, t).mean().backward()
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
        eps = torch.randn(n, *self.shape, device=self.device)
        one = self._velocity(self.text[:1].expand(n, -1, -1), self.pooled[:1].expand(n, -1))
        guided = classifier_free(one, one, guidance)
        return euler(guided, eps, uniform_grid(steps)).clamp(-1, 1).cpu()

    def _velocity(self, text: Tensor, pooled: Tensor) -> Velocity:
        patch = self.config.model.patch_size
        training = torch.is_grad_enabled()
        precision = (self.config.train if training else self.config.sample).precision

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            _, _, height, width = x.shape
            with autocast(self.device, precision):
                tokens = self.model(
                    hidden_states=patchify(x, patch),
                    encoder_hidden_states=text,
                    pooled_projections=pooled,
                    timestep=t.expand(len(x)),
                    img_ids=image_ids(*token_grid(height, width, patch), x.device),
                    txt_ids=text_ids(text.shape[1], x.device),
                    return_dict=False,
                )[0]
            return unpatchify(tokens.float(), patch, height, width)

        return velocity


class Lesson(Diffusers):
    """128 padded text tokens, and CLIP ViT-L/14 and T5-v1.1-base, with random weights,
    run on every step."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        super().__init__(config, device, compiled=False)
        self.text = self.text[:, :1].expand(-1, T5_TOKENS, -1).clone()
        transformers = optional("transformers", "hf", "--against lesson")
        clip = transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12
        )
        t5 = transformers.T5Config(
            d_model=768, num_heads=12, num_layers=12, feed_forward_proj="gated-gelu"
        )
        self.clip = transformers.CLIPTextModel(clip).to(device).eval()
        self.t5 = transformers.T5EncoderModel(t5).to(device).eval()
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
    check_diffusers(params, "compare another config")
    settings = transformer_config(replace(params, guidance_embed=False))
    return diffusers.FluxTransformer2DModel.from_config(settings)
