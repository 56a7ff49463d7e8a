"""How a model is trained: the optimiser, its schedule, what is written when, and how it is run."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from fluxsmith.config.adapter_section import AdapterConfig
from fluxsmith.config.kinds import BY_DEFAULT
from fluxsmith.config.types import Count, Decay, Interval, NotNegative, Rate, Section, Share, off


class TrainConfig(Section):
    steps: Count = 1000
    """Optimiser steps in all."""
    batch_size: Count = 64
    """Images an optimiser step sees."""
    init_from: str | None = None
    """Weights to start from in place of new ones: a checkpoint, a BFL file, a diffusers folder."""
    adapter: SerializeAsAny[AdapterConfig] = BY_DEFAULT
    accumulate: Count = 1
    """Pieces that a batch is cut into to save memory; the gradients stay the same."""
    optimiser: str = "adamw"
    """What turns gradients into steps: adamw."""
    learning_rate: Rate = 1e-3
    """Peak learning rate."""
    warmup_steps: Interval = 100
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine", "linear_tail"] = "linear_tail"
    """What follows: constant, cosine to 0, or constant with a last part linear to 0."""
    tail: Share | None = None
    """linear_tail: the share of the steps over which the rate falls to 0; 0.3 by default."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    betas: list[Decay] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """AdamW's decay rates of the first and second moment."""
    grad_clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: Decay = 0.999
    """Decay of the moving average of the weights that samples are drawn with; warmed up."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network: bfloat16 is autocast over float32 weights; auto means on CUDA."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl, TensorBoard points and console updates."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default=["tensorboard"])
    """What shows the records beside metrics.jsonl: tensorboard, wandb, mlflow, or none of them."""
    sample_every: Interval = 0
    """Steps between sample grids; 0: never."""
    checkpoint_every: Interval = 1000
    """Steps between checkpoints; 0: only the last one."""
    checkpoint_format: Literal["auto", "file", "sharded"] = "auto"
    """One file, or a folder to which each rank writes its share; auto: a file where one can be."""
    keep_checkpoints: Interval = 2
    """Newest checkpoints kept; 0: all."""
    keep_every: Interval = 0
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    snapshots: Interval = 0
    """Averages kept on the way for `fluxsmith serve`, so many, closer at the start; 0: none."""
    background_save: bool = True
    """Write checkpoints while training goes on; takes memory for one more copy of its state."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """When a checkpoint can't be written: continue and try again at the next interval, or stop."""
    diagnose: bool = True
    """Look at the run now and then, and say what looks wrong and what to try (docs/signals.md)."""
    max_bad_steps: Count = 10
    """Steps in a row with a loss or gradient that is not finite, all skipped, before a run ends."""
    kernels: Annotated[Literal["auto", "off"], BeforeValidator(off)] = "auto"
    """Quicker code for the same numbers where the machine has it; off: plain PyTorch."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the network's blocks (torch.compile); auto: where the run is long enough to gain."""
    cuda_graphs: bool = False
    """Capture steps as CUDA graphs: for networks whose kernels are quicker than their launch."""
    deterministic: bool = False
    """Equal to the bit on a GPU too, where equal runs otherwise differ a little; slower there."""

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> "TrainConfig":
        if self.adapter.kind != "none" and self.init_from is None:
            raise ValueError(
                f"train.adapter.kind={self.adapter.kind}: changes a trained model; name its "
                f"weights with train.init_from"
            )
        return self

    @model_validator(mode="after")
    def _tail_belongs(self) -> "TrainConfig":
        if self.tail is not None and self.schedule != "linear_tail":
            raise ValueError(
                f"train.tail={self.tail}: the schedule train.schedule={self.schedule} has no tail; "
                f"remove the key or use linear_tail"
            )
        return self
