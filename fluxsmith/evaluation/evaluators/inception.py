"""The standard FID, where its network's weights are at hand."""

from typing import ClassVar

import torch

from fluxsmith.data.images import convert_channels
from fluxsmith.errors import UserError
from fluxsmith.evaluation.evaluator import Evaluator, Figure, Found, Score
from fluxsmith.evaluation.samples import Samples

BATCH = 100


class Inception(Evaluator):
    scores: ClassVar = {"inception_fid": Score(("fid",), "lower")}

    @torch.no_grad()
    def measure(self, samples: Samples) -> Found:
        """FID in the 2,048 features of Inception-v3 as `torchmetrics` computes it (Heusel et al.
        2017), against the training images."""
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance

            metric = FrechetInceptionDistance(feature=2048)
        except ImportError:
            raise UserError(
                "--metrics inception: needs `pip install 'fluxsmith[inception]'`"
            ) from None
        except OSError as error:  # the weights are fetched on first use
            raise UserError(
                f"--metrics inception: can't load Inception's weights ({error}); fetch them once "
                "on a machine with a network, into $TORCH_HOME/hub/checkpoints"
            ) from None
        for part in samples.reference.train.images.split(BATCH):
            metric.update(convert_channels(part, 3), real=True)
        for part in samples.pictures.split(BATCH):
            metric.update(convert_channels(part, 3), real=False)
        return {"fid": float(metric.compute()), "samples": len(samples)}

    def figures(self, found: Found) -> list[Figure]:
        meaning = (
            "The standard Fréchet distance, in the features of Inception-v3, from the training "
            "images; lower is better. It says little about images as small and grey as digits."
        )
        return [Figure("Inception FID", found["fid"], meaning)]
