"""What a CUDA GPU makes of the network, in as many minutes as there are.

    PYTHONPATH=. python benchmarks/gpu.py --out results --minutes 8
    PYTHONPATH=. python benchmarks/gpu.py --out try --minutes 1 --device cpu    # at toy sizes

What matters most comes first, and what does not fit into the time is left out. Each part prints
its rows as they are found and writes them to OUT/gpu.json; one that fails is reported, and the next
goes on. `--part` chooses parts.

- `check`: CPU and GPU give the same velocities and gradients; with `train.deterministic` a resumed
  run is the run, to the bit; steps as CUDA graphs learn what plain steps learn.
- `steps`: training steps of `configs/image/mnist/flux.yaml`: plain, compiled (`train.compile`), as
  CUDA graphs (`train.cuda_graphs`), and both, in turns of twenty, so that the host may run ahead.
- `wide`: a training step at FLUX.1's width, 2 dual and 4 single blocks, 4096 image and 512 text
  tokens, compiled: ours beside diffusers' network, and the measured bfloat16 matrix-product peak.
- `picture`: 20 Euler steps for one 32x32 picture: plain, as CUDA graphs, and compiled too.
- `lesson`: as many of the lesson's 30,000 steps as there is time for.
"""

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA first multiplies

from fluxsmith import Pipeline
from fluxsmith.cli.benchmark.sides import Ours
from fluxsmith.cli.benchmark.theirs import transformer
from fluxsmith.config import read_config
from fluxsmith.data import load
from fluxsmith.device import peak_memory
from fluxsmith.errors import UserError
from fluxsmith.kernels.compiling import compile_blocks, prepare_compiling
from fluxsmith.kernels.timing import (
    device_name,
    matrix_products,
    product_flops,
    spread,
    take_turns,
)
from fluxsmith.model.flops import training_flops
from fluxsmith.model.flux import PRESETS, Flux, FluxParams
from fluxsmith.model.tokens import image_ids, text_ids
from fluxsmith.sampling.generate import Sampler
from fluxsmith.training.deterministic import deterministic
from fluxsmith.training.recorder import read_metrics
from fluxsmith.training.run import build_trainer
from fluxsmith.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs/image/mnist/flux.yaml"
WIDE = replace(PRESETS["flux1-schnell"], depth=2, depth_single_blocks=4)
TOY_WIDE = replace(WIDE, hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), context_in_dim=64)
TOY = ("model.hidden_size=48", "model.num_heads=1", "model.axes_dim=[16, 16, 16]", "model.depth=1",
       "model.depth_single_blocks=1", "data.source=digits", "train.batch_size=4")  # fmt: skip
AT_ONCE = 20  # training steps between two looks at the clock
LEAST = 20  # seconds that must be left for something to begin: building it and compiling take long
CLOSING = 15  # seconds that a run takes to end and to write its checkpoint
SHARE = {
    "check": 0.25,
    "steps": 0.35,
    "wide": 0.4,
    "picture": 0.3,
    "lesson": 1.0,
}  # of what is left


class Report:
    """The rows so far, the time that is left, and the device."""

    def __init__(self, out: Path, minutes: float, device: torch.device) -> None:
        self.out, self.device = out, device
        self.toy = device.type == "cpu"
        self.data = [] if self.toy else data_at_hand()
        self.deadline = time.monotonic() + 60 * minutes
        self.part, self.part_ends = "", 0.0
        self.failed: list[str] = []
        self.found: dict[str, Any] = {
            "device": device_name(device),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "minutes": minutes,
            "parts": {},
        }
        out.mkdir(parents=True, exist_ok=True)

    def begin(self, part: str) -> None:
        left = self.deadline - time.monotonic()
        self.part, self.part_ends = part, time.monotonic() + SHARE[part] * left
        print(f"\n{part}: {SHARE[part] * left:.0f} of {left:.0f} s", flush=True)

    def left(self) -> float:
        """Seconds of this part."""
        return self.part_ends - time.monotonic()

    def fits(self, what: str) -> bool:
        """Whether there is time to begin something; says where not."""
        if fits := self.left() > (1 if self.toy else LEAST):
            return fits
        self.add(what=what, left_out="no time")
        return False

    def add(self, **row: Any) -> None:
        """Prints a row and writes the file anew."""
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("  " + "  ".join(f"{k} {v}" for k, v in zip(row, shown, strict=True)), flush=True)
        self.found["parts"].setdefault(self.part, []).append(row)
        text = json.dumps(self.found | {"failed": self.failed}, indent=2)
        (self.out / "gpu.json").write_text(text + "\n")

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What goes wrong inside is printed and kept, and ends nothing."""
        try:
            yield
        except Exception as error:  # a compiler's, a library's that is missing, no memory
            traceback.print_exc()
            self.failed.append(what)
            self.add(what=what, failed=" ".join(str(error).split())[:200])
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def overrides(self, *more: str) -> list[str]:
        """Of the lesson's config: on the device, and at toy sizes on a CPU."""
        return [f"device={self.device}", *(TOY if self.toy else self.data), *more]


def check(report: Report) -> None:
    """In a process of its own: cuBLAS reads the setting for determinism once in a process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for one in (agreement, resumed, graphs):
            if report.fits(one.__name__):
                with report.attempt(one.__name__):
                    report.add(**pool.apply(one, (report.overrides(), str(report.device))))


def agreement(overrides: list[str], device: str) -> dict[str, Any]:
    """The same losses and gradients in float32 on the CPU and on the device."""
    found = []
    for on in ("cpu", device):
        trainer = random_trainer([*overrides, "train.precision=float32"], on)
        objective = trainer.objective
        batch = trainer.loader.batch(0).split(trainer.config.train.batch_size // 4)[0]
        example: Any = objective.draw(batch, torch.Generator().manual_seed(0))
        example = replace(example, t=example.t.to(on), eps=example.eps.to(on))
        losses = objective.losses(objective.prepare(example)).total
        losses.mean().backward()
        gradients = [p.grad.flatten().cpu() for p in trainer.pipeline.parameters()]
        found.append((losses.detach().cpu(), torch.cat(gradients)))
    (loss, gradient), (other_loss, other_gradient) = found
    off = ((loss - other_loss).norm() / loss.norm()).item()
    turned = ((gradient - other_gradient).norm() / gradient.norm()).item()
    row = {"what": f"float32, cpu beside {device}", "losses differ by": off}
    return row | {"gradients differ by": turned, "ok": off < 1e-4 and turned < 1e-3}


def resumed(overrides: list[str], device: str) -> dict[str, Any]:
    """A run, and one that takes over its state in the middle."""
    with deterministic(True):
        whole = random_trainer(overrides, device)
        again = random_trainer(overrides, device)
        for _ in range(2):
            whole.train_step()
        state = {k: cloned(v) for k, v in whole.state_dict().items()}
        again.load_state_dict(state, "the run")
        for trainer in (whole, again):
            for _ in range(2):
                trainer.train_step()
        pairs = zip(whole.pipeline.parameters(), again.pipeline.parameters(), strict=True)
        equal = all(torch.equal(a, b) for a, b in pairs)
    return {"what": "resumed with train.deterministic", "equal to the bit": equal, "ok": equal}


def graphs(overrides: list[str], device: str) -> dict[str, Any]:
    """The losses of steps as CUDA graphs beside those of plain steps."""
    row: dict[str, Any] = {"what": "CUDA graphs beside plain steps"}
    if torch.device(device).type != "cuda":
        return row | {"left_out": "needs CUDA"}
    learned = []
    with deterministic(True):
        for setting in ("false", "true"):
            trainer = random_trainer([*overrides, f"train.cuda_graphs={setting}"], device)
            for _ in range(8):
                trainer.train_step()
            learned.append(torch.cat([p.detach().flatten() for p in trainer.ema.weights.values()]))
    off = ((learned[0] - learned[1]).norm() / learned[0].norm()).item()
    return row | {"averages differ by": off, "ok": off < 1e-3}


def random_trainer(overrides: list[str], device: str) -> Trainer:
    """With random weights: a new network predicts 0 and would agree with anything."""
    trainer = build_trainer(read_config(CONFIG, overrides), torch.device(device))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.pipeline.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw).to(device))
    return trainer


def cloned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: cloned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [cloned(part) for part in value]
    return value.clone() if isinstance(value, Tensor) else value


def steps(report: Report) -> None:
    ways = {"plain": (False, False), "compiled": (True, False)}
    if report.device.type == "cuda":
        ways |= {"CUDA graphs": (False, True), "compiled, CUDA graphs": (True, True)}
    calls: dict[str, Callable[[], object]] = {}
    for precision in ("bfloat16", "float32"):
        for way, (compiles, captures) in ways.items():
            name = f"{precision}, {way}"
            if not report.fits(name):
                continue
            with report.attempt(name):
                settings = (f"train.precision={precision}", f"train.compile={compiles}".lower())
                settings += (f"train.cuda_graphs={captures}".lower(),)
                config = read_config(CONFIG, report.overrides(*settings))
                ours = Ours(config, report.device)
                many(ours.train_step)()  # compiled and captured here
                calls[name] = many(ours.train_step)
    config = read_config(CONFIG, report.overrides())
    batch, rounds = config.train.batch_size, 1 if report.toy else 5
    for name, seconds in take_turns(calls, report.device, rounds).items():
        ms = spread([1e3 * value / AT_ONCE for value in seconds])
        quartiles = {"ms": ms["median"], "low": ms["low"], "high": ms["high"]}
        report.add(what=name, **quartiles, images_per_second=1e3 * batch / ms["median"])


def many(step: Callable[[], object]) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(AT_ONCE):
            step()

    return steps


def wide(report: Report) -> None:
    params = TOY_WIDE if report.toy else WIDE
    rows, txt, batch = (4, 8, 2) if report.toy else (64, 512, 8)
    given = batch_of(params, batch, rows, txt, report.device)
    product = matrix_products(report.device, torch.float32 if report.toy else torch.bfloat16)
    calls: dict[str, Callable[[], object]] = {"the product": product["torch"]}
    compiles = not report.toy and not prepare_compiling(report.device)
    for name, network, call in (
        ("ours", Flux, lambda model: model(**given)),
        ("diffusers", transformer, lambda model: call_diffusers(model, given)),
    ):
        if not report.fits(name):
            continue
        with report.attempt(name):
            with report.device:
                model = network(params).train()
            if compiles and isinstance(model, Flux):
                compile_blocks(model)
            elif compiles:
                model.compile_repeated_blocks(fullgraph=True)
            step = training_step(model, call, given["img"], report.device)
            step()
            calls[name] = step
    taken = take_turns(calls, report.device, 2 if report.toy else 7)
    peak = product_flops(report.device) / statistics.median(taken.pop("the product"))
    report.add(what="matrix products", TFLOPs=peak / 1e12)
    operations = batch * training_flops(params, txt, rows * rows)
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        report.add(what=name, seconds=median, share_of_the_peak=operations / peak / median)
    report.add(what="both", peak_GiB=(peak_memory(report.device) or 0) / 2**30)


def batch_of(
    params: FluxParams, batch: int, side: int, txt: int, device: torch.device
) -> dict[str, Tensor]:
    return {
        "img": torch.randn(batch, side * side, params.in_channels, device=device),
        "img_ids": image_ids(side, side, device),
        "txt": torch.randn(batch, txt, params.context_in_dim, device=device),
        "txt_ids": text_ids(txt, device),
        "timesteps": torch.rand(batch, device=device),
        "y": torch.randn(batch, params.vec_in_dim, device=device),
    }


def call_diffusers(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    return model(
        hidden_states=given["img"],
        encoder_hidden_states=given["txt"],
        pooled_projections=given["y"],
        timestep=given["timesteps"],
        img_ids=given["img_ids"],
        txt_ids=given["txt_ids"],
        return_dict=False,
    )[0]


def training_step(
    model: nn.Module, call: Callable[[nn.Module], Tensor], like: Tensor, device: torch.device
) -> Callable[[], None]:
    """Forward and backward under bfloat16 autocast, clip, fused AdamW, average."""
    weights = list(model.parameters())
    optimiser = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    average = [weight.detach().clone() for weight in weights]
    target = torch.randn_like(like)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.mse_loss(call(model).float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1e-3)

    return step


def picture(report: Report) -> None:
    precision = "float32" if report.toy else "bfloat16"
    config = read_config(CONFIG, report.overrides(f"sample.precision={precision}"))
    pipeline = Pipeline.build(config, report.device).eval()
    on_cuda = report.device.type == "cuda"
    ways: dict[str, dict[str, bool]] = {"plain": {}}
    if on_cuda:
        ways |= {
            "CUDA graphs": {"cuda_graphs": True},
            "compiled, CUDA graphs": {"cuda_graphs": True, "compile": True},
        }
    for guidance in (1.0, 2.0):
        for name, options in ways.items():
            what = f"one picture, guidance {guidance:g}, {name}"
            if report.fits(what):
                with report.attempt(what):
                    sampler = Sampler(pipeline, **options)
                    draw = drawing(sampler, guidance)
                    draw()
                    (seconds,) = take_turns({what: draw}, report.device, 5).values()
                    report.add(what=what, ms=1e3 * statistics.median(seconds))


def drawing(sampler: Sampler, guidance: float) -> Callable[[], Tensor]:
    return lambda: sampler.generate(["three"], steps=20, guidance=guidance, solver="euler")


def lesson(report: Report) -> None:
    if not report.fits("a run"):
        return
    run = report.out / "lesson"
    settings = [
        *report.overrides(f"output_dir={run}", "evaluate.every=0", "train.sample_every=0"),
        "train.checkpoint_every=0", f"train.compile={not report.toy}".lower(),
        f"train.cuda_graphs={report.device.type == 'cuda'}".lower(),
    ]  # fmt: skip
    command = [sys.executable, "-m", "fluxsmith", "train", str(CONFIG), *settings, "--overwrite"]
    began, out_of_time = time.perf_counter(), False
    with open(report.out / "lesson.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            process.wait(max(1.0, report.left() - CLOSING))
        except subprocess.TimeoutExpired:
            out_of_time = True
            process.send_signal(signal.SIGINT)  # it finishes the step and writes a checkpoint
            process.wait()
    records = read_metrics(run / "metrics.jsonl")
    if not records and out_of_time:
        report.add(what="the lesson's training", left_out="no time")
        return
    if not records:
        raise RuntimeError(f"no step was made; see {report.out / 'lesson.log'}")
    speed = statistics.median(record["images_per_second"] for record in records)
    last = records[-1]
    report.add(
        what=f"the lesson's training, exit code {process.returncode}", steps=int(last["step"]),
        seconds=time.perf_counter() - began, images_per_second=speed, loss=last["loss"],
        minutes_for_30000_steps=30_000 * 64 / speed / 60,
    )  # fmt: skip


def data_at_hand() -> list[str]:
    """The digits that need no file, where MNIST is neither here nor to be fetched."""
    try:
        load(read_config(CONFIG).data, "test")
    except UserError:
        return ["data.source=digits"]
    return []


PARTS = {"check": check, "steps": steps, "wide": wide, "picture": picture, "lesson": lesson}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and figures")
    parser.add_argument("--minutes", type=float, default=10, help="in all")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    args = parser.parse_args()
    report = Report(args.out, args.minutes, args.device)
    for part in args.part or PARTS:
        report.begin(part)
        with report.attempt(part):
            PARTS[part](report)
        torch._dynamo.reset()
    if report.failed:
        sys.exit(f"failed: {', '.join(report.failed)}")


if __name__ == "__main__":
    main()
