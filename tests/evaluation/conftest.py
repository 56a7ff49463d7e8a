"""A judge of the embedded digits, trained once for all tests."""

import os

import pytest
from evaluation_models import DIGITS

from fluxsmith.config.reading import build_config
from fluxsmith.evaluation.reference import Reference


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    before = os.environ.get("FLUXSMITH_CACHE")
    os.environ["FLUXSMITH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    made = Reference(build_config(DIGITS, "test"))
    assert made.judge.test_accuracy > 0.9
    yield made
    del os.environ["FLUXSMITH_CACHE"]
    if before is not None:
        os.environ["FLUXSMITH_CACHE"] = before
