"""One drawing at a time: the others wait in the order in which they came, and hear their place."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fluxsmith.errors import UserError

LONGEST = 200  # of a line; who comes then is asked to try again

Event = dict[str, Any]
Emit = Callable[[Event], None]  # raises Stopped once nobody listens any more
Work = Callable[[Emit], None]

log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (it is no error)
    """Whoever asked for the work has left."""


class _Ticket:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()  # None is the end
        self.stop = threading.Event()

    def soon(self, call: Callable[..., object], *given: object) -> None:
        """Calls it in the thread of the loop. Once the loop is closed nobody listens."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *given)

    def emit(self, event: Event) -> None:
        if self.stop.is_set():
            raise Stopped
        self.soon(self.events.put_nowait, event)

    def end(self, problem: str) -> None:
        """Its events end with this, whatever is being done for it."""
        self.stop.set()
        for event in ({"error": problem}, None):
            self.soon(self.events.put_nowait, event)

    def run(self) -> None:
        try:
            self.work(self.emit)
        except Stopped:
            pass
        except UserError as error:
            self._last({"error": str(error)})
        except Exception:  # a mistake of ours must not end the server
            log.exception("a drawing failed")
            self._last({"error": "something went wrong here; the terminal of the server says what"})

    def _last(self, event: Event) -> None:
        self.soon(self.events.put_nowait, event)


class Line:
    """Does work in one thread, whose own line this is: torch computes with all cores anyway."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self.tickets: list[_Ticket] = []

    def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """What the work emits, and before it how many are ahead: {"place": n}. Closing this
        iterator stops the work, or leaves the line. Raises a UserError where the line is too long.
        """
        if len(self.tickets) >= LONGEST:
            raise UserError("too many are waiting already; try again in a moment")
        return self._events(_Ticket(work))

    async def _events(self, ticket: _Ticket) -> AsyncGenerator[Event, None]:
        self.tickets.append(ticket)
        ticket.events.put_nowait({"place": len(self.tickets) - 1})
        future = self._thread.submit(ticket.run)
        future.add_done_callback(lambda _: ticket.soon(self._left, ticket))
        try:
            while (event := await ticket.events.get()) is not None:
                yield event
        finally:
            ticket.stop.set()
            future.cancel()

    def close(self) -> None:
        """No work begins any more, what is going on stops at its next step, and who waits is told
        now."""
        for ticket in self.tickets:
            ticket.end("the server was stopped; start it again")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _left(self, ticket: _Ticket) -> None:
        self.tickets.remove(ticket)
        ticket.events.put_nowait(None)
        for place, other in enumerate(self.tickets):
            other.events.put_nowait({"place": place})
