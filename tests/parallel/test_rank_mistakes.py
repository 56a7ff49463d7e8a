"""What ranks can't do together is said in one line, by one of them, with exit code 2."""

import os
import socket

import pytest
from made_pictures import as_folder, items
from parallel.launching import Ranks, write_config

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def said(ranks, code=2):
    """The one line that all ranks together print as an error."""
    assert ranks.wait(60) == [code] * len(ranks.lives), ranks.told()
    (line,) = [line for log in ranks.logs for line in log.splitlines() if line.startswith("error:")]
    assert "Traceback" not in "".join(ranks.logs)
    return line


@pytest.mark.parametrize(
    ("size", "command", "message"),
    [
        (2, "train toy.yaml train.batch_size=6", "train.batch_size=6: not divisible into 4 parts"),
        (2, "train toy.yaml parallel.shard=4", "parallel.shard=4: must divide the number of ranks"),
        (2, "train toy.yaml parallel.pieces=1", "parallel.pieces=1: less than the 2 ranks"),
        (2, "train toy.yaml parallel.pieces=3", "must be a power of two; use 2 or 4"),
        (2, "train toy.yaml --fork nowhere.pt", "no checkpoint at nowhere.pt"),
        (2, "train nowhere.yaml", "no config at nowhere.yaml"),
        (2, "train toy.yaml --nonsense", "No such option"),
        (2, "sample nowhere --prompt 3", "no checkpoint at nowhere"),
        (2, "distill nowhere --steps 4", "no checkpoint at nowhere"),
        (2, "evaluate nowhere", "no checkpoint at nowhere"),
        (2, "bench toy.yaml", "bench: runs in one process; start it without torchrun"),
        (3, "train toy.yaml", "3 ranks: must be a power of two"),
    ],
)
def test_a_mistake_is_told_once(tmp_path, size, command, message):
    write_config(tmp_path)
    assert message in said(Ranks(tmp_path, size, *command.split()))
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_images(tmp_path):
    write_config(tmp_path)
    as_folder(tmp_path / "data", items(1, size=8))
    source = "data={source: folder, image_size: 8, path: data, test_share: 0}"
    line = said(Ranks(tmp_path, 2, "train", "toy.yaml", source))
    assert "2 ranks for 1 images" in line


def test_ranks_that_disagree_are_refused_before_the_first_step(tmp_path):
    for rank in range(2):
        write_config(tmp_path / str(rank), train={"learning_rate": 0.01 * (rank + 1)})
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=lambda rank: os.chdir(str(rank)))
    line = said(ranks)
    assert "train.learning_rate: 0.01 on rank 0 and 0.02 on rank 1" in line
    assert not list(tmp_path.glob("*/run"))


def test_a_rank_that_alone_has_no_config_names_itself(tmp_path):
    write_config(tmp_path / "0")
    (tmp_path / "1").mkdir()
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=lambda rank: os.chdir(str(rank)))
    assert "rank 1: no config at toy.yaml" in said(ranks)


def test_no_place_to_meet(tmp_path):
    write_config(tmp_path)
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=lambda rank: os.environ.pop("MASTER_ADDR"))
    assert "MASTER_ADDR is not set" in said(ranks)


def test_a_port_that_is_in_use(tmp_path, monkeypatch):
    write_config(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        first = Ranks(
            tmp_path, 1, "train", "toy.yaml",
            each=lambda rank: os.environ.update(MASTER_PORT=port, WORLD_SIZE="2"),
        )  # fmt: skip
        assert "the port is in use" in said(first)


def test_a_time_to_wait_that_is_no_number(tmp_path):
    write_config(tmp_path)
    patience = {"FLUXSMITH_STUCK_SECONDS": "an hour"}
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=lambda rank: os.environ.update(patience))
    assert "FLUXSMITH_STUCK_SECONDS=an hour: must be a whole number" in said(ranks)


def test_weights_of_one_name_that_differ(tmp_path):
    for rank in range(2):
        write_config(tmp_path / str(rank), train={"steps": 1 + rank, "sample_every": 0})
        assert Ranks(tmp_path / str(rank), 1, "train", "toy.yaml").wait() == [0]
        (tmp_path / str(rank) / "run").rename(tmp_path / str(rank) / "base")
        (path,) = (tmp_path / str(rank) / "base").glob("*.pt")
        path.rename(path.with_name("base.pt"))
        write_config(tmp_path / str(rank), train={"init_from": "base/base.pt"})
    ranks = Ranks(tmp_path, 2, "train", "toy.yaml", each=lambda rank: os.chdir(str(rank)))
    assert "contents of train.init_from" in said(ranks)


def test_pictures_that_can_t_be_used_are_counted_over_all_ranks(tmp_path):
    """Four of 40 are more than 0.06 of them; two, as each rank meets, are not."""
    made = items(40, size=8)
    for i in (3, 12, 21, 30):
        made[i] = (made[i][0][:40], made[i][1])
    as_folder(tmp_path / "data", made)
    data = {"source": "folder", "image_size": 8, "path": "data", "test_share": 0, "max_bad": 0.06}
    write_config(tmp_path, data=data | {"in_memory": False}, train={"steps": 40})
    line = said(Ranks(tmp_path, 2, "train", "toy.yaml"))
    assert "of 40 images can't be used, more than data.max_bad=0.06 allows" in line
