"""A reader who follows a training step or a drawing opens few files."""

import runpy
from pathlib import Path

import torch

from fluxsmith.config import read_config
from fluxsmith.flow.path import interpolate
from fluxsmith.text.byte_encoder import ByteEncoder

COUNTING = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "files_entered.py"))


def test_a_training_step_enters_at_most_20_files_and_a_drawing_14():
    def entered(*overrides):
        config = read_config(COUNTING["CONFIG"], [*COUNTING["PLAIN"], *overrides])
        return (files for files, _ in COUNTING["counted"](config).values())

    step, drawing = entered("flow.prediction=velocity")
    assert {"training/step.py", "flow/path.py", "model/attention.py"} <= step
    assert {"sampling/generate.py", "flow/solvers.py", "model/attention.py"} <= drawing
    assert len(step) <= 20, sorted(step)
    assert len(drawing) <= 14, sorted(drawing)
    # One that predicts the data needs the equation that makes a velocity of it.
    assert list(entered()) == [step, drawing | {"flow/path.py"}]


def test_a_pass_is_a_call_from_one_file_to_another():
    x = torch.zeros(2, 1, 2, 2)
    assert COUNTING["entered"](lambda: interpolate(x, x, torch.zeros(2)))[0] == {"flow/path.py"}
    encoder = ByteEncoder(width=8, hidden_size=64, depth=0, max_tokens=8)
    files, passes = COUNTING["entered"](lambda: encoder(["three"]))
    assert {"text/byte_encoder.py", "text/encoder.py"} <= files
    assert passes["text/byte_encoder.py", "text/encoder.py"] >= 1
    assert not passes["text/byte_encoder.py", "text/byte_encoder.py"]
