"""A classifier of the embedded digits, trained once for all tests."""

import pytest
from evaluation_models import DIGITS

from fluxsmith.config.reading import build_config
from fluxsmith.evaluation import classifier
from fluxsmith.evaluation.samples import Reference


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "UPDATES", (150, 150))  # fewer than usual, and enough
        patch.setenv("FLUXSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = Reference(build_config(DIGITS, "test"))
        assert made.classifier.test_accuracy > 0.9
        yield made
