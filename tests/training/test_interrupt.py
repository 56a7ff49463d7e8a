"""A signal stops all ranks at the same step."""

import os
import signal

import pytest

from fluxsmith.training.interrupt import watch


def test_a_signal_after_the_ranks_agreed_waits_for_their_next_agreement():
    with watch(speaks=False) as interrupt:
        agreed = interrupt.number
        os.kill(os.getpid(), signal.SIGTERM)
        assert not interrupt.heard(agreed)
        assert interrupt.heard(interrupt.number)
        assert interrupt.exit_code == 143


def test_a_signal_that_comes_again_at_once_is_its_own_echo():
    """As where a launcher sends on what each rank got by itself."""
    with watch(speaks=False, echo=1000) as interrupt:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.exit_code == 143
    with pytest.raises(SystemExit), watch(speaks=False):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
