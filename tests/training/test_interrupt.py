"""A signal stops all ranks at the same step."""

import os
import signal

from fluxsmith.training.interrupt import watch


def test_a_signal_after_the_ranks_agreed_waits_for_their_next_agreement():
    with watch(speaks=False) as interrupt:
        agreed = interrupt.number
        os.kill(os.getpid(), signal.SIGTERM)
        assert not interrupt.heard(agreed)
        assert interrupt.heard(interrupt.number)
        assert interrupt.exit_code == 143
