"""The memory of some work, by torch's profiler."""

import gc

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def held_by(work) -> int:
    """The most bytes of tensors that some work holds at once, as torch's profiler counts them."""
    gc.collect()  # what is freed inside and was not made there would count against it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    events = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = largest = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        largest = max(largest, held)
    return largest
