"""What an evaluation draws, and how much of each thing it looks at."""

from dataclasses import dataclass

from fluxsmith.config.sections import SampleConfig


@dataclass(frozen=True)
class Settings:
    num_samples: int = 1000
    steps: int = 20
    guidance: float = 2.0
    solver: str = "euler"
    seed: int = 0
    validation_images: int = 1000  # of the test images, for the validation loss
    trajectories: int = 200  # followed for the straightness
    sweep_samples: int = 500  # of each setting of the sweep
    sweep_tolerance: float = 0.01  # of prompt accuracy: as good as the best
    sweep_frechet_tolerance: float = 0.1  # of the Fréchet distance, as a share of the smallest
    likelihood_images: int = 100

    @classmethod
    def like(
        cls,
        sample: SampleConfig,
        *,
        num_samples: int,
        seed: int,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
    ) -> "Settings":
        """The settings of a config's sample section, but for those that are given."""
        return cls(
            num_samples=num_samples,
            steps=sample.steps if steps is None else steps,
            guidance=sample.guidance if guidance is None else guidance,
            solver=sample.solver if solver is None else solver,
            seed=seed,
        )
