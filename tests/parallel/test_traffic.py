"""What ranks send each other in a step is what the planner says: counted in runs on gloo."""

import os

import pytest
import torch
import torch.distributed as dist
from parallel.launching import Ranks, write_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fluxsmith.config import read_config
from fluxsmith.planning.forecast import Planner
from fluxsmith.planning.machine import Machine
from fluxsmith.planning.outline import Outline

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Of n bytes, the larger of what goes in and comes out, among r ranks: each sends so many times
# (r - 1)/r n.
SENT = {"_allgather_base_": 1, "_reduce_scatter_base_": 1, "alltoall_base_": 1, "allreduce_": 2}
SMALL = 4096  # bytes; less is what the hosts tell each other


class Counting(TorchDispatchMode):
    """Writes down the bytes that this process sends in each collective."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if func.namespace == "c10d" and name in SENT:
            given = tree_leaves((args, kwargs))
            size = max(x.nbytes for x in given if isinstance(x, torch.Tensor))
            (group,) = (x for x in given if type(x) is torch.ScriptObject and "Group" in str(x))
            n = dist.ProcessGroup.unbox(group).size()
            if size >= SMALL:
                with self.file.open("a") as file:
                    print(SENT[name] * (n - 1) / n * size, file=file)
        return func(*args, **(kwargs or {}))


def sent(folder, ranks, steps, **sections):
    """The bytes that rank 0 sends in a run of so many steps."""
    quiet = {"deterministic": False, "sample_every": 0, "checkpoint_every": 0, "log_every": 100}
    train = sections["train"] | quiet | {"steps": steps}
    write_config(folder, **sections | {"train": train, "evaluate": {"every": 0}})
    file = folder / "sent"
    started = Ranks(
        folder, ranks, "train", "toy.yaml",
        each=lambda rank: rank == 0 and Counting(file).__enter__(),
    )  # fmt: skip
    assert started.wait() == [0] * ranks, started.logs
    return sum(map(float, file.read_text().split()))


@pytest.mark.parametrize(
    ("ranks", "shard", "accumulate"),
    [
        (2, 1, 1),
        pytest.param(2, 2, 1, marks=pytest.mark.slow),
        pytest.param(2, 2, 4, marks=pytest.mark.slow),
        pytest.param(4, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_step_sends_what_the_planner_says(tmp_path, monkeypatch, ranks, shard, accumulate):
    sections = {
        "parallel": {"shard": shard, "pieces": ranks}, "train": {"accumulate": accumulate},
    }  # fmt: skip
    one, three = (sent(tmp_path / str(n), ranks, n, **sections) for n in (1, 3))
    monkeypatch.chdir(tmp_path / "1")
    machine = Machine("these", ranks, 2**30, gpu=False, here=False)
    planner = Planner(Outline.of(read_config("toy.yaml", [])), machine)
    assert (three - one) / 2 == pytest.approx(sum(planner.traffic().values()))
