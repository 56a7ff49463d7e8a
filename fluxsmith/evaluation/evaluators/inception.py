"""The standard FID, where its network's weights are at hand."""

from typing import Any

import torch

from fluxsmith.data.images import convert_channels
from fluxsmith.errors import UserError
from fluxsmith.evaluation.reference import Reference
from fluxsmith.evaluation.samples import Samples
from fluxsmith.pipeline import Pipeline

BATCH = 100


def inception(pipeline: Pipeline, reference: Reference, samples: Samples) -> dict[str, Any]:
    """FID in the 2,048 features of Inception-v3 as `torchmetrics` computes it (Heusel et al. 2017),
    against the training images. It says little about images as small and grey as digits."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=2048)
    except ImportError:
        raise UserError(
            "--metrics inception: needs torchmetrics and torch-fidelity; install them with "
            "`pip install 'fluxsmith[inception]'`"
        ) from None
    except OSError as error:  # the weights are fetched on first use
        raise UserError(
            f"--metrics inception: can't load Inception's weights ({error}); fetch them once on a "
            f"machine with a network (torch-fidelity keeps them under $TORCH_HOME/hub/checkpoints)"
        ) from None
    with torch.no_grad():
        train = reference.train.images
        for start in range(0, len(train), BATCH):
            metric.update(convert_channels(train[start : start + BATCH], 3), real=True)
        for start in range(0, len(samples), BATCH):
            part = samples.pictures(slice(start, start + BATCH))
            metric.update(convert_channels(part, 3), real=False)
        return {"fid": float(metric.compute()), "samples": len(samples)}
