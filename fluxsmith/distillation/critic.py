"""The critic of a student: a second network, which learns what the student draws."""

from torch import Tensor, nn

from fluxsmith.config import RunConfig
from fluxsmith.device import shapes_only
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.kernels.accelerate import accelerate
from fluxsmith.kernels.activations import checkpoint_activations
from fluxsmith.model.flux import Flux
from fluxsmith.pipeline import Pipeline
from fluxsmith.text.encoder import TextEmbedding


class Critic:
    """It begins as the teacher's network, given `scale` where the scale is an input: whole, in
    float32, or where the student has an adapter with one like it on the teacher's weights. Its text
    is the teacher's."""

    def __init__(self, teacher: Teacher, config: RunConfig, scale: float) -> None:
        theirs, adapter = teacher.pipeline, config.train.adapter.choice
        with shapes_only():
            network = Flux(theirs.network.params)
        weights = theirs.network.state_dict()
        if adapter is None:
            weights = {name: w.float().clone() for name, w in weights.items()}
        network.load_state_dict(weights, assign=True)
        if adapter is not None:
            adapter.attach(network, config.seed)
            network.to(theirs.device)
        accelerate(network, config.train.kernels)
        checkpoint_activations(network.blocks, config.parallel.checkpoint_activations)
        # The settings are its teacher's: they say what the network's numbers mean.
        self.pipeline = Pipeline(theirs.config, network, theirs.text, theirs.autoencoder).eval()
        self._scale = scale if network.params.guidance_embed else 1.0
        self._precision = config.train.precision

    def velocity(self, x: Tensor, t: Tensor, cond: TextEmbedding) -> Tensor:
        """Of x (b, c, h, w) at times t (b,)."""
        return self.pipeline.velocity(x, t, cond, self._scale, self._precision)

    @property
    def trained(self) -> nn.ParameterList:
        """What it learns, without what is frozen beneath an adapter."""
        return nn.ParameterList(p for p in self.pipeline.network.parameters() if p.requires_grad)
