"""What students have in common that learn from their teacher's trajectories."""

from fluxsmith.config import RunConfig
from fluxsmith.data.loader import Loader
from fluxsmith.distillation.distillation import Distillation
from fluxsmith.distillation.trajectories import Recipe, TrajectoryLoader, TrajectoryStore
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.pipeline import Pipeline


class TrajectoryObjective(Distillation):
    """Distillation with a store of the teacher's trajectories."""

    def __init__(
        self, config: RunConfig, pipeline: Pipeline, recipe: Recipe, scale: float = 1.0
    ) -> None:
        super().__init__(config, pipeline, scale)
        if recipe.highest_scale != 1:
            self.teacher.require_null_prompt()
        settings = config.objective
        self.store = TrajectoryStore(
            self.teacher, recipe, settings.trajectories, config.seed, settings.cache
        )

    def make(self, ranks: Ranks) -> None:
        self.store.make(ranks)

    def loader(self) -> Loader:
        return TrajectoryLoader(self.store, self.config.train.batch_size, self.config.seed)
