"""What runs leave behind, so that two can be compared."""

from pathlib import Path

from helpers import without_times

from fluxsmith.training.recorder import read_metrics

KEEP = ("train.checkpoint_every=2", "train.keep_checkpoints=0")  # every checkpoint there was
COURSE = ("model", "ema", "optimizer", "window", "data")  # all in a checkpoint that a step changes


def records(run: Path) -> list[dict[str, float]]:
    """The records of metrics.jsonl, without how fast the run was."""
    return [*map(without_times, read_metrics(run / "metrics.jsonl"))]


def steps_recorded(run: Path) -> list[int]:
    return [int(record["step"]) for record in read_metrics(run / "metrics.jsonl")]


def board(run: Path) -> list[tuple[int, str]]:
    """Every (step, tag) that TensorBoard's files hold, as they stand there."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return sorted(
        (event.step, value.tag)
        for file in (run / "tensorboard").iterdir()
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    )


def steps_on_board(run: Path, tag: str = "train/loss") -> list[int]:
    return [step for step, name in board(run) if name == tag]


def left_behind(run: Path) -> dict[str, object]:
    """What a run leaves, to the byte; its speed and the pixels of the curve's text left out."""
    files: dict[str, object] = {
        path.name: path.read_bytes()
        for path in run.iterdir()
        if path.suffix in (".pt", ".png", ".txt") and path.name != "loss.png"
    }
    return files | {"metrics": records(run), "TensorBoard": board(run)}
