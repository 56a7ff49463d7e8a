"""A student is the same on any number of ranks: the first makes the trajectories, if any."""

import os
import shutil

import pytest
from parallel.launching import Ranks, write_config
from parallel.same import assert_same_checkpoints, same_states
from reliability.comparing import left_behind

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.slow,
]


@pytest.mark.parametrize(
    "kind", ["trajectory_distillation", "distribution_matching", "guidance_distillation"]
)
def test_two_ranks_leave_the_student_of_one(tmp_path, kind):
    write_config(tmp_path / "teacher", train={"steps": 2, "sample_every": 0})
    made = Ranks(tmp_path / "teacher", 1, "train", "toy.yaml")
    assert made.wait() == [0], made.logs
    few = kind != "guidance_distillation"
    objective = {"kind": kind, "teacher": str(tmp_path / "teacher" / "run")}
    if kind != "distribution_matching":
        objective["trajectories"] = 64
    sample = {"guidance_method": "none", "guidance": 1} if few else {"guidance_method": "embedded"}
    for size, shard in (1, 1), (2, 1), (2, 2):
        shutil.rmtree(tmp_path / "teacher" / "run" / "trajectories", ignore_errors=True)
        folder = tmp_path / f"{size}-{shard}"
        more = {"steps": 2} if few else {}
        model = {} if few else {"guidance_embed": True}
        write_config(
            folder,
            objective=objective | more,
            sample=sample | more,
            model=model,
            evaluate={"every": 0},
            parallel={"shard": shard},
        )
        ranks = Ranks(folder, size, "train", "toy.yaml")
        assert ranks.wait(300) == [0] * size, ranks.told()
        left = left_behind(folder / "run")
        if size == 1:
            one, where = left, folder / "run"
        assert same_states(one, left)
        assert_same_checkpoints(where, folder / "run")
        assert shard > 1 or one == left
    assert "diffusion-6.pt" in one
