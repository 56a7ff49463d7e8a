"""Drawing and measuring on several ranks: the files and figures of one."""

import json
import os

import pytest
from parallel.launching import Ranks, write_config
from parallel.test_same_run import beside_checkpoints
from reliability.comparing import left_behind

from fluxsmith.parallel.ranks import LaunchedRanks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of two steps in it."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder, train={"steps": 2, "sample_every": 0}, evaluate={"every": 0})
    assert Ranks(folder, 1, "train", "toy.yaml").wait() == [0]
    return folder


def note_what_is_done(folder):
    """Has each rank write down the items that are worked on there."""
    plain = LaunchedRanks.shared

    def noted(self, items, work, *together):
        def done(item):
            with open(folder / f"done-{self.rank}.txt", "a") as file:
                print(item, file=file)
            return work(item)

        return plain(self, items, done, *together)

    LaunchedRanks.shared = noted


def test_ranks_share_the_pictures_and_leave_the_files_of_one(trained):
    found = {}
    for size in (1, 3):  # five pictures in batches of two: the last rank has one
        ranks = Ranks(
            trained, size, "sample", "run", "--num-samples", 5, "--batch-size", 2, "--gif",
            "--filmstrip", "--out", trained / f"on-{size}",
            each=lambda rank: note_what_is_done(trained),
        )  # fmt: skip
        assert ranks.wait() == [0] * size, ranks.told()
        out = trained / f"on-{size}"
        found[size] = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert len(found[1]) == 2 + 5 + 2
    assert found[3] == found[1]
    done = [(trained / f"done-{rank}.txt").read_text().split() for rank in range(3)]
    assert done == [["0"], ["2"], ["4"]]
    assert not any(log for log in ranks.logs[1:])


@pytest.mark.parametrize(
    "metrics",
    [
        "validation_loss,conditioning_gap,straightness,memorisation",
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_ranks_share_the_measuring_and_find_the_figures_of_one(trained, metrics):
    found = []
    for size in (1, 2):
        report = () if metrics != "all" else ("--report", trained / f"report-{size}")
        ranks = Ranks(
            trained, size, "evaluate", "run", "--num-samples", 250, "--metrics", metrics,
            "--steps", 2, "--json", trained / f"{size}.json", *report,
        )  # fmt: skip
        assert ranks.wait(600) == [0] * size, ranks.told()
        found.append(json.loads((trained / f"{size}.json").read_text())["results"])
    for row in (row for each in found for row in each.get("sweep", {"rows": []})["rows"]):
        del row["seconds"]
    assert found[0] == found[1]
    assert len(found[0]) >= 4
    assert not ranks.logs[1]


def test_ranks_that_draw_different_things_are_refused(trained):
    ranks = Ranks(
        trained, 2, "sample", "run", "--prompt", "3", "--steps", "2",
        each=lambda rank: os.environ.update(FLUXSMITH_TEST_RANK=str(rank)) or differ(rank),
    )  # fmt: skip
    assert ranks.wait() == [2, 2], ranks.told()
    (line,) = [x for log in ranks.logs for x in log.splitlines() if x.startswith("error:")]
    assert "steps: 2 on rank 0 and 3 on rank 1" in line


def differ(rank):
    """Has the second rank take one step more."""
    from fluxsmith.sampling.generate import Sampler

    plain = Sampler.plan
    Sampler.plan = lambda self, prompts, steps, **more: plain(
        self, prompts, steps=steps + rank, **more
    )


def test_what_fails_on_one_rank_is_told_by_one(trained):
    def fails(rank):
        from fluxsmith.errors import UserError
        from fluxsmith.sampling.generate import Sampler

        def solve(*_):
            raise UserError("no more memory here")

        if rank:
            Sampler._solve = solve

    ranks = Ranks(trained, 2, "sample", "run", "--num-samples", 4, "--batch-size", 2, each=fails)
    assert ranks.wait() == [2, 2], ranks.told()
    lines = [x for log in ranks.logs for x in log.splitlines() if x.startswith("error:")]
    assert lines == ["error: no more memory here"]


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2])
def test_a_run_shares_its_scores_and_grids(tmp_path, shard):
    """To the bit, though one of the batches is short; with shares of the network in each rank,
    losses of batches of one length are shared."""
    scores = {"evaluate": {"every": 2, "metrics": ["validation_loss", "straightness"],
                           "validation_images": 350, "num_samples": 7}}  # fmt: skip
    found = []
    for size in (1, 2):
        train = {"steps": 2, "sample_every": 1, "deterministic": True}
        parallel = {"pieces": 2, "shard": min(size, shard)}
        write_config(tmp_path / str(size), train=train, parallel=parallel, **scores)
        ranks = Ranks(
            tmp_path / str(size), size, "train", "toy.yaml",
            each=lambda rank, size=size: note_what_is_done(tmp_path / str(size)),
        )  # fmt: skip
        assert ranks.wait() == [0] * size, ranks.told()
        found.append(left_behind(tmp_path / str(size) / "run"))
        if shard > 1:  # which is a setting that differs
            found[-1] = beside_checkpoints(found[-1])
    assert found[0] == found[1]
    assert "straightness/ema" in json.dumps(found[0]["metrics"])
    done = [(tmp_path / "2" / f"done-{rank}.txt").read_text() for rank in range(2)]
    assert ["range(0, 100)" in each for each in done] == [True, False]
    assert ["range(100, 200)" in each for each in done] == [False, True]
