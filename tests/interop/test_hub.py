"""Uploading: what is said where it can't be done. (No test reaches a network.)"""

import sys

import pytest

from fluxsmith.errors import UserError
from fluxsmith.interop.hub import push


def test_a_hub_that_can_not_be_reached_is_one_line(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UserError, match=r"--push-to-hub me/model: .*the export is in") as raised:
        push(tmp_path, "me/model")
    assert "\n" not in str(raised.value)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'fluxsmith\[hf\]'"):
        push(tmp_path, "me/model")
