"""What a CUDA GPU makes of the network: a table a part, on the screen and in OUT/PART.json.

    python benchmarks/gpu.py --out results      # or --part lesson, steps, wide or sampling alone

What fails is said and left out, and the rest goes on.

- `lesson`: `configs/image/mnist/flux.yaml`, 30,000 steps at batch 64, in bfloat16 and float32 for
  three seeds each: wall time with start and end, speed in the middle, and final validation loss
  (`--steps`, `--seeds`, `--precisions`), compiled by block and captured as CUDA graphs unless
  `--set` says otherwise. Each run takes minutes, and its row is written when it ends.
- `steps`: a training step of that config in both precisions: plain, compiled by block
  (`train.compile`), as a CUDA graph (`train.cuda_graphs`), both, and for comparison the whole
  network compiled, with torch's own graphs; in turns of twenty steps, so that the host may run
  ahead as it does in training.
- `wide`: a training step at FLUX.1's width, 2 dual and 4 single blocks, 4096 image and 512 text
  tokens: ours and diffusers' network, eager and compiled by block, in turns, with the same
  optimiser and average; the share of the GPU's own measured bfloat16 matrix-product rate.
- `sampling`: 20 Euler steps of the lesson's network with random weights, in bfloat16: one 32x32
  picture, plain, with `--cuda-graphs`, and with `--compile` too; 4,096 pictures in one go, from
  noise drawn on the CPU to pictures that lie there.

`--device cpu --small` tries the script itself where there is no GPU.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from fluxsmith import Pipeline, compiling, processor
from fluxsmith.benchmark.machine import matrix_products, product_flops
from fluxsmith.benchmark.ours import Ours
from fluxsmith.benchmark.theirs import transformer
from fluxsmith.benchmark.timing import Spread, take_turns
from fluxsmith.config import read_config
from fluxsmith.device import peak_memory
from fluxsmith.graphs import CudaCapture
from fluxsmith.model.cost import training_flops
from fluxsmith.model.flux import PRESETS, Flux, FluxParams
from fluxsmith.model.tokens import image_ids, text_ids
from fluxsmith.pipeline.graphed import GraphedVelocity
from fluxsmith.training.metrics import read_metrics

CONFIG = Path(__file__).parents[1] / "configs/image/mnist/flux.yaml"
WIDE = replace(PRESETS["flux1-schnell"], depth=2, depth_single_blocks=4)
SMALL = replace(WIDE, hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), context_in_dim=64)
AT_ONCE = 20  # training steps between two looks at the clock
WHOLE = "compiled whole, torch's graphs"
STEPS = {  # what each way sets
    "plain": ("train.compile=false", "train.cuda_graphs=false"),
    "compiled by block": ("train.compile=true", "train.cuda_graphs=false"),
    "CUDA graphs": ("train.compile=false", "train.cuda_graphs=true"),
    "compiled by block, CUDA graphs": ("train.compile=true", "train.cuda_graphs=true"),
    WHOLE: ("train.compile=false", "train.cuda_graphs=false"),
}
FAILED: list[str] = []  # by name
SMALL_LESSON = ["model.hidden_size=48", "model.num_heads=1", "model.axes_dim=[16,16,16]"]


def lesson(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for precision in args.precisions:
        for seed in args.seeds:
            run = args.out / f"lesson-{precision}-{seed}"
            settings = [
                f"train.precision={precision}", f"train.steps={args.steps}", f"seed={seed}",
                f"device={args.device}", f"output_dir={run}", "train.sample_every=0",
                "evaluate.every=0", "train.checkpoint_every=0", "train.compile=true",
                f"train.cuda_graphs={args.device.type == 'cuda'}".lower(), *args.set,
                *(SMALL_LESSON if args.small else []),
            ]  # fmt: skip
            began = time.perf_counter()
            fluxsmith("train", CONFIG, *settings, "--overwrite")
            seconds = time.perf_counter() - began
            scores = run / "scores.json"
            fluxsmith("evaluate", run, "--metrics", "validation_loss", "--json", scores)
            found = json.loads(scores.read_text())["results"]["validation_loss"]["grids"]
            losses = {f"loss, {grid}": values["mean"] for grid, values in found.items()}
            speeds = [record["images_per_second"] for record in read_metrics(run / "metrics.jsonl")]
            took = {"seconds": seconds, "images/s": statistics.median(speeds)}
            rows.append({"precision": precision, "seed": seed, **took, **losses})
            print(rows[-1], flush=True)
            write(args, "lesson", rows)
    return rows


def fluxsmith(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "fluxsmith", *map(str, arguments)], check=True)


def steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    calls: dict[str, Callable[[], None]] = {}
    for precision in args.precisions:
        for way, settings in STEPS.items():
            if "train.cuda_graphs=true" in settings and args.device.type != "cuda":
                continue
            more = [f"train.precision={precision}", *(SMALL_LESSON if args.small else [])]
            ours = Ours(read_config(CONFIG, [*settings, *more]), args.device)
            if way == WHOLE:
                compile_whole(ours.pipeline, ours.train_step)
            calls[f"{precision}, {way}"] = many(ours.train_step)
    batch = read_config(CONFIG).train.batch_size
    return [
        {
            "what": name, **asdict(one), "images/s": batch / one.median,
            f"minutes for {args.steps:,} steps": args.steps * one.median / 60,
        }
        for name, spread in spreads(calls, args).items()
        for one in [a_share(spread, AT_ONCE)]
    ]  # fmt: skip


def many(step: Callable[[], object]) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(AT_ONCE):
            step()

    return steps


def a_share(spread: Spread, parts: int) -> Spread:
    return Spread(spread.median / parts, spread.low / parts, spread.high / parts, spread.count)


def compile_whole(pipeline: Pipeline, work: Callable[[], object]) -> None:
    """Compiles the network as one when it is next called; without a GPU there are no graphs."""
    with compiling.uncompiled():  # the rotation's table is made outside of what is compiled
        work()
    mode = "reduce-overhead" if pipeline.device.type == "cuda" else None
    pipeline.network.compile(mode=mode, dynamic=False)


def spreads(calls: Mapping[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, Spread]:
    """Of those that work. torch captures in a second call, so two go before the turns' own."""
    working = {}
    for name, call in calls.items():
        with told(name) as failed:
            call()
            call()
        if not failed:
            working[name] = call
    taken = take_turns(working, args.device, args.rounds)
    return {name: Spread.of(seconds) for name, seconds in taken.items()}


@contextmanager
def told(what: str) -> Iterator[list[str]]:
    """What goes wrong inside is printed, and named in the list, and doesn't end the script."""
    failed: list[str] = []
    try:
        yield failed
    except Exception:  # a compiler's, a library's that is missing, no memory
        traceback.print_exc()
        print(f"{what} FAILED, and is left out", flush=True)
        failed.append(what)
        FAILED.append(what)


def wide(args: argparse.Namespace) -> list[dict[str, Any]]:
    params = SMALL if args.small else WIDE
    rows, columns, txt = (4, 4, 8) if args.small else (64, 64, 512)
    operations = args.batch * training_flops(params, txt, rows * columns)
    product = many(matrix_products(args.device, torch.bfloat16)["torch"])  # takes turns too
    calls: dict[str, Callable[[], object]] = {"the product": product}
    for name, network, call in (
        ("ours", Flux, call_ours),
        ("diffusers", transformer, call_diffusers),
    ):
        with args.device:
            model = network(params).train()
        compile_blocks(model)
        inputs = batch_of(params, args.batch, rows, columns, txt, args.device)
        step = training_step(model, call, inputs, args.device)
        # With the same weights and moments: those of four would not leave room for activations.
        calls |= {f"{name}, eager": as_written(step), f"{name}, compiled": step}
    taken = spreads(calls, args)
    peak = product_flops(args.device) * AT_ONCE / taken.pop("the product").median
    ours = taken["ours, compiled"].median if "ours, compiled" in taken else float("nan")
    return [
        {
            "what": name, **asdict(spread), "share of the peak": operations / peak / spread.median,
            "ours, compiled, is faster by": spread.median / ours,
            "peak TFLOP/s": peak / 1e12, "batch": args.batch,
            "peak GiB of all": (peak_memory(args.device) or 0) / 2**30,
        }
        for name, spread in taken.items()
    ]  # fmt: skip


def compile_blocks(model: nn.Module) -> None:
    if isinstance(model, Flux):
        compiling.compile_blocks(model)
    else:
        model.compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]


def as_written(step: Callable[[], None]) -> Callable[[], None]:
    def eager() -> None:
        with compiling.uncompiled():
            step()

    return eager


Inputs = dict[str, Tensor]


def batch_of(
    params: FluxParams, batch: int, rows: int, columns: int, txt: int, device: torch.device
) -> Inputs:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    return {
        "img": random(batch, rows * columns, params.in_channels),
        "img_ids": image_ids(rows, columns, device),
        "txt": random(batch, txt, params.context_in_dim),
        "txt_ids": text_ids(txt, device),
        "timesteps": torch.rand(batch, device=device),
        "y": random(batch, params.vec_in_dim),
    }


def call_ours(model: nn.Module, given: Inputs) -> Tensor:
    return model(**given)


def call_diffusers(model: nn.Module, given: Inputs) -> Tensor:
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
    model: nn.Module,
    call: Callable[[nn.Module, Inputs], Tensor],
    given: Inputs,
    device: torch.device,
) -> Callable[[], None]:
    """Forward and backward under bfloat16 autocast, clip, fused AdamW, average."""
    weights = list(model.parameters())
    optimiser = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    average = [weight.detach().clone() for weight in weights]
    target = torch.randn_like(given["img"])

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.mse_loss(call(model, given).float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1e-3)

    return step


def sampling(args: argparse.Namespace) -> list[dict[str, Any]]:
    precision = "bfloat16" if args.device.type == "cuda" else "float32"
    config = read_config(
        CONFIG, [f"sample.precision={precision}", *(SMALL_LESSON if args.small else [])]
    )
    pipeline, graphs, both = (Pipeline.build(config, args.device).eval() for _ in range(3))
    both.compiles = not compiling.prepare_compiling(args.device)
    if args.device.type == "cuda":
        for one in (graphs, both):
            one.graphed = GraphedVelocity(one, CudaCapture(args.device))
    most = 64 if args.small else 4096
    rows = []
    for guidance in (1.0, 2.0):
        calls: dict[str, Callable[[], Tensor]] = {}
        for name, model, count in (
            ("one picture", pipeline, 1),
            ("one picture, CUDA graphs", graphs, 1),
            ("one picture, compiled, CUDA graphs", both, 1),
            (f"{most} pictures", pipeline, most),
        ):
            if model is pipeline or args.device.type == "cuda":
                calls[name] = drawing(model, ["three"] * count, guidance)
        rows += [
            {"what": name, "guidance": guidance, **asdict(spread)}
            for name, spread in spreads(calls, args).items()
        ]
    return rows


def drawing(model: Pipeline, prompts: list[str], guidance: float) -> Callable[[], Tensor]:
    return lambda: model.generate(
        prompts, steps=20, guidance=guidance, solver="euler", batch_size=len(prompts)
    )


PARTS = {"sampling": sampling, "steps": steps, "wide": wide, "lesson": lesson}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and figures")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--small", action="store_true", help="to try the script")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8, help="of `wide`")
    parser.add_argument("--steps", type=int, default=30_000, help="of `lesson`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--set", nargs="+", default=[], help="KEY=VALUE of `lesson`'s config")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.part or PARTS:
        with told(part):
            rows = PARTS[part](args)
            write(args, part, rows)
            print(f"\n{part}")
            for row in rows:
                shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
                print("  ".join(f"{key} {value}" for key, value in zip(row, shown, strict=True)))
        gc.collect()
        torch._dynamo.reset()
        if args.device.type == "cuda":
            torch.cuda.empty_cache()
    if FAILED:
        sys.exit(f"failed: {', '.join(FAILED)}")


def write(args: argparse.Namespace, part: str, rows: list[dict[str, Any]]) -> None:
    """The rows so far, and what they were measured on."""
    about = {
        "device": torch.cuda.get_device_name(args.device)
        if args.device.type == "cuda"
        else processor.name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        # Inductor goes on without graphs where it can't have them.
        "cudagraph_skips": torch._dynamo.utils.counters["inductor"]["cudagraph_skips"],
    }
    text = json.dumps({"about": about, "rows": rows}, indent=2)
    (args.out / f"{part}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
