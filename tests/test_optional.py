"""A library that is not installed is named with the extra that brings it."""

import math

import pytest

from fluxsmith.errors import UserError
from fluxsmith.optional import optional


def test_what_is_there_is_imported():
    assert optional("math", "hf", "counting") is math


def test_what_is_not_there_is_one_line_with_the_fix():
    with pytest.raises(UserError) as caught:
        optional("no_such_library.part", "hf", "a pretrained text encoder")
    expected = "a pretrained text encoder needs no_such_library: pip install 'fluxsmith[hf]'"
    assert str(caught.value) == expected
