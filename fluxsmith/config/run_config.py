"""The configuration of a whole run: its sections, and what must fit between them."""

from typing import Literal

from pydantic import SerializeAsAny, model_validator

from fluxsmith.config.data_section import DataConfig
from fluxsmith.config.kinds import BY_DEFAULT
from fluxsmith.config.model_section import AutoencoderConfig, ModelConfig, TextConfig
from fluxsmith.config.objective_section import FlowConfig, ObjectiveConfig
from fluxsmith.config.parallel_section import ParallelConfig
from fluxsmith.config.sample_section import EvaluateConfig, SampleConfig
from fluxsmith.config.train_section import TrainConfig
from fluxsmith.config.types import Section, check_divisible


class RunConfig(Section):
    """A whole run. Build it with `read_config`, which resolves `name` and `output_dir`."""

    name: str | None = None
    """Name of the run; the config file's by default."""
    seed: int = 0
    """Everything random in the run follows from this."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; auto takes CUDA, then MPS, then the CPU."""
    output_dir: str | None = None
    """Folder of the run; output/ + the config's path below configs/ by default."""
    data: SerializeAsAny[DataConfig]
    text: SerializeAsAny[TextConfig] = BY_DEFAULT
    autoencoder: SerializeAsAny[AutoencoderConfig] = BY_DEFAULT
    model: ModelConfig = ModelConfig()
    objective: SerializeAsAny[ObjectiveConfig] = BY_DEFAULT
    flow: SerializeAsAny[FlowConfig] = BY_DEFAULT
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    sample: SerializeAsAny[SampleConfig] = BY_DEFAULT
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _names_are_names(self) -> "RunConfig":
        if self.name is not None and (set(self.name) & set("/\\") or not self.name.isprintable()):
            raise ValueError(
                f"name={self.name!r}: must be a name, without slashes or control characters; the "
                f"folder of the run is output_dir"
            )
        if self.output_dir is not None and not self.output_dir.isprintable():
            raise ValueError(f"output_dir={self.output_dir!r}: must not hold control characters")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> "RunConfig":
        size, patch = self.data.image_size, self.model.patch_size
        check_divisible("data.image_size", size, "model.patch_size", patch)
        train, sample = self.train, self.sample
        if train.batch_size % train.accumulate:
            raise ValueError(
                f"train.accumulate={train.accumulate}: must divide "
                f"train.batch_size={train.batch_size}"
            )
        if sample.guidance_method == "embedded" and not self.model.guidance_embed:
            raise ValueError(
                "sample.guidance_method=embedded: the network has no guidance input; set "
                "model.guidance_embed=true or use cfg"
            )
        if sample.guidance_method != "cfg" and sample.guidance_interval != [0.0, 1.0]:
            raise ValueError(
                f"sample.guidance_interval={sample.guidance_interval}: is for "
                f"sample.guidance_method=cfg; remove the key or use cfg"
            )
        for key in ("reference_key", "edits"):
            value = getattr(self.data, key, None)
            if value and self.model.conditioning != "kontext":
                raise ValueError(
                    f"data.{key}={value}: is for models that take a reference picture; set "
                    f"model.conditioning=kontext or remove the key"
                )
        if sample.guidance_method == "none" and sample.guidance != 1:
            raise ValueError(
                f"sample.guidance={sample.guidance}: with sample.guidance_method=none there is "
                f"nothing to guide with; set sample.guidance=1"
            )
        low, high = sample.guidance_interval
        if low > high:
            raise ValueError(
                f"sample.guidance_interval=[{low}, {high}]: the lowest t comes first; swap them"
            )
        return self

    @property
    def resolved_output_dir(self) -> str:
        if self.output_dir is None:
            raise ValueError("output_dir is not resolved: build the config with read_config")
        return self.output_dir
