"""Draws the book's figures: python docs/lesson/figures.py [NAME ...] [--model RUN]

attention, guidance and training look at a trained model, by default at the run of chapter 8.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from gaussians import Mixture
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn

from fluxsmith import Pipeline
from fluxsmith.data.digits import load
from fluxsmith.data.images import to_size
from fluxsmith.flow.guidance import classifier_free
from fluxsmith.flow.path import Velocity, beside, flow_matching_loss, interpolate
from fluxsmith.flow.solvers import SOLVERS, euler, midpoint, uniform_grid
from fluxsmith.flow.timesteps import LogitNormal, sample
from fluxsmith.model.blocks import SingleStreamBlock, modulate, timestep_embedding
from fluxsmith.model.flops import forward_flops
from fluxsmith.model.flux import PRESETS, Flux, FluxParams
from fluxsmith.model.rope import RotaryTable, rotary_table, rotate
from fluxsmith.model.tokens import image_ids
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.recorder import read_metrics

HERE = Path(__file__).parent
STYLE = HERE.parents[1] / "fluxsmith" / "evaluation" / "report" / "page.mplstyle"
BLUE, RED, GREEN = "#0072b2", "#d55e00", "#009e73"
LABEL = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
TWO = Mixture([[-1.2], [1.2]], sd=0.25)  # chapter 1's data


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(velocity: Velocity, x: Tensor, ts: Tensor) -> Tensor:
    """Where a fine solver finds x (n, d) at every time of ts: (steps + 1, n, d)."""
    seen = []
    midpoint(velocity, x, ts, lambda i, t, x: seen.append(x))
    return torch.stack(seen)


def learned(times: Tensor | None = None, steps: int = 1500) -> Velocity:
    """A network of three layers, taught by chapter 1's loss on `TWO`; or, with `times`, to step
    from one to the next along its exact paths (chapter 9)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(2, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 1)
    )
    g, optimiser = seeded(), torch.optim.Adam(network.parameters(), 3e-3)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return network(torch.cat((x, t.expand(len(x))[:, None]), dim=1))

    if times is not None:
        paths = states(TWO.velocity, torch.randn(4096, 1, generator=g), uniform_grid(100))
        paths = paths[(torch.linspace(0, 100, len(times))).long()]
    for step in range(steps):
        if times is None:
            x0 = TWO.sample(512, g)
            t = sample(LogitNormal(), 512, g, stratified=True)
            loss = flow_matching_loss(velocity, x0, torch.randn(512, 1, generator=g), t).mean()
        else:
            which = torch.randint(paths.shape[1], (512,), generator=g)
            i = torch.randint(len(times) - 1, (512,), generator=g)
            x, y = paths[i, which], paths[i + 1, which]
            t, dt = times[i], times[i] - times[i + 1]
            loss = (velocity(x, t) - (x - y) / beside(dt, x)).abs().mean()
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.no_grad()(velocity)


def paths_panel(axes: plt.Axes, ts: Tensor, paths: Tensor, title: str, **style: object) -> None:
    axes.plot(ts, paths.squeeze(-1), color=BLUE, linestyle="-", linewidth=0.7, **style)
    axes.set(title=title, xlabel="t", xlim=(1, 0), ylim=(-3, 3))


def path(model: str) -> plt.Figure:
    """Chapter 1."""
    figure, (a, b, c) = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
    g, ts = seeded(), uniform_grid(60)
    x0, eps = TWO.sample(40, g), torch.randn(40, 1, generator=g)
    lines = torch.stack([interpolate(x0, eps, t) for t in ts])
    paths_panel(a, ts, lines, "what training draws:\nstraight lines", marker="")
    for axes, velocity, title in (
        (b, TWO.velocity, "the best velocity,\nfollowed"),
        (c, learned(), "what a small network\nlearned, followed"),
    ):
        paths_panel(axes, ts, states(velocity, eps, ts), title, marker="")
    a.set_ylabel("x")
    return figure


def solvers(model: str) -> plt.Figure:
    """Chapter 2."""
    figure, (a, b) = plt.subplots(1, 2, figsize=(9, 3.2))
    x = torch.randn(500, 1, generator=seeded(), dtype=torch.float64)
    data = Mixture([[-1.2], [1.2]], sd=0.25)
    data.means = data.means.double()
    exact = midpoint(data.velocity, x, uniform_grid(2000).double())
    for name, solver in SOLVERS.items():
        points = []
        for steps in (2, 4, 8, 16, 32, 64, 128):
            found = solver.function(data.velocity, x, uniform_grid(steps).double())
            points.append((solver.evaluations(steps), (found - exact).square().mean().sqrt()))
        b.loglog(*zip(*points, strict=True), label=name)
    b.set(title="error at t = 0", xlabel="evaluations of the velocity", ylabel="root mean square")
    b.legend()
    few, fine = uniform_grid(5), uniform_grid(200)
    starts = torch.tensor([[-1.8], [-0.9], [-0.25], [0.25], [0.9], [1.8]])
    paths_panel(a, fine, states(TWO.velocity, starts, fine), "five Euler steps", marker="")
    seen: list[Tensor] = []
    euler(TWO.velocity, starts, few, lambda i, t, x: seen.append(x))
    a.plot(few, torch.stack(seen).squeeze(-1), color=RED, linestyle="--", linewidth=0.9, marker="o")
    a.set(ylabel="x", ylim=(-2.2, 2.2))
    return figure


def time(model: str) -> plt.Figure:
    """Chapter 3."""
    figure, (a, b) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(1.15, 1))
    t = torch.linspace(0, 1, 501)
    found = timestep_embedding(t, 256)  # (501, 256)
    shown = a.imshow(found.T, aspect="auto", extent=(0, 1, 256, 0), cmap="RdBu_r", vmin=-1, vmax=1)
    a.set(title="what the network sees of t", xlabel="t", ylabel="channel")
    a.grid(visible=False)
    figure.colorbar(shown, ax=a)
    for at in (0.2, 0.5, 0.8):
        alike = found @ timestep_embedding(torch.tensor([at]), 256)[0] / 128
        b.plot(t, alike, marker="", label=f"t = {at}")
    b.set(title="how alike two times look", xlabel="another time", ylabel="cosine")
    b.set_ylim(0, 1.35)
    b.legend(ncols=3, loc="upper center")
    return figure


def rope(model: str) -> plt.Figure:
    """Chapter 4."""
    figure, (a, b) = plt.subplots(1, 2, figsize=(8, 3.4), width_ratios=(1, 1.2))
    a.imshow(to_size(load(None, "train").images[7:8], 16, "stretch")[0, 0], cmap="gray")
    for line in (4, 8, 12):
        a.axhline(line - 0.5, color=RED, linewidth=1)
        a.axvline(line - 0.5, color=RED, linewidth=1)
    for _, row, column in image_ids(4, 4, torch.device("cpu")).int().tolist():
        a.text(4 * column, 4 * row + 0.8, f"{row},{column}", color="white", fontsize=7, bbox=LABEL)
    a.set(title="16 tokens and their ids (row, column)", xticks=[], yticks=[])
    a.grid(visible=False)
    width = 17
    ids = image_ids(width, width, torch.device("cpu"))
    table = rotary_table(ids, (16, 24, 24), 10_000)
    q = torch.ones(1, 1, width * width, 64)
    turned = rotate(q, table)[0, 0]
    logits = (turned @ turned[len(turned) // 2] / 64).view(width, width)
    shown = b.imshow(logits, extent=(-8.5, 8.5, 8.5, -8.5), cmap="viridis")
    b.set(title="how q·k falls with distance", xlabel="columns away", ylabel="rows away")
    b.grid(visible=False)
    figure.colorbar(shown, ax=b)
    return figure


def attention(model: str) -> plt.Figure:
    """Chapter 5."""
    pipeline, seen = Pipeline.from_checkpoint(checkpoints.newest(Path(model)), "cpu"), []

    def looking(streams, heads: int, pe: RotaryTable, mask: Tensor | None):
        parts = []
        for qkv, norm in streams:
            q, k, _ = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            parts.append(norm(q, k))
        q, k = (rotate(torch.cat(one, dim=2), pe) for one in zip(*parts, strict=True))
        seen.append(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1))  # (b, h, l, l)
        return original(streams, heads, pe, mask)

    block = pipeline.network.double_blocks[0]
    original, block.attention = block.attention, looking
    figure = plt.figure(figsize=(9, 3.6))
    grid = figure.add_gridspec(2, 5, width_ratios=(2.1, 1, 1, 1, 1))
    times, at = (0.95, 0.7, 0.4, 0.1), {}
    with torch.no_grad():
        cond = pipeline.encode_text(["seven"])

        def keep(i: int, t: float, x: Tensor) -> None:
            at[round(t, 2)] = x

        Sampler(pipeline, kernels="off").generate(["seven"], seed=5, steps=20, on_step=keep)
        seen.clear()
        for t in times:
            pipeline.velocity(at[t], torch.tensor(t), cond)
    a = figure.add_subplot(grid[:, 0])
    a.imshow(seen[1][0].mean(0), cmap="magma", vmin=0)
    a.set(title="all tokens, t = 0.7", xlabel="key: the word, then 16 patches", ylabel="query")
    maps = [one[0, :, 1:, 0].mean(0).view(4, 4) for one in seen]  # towards the one text token
    for i, (t, towards) in enumerate(zip(times, maps, strict=True), start=1):
        above, below = figure.add_subplot(grid[0, i]), figure.add_subplot(grid[1, i])
        above.imshow(at[t][0, 0], cmap="gray", vmin=-1, vmax=1)
        above.set_title(f"t = {t}")
        below.imshow(towards, cmap="magma", vmin=0, vmax=max(float(one.max()) for one in maps))
        below.set_xlabel(f"mean {towards.mean():.0%}")
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
    return figure


@torch.no_grad()
def parallel(model: str) -> plt.Figure:
    """Chapter 6."""
    torch.manual_seed(0)
    block, hidden = SingleStreamBlock(64, 1, 4.0), 64
    block, x = block.double(), torch.randn(8, 16, hidden).double()
    pe = rotary_table(image_ids(4, 4, torch.device("cpu")), (16, 24, 24), 10_000)

    def branch(x: Tensor, which: str) -> Tensor:
        qkv, inner = block.linear1(modulate(x, *torch.zeros(2, 1).double())).split(
            (3 * hidden, 256), dim=-1
        )
        if which == "attention":
            (out,) = block.attention(((qkv, block.norm),), 1, pe, None)
            return out @ block.linear2.weight[:, :hidden].T
        return nn.functional.gelu(inner, approximate="tanh") @ block.linear2.weight[:, hidden:].T

    gates = torch.logspace(-3, 0, 13)
    apart, change = [], []
    for gate in gates:
        beside_it = x + gate * (branch(x, "attention") + branch(x, "mlp"))
        first = x + gate * branch(x, "attention")
        in_turn = first + gate * branch(first, "mlp")
        apart.append((beside_it - in_turn).norm() / x.norm())
        change.append((in_turn - x).norm() / x.norm())
    figure, a = plt.subplots(figsize=(5.2, 3.2))
    a.loglog(gates, change, label="what the block changes")
    a.loglog(gates, apart, label="in turn against side by side")
    a.set(xlabel="gate α", ylabel="relative to x", title="one block, computed in two ways")
    a.legend(loc="lower right")
    return figure


def guidance(model: str) -> plt.Figure:
    """Chapter 7."""
    figure = plt.figure(figsize=(9, 3.6))
    pipeline = Pipeline.from_checkpoint(checkpoints.newest(Path(model)), "cpu")
    every = Mixture([[-0.8, 0.0], [0.8, 0.0]], sd=0.5)
    left = Mixture([[-0.8, 0.0]], sd=0.5)
    x, scales = torch.randn(600, 2, generator=seeded()), (0, 1, 2, 4, 8)
    grid = figure.add_gridspec(2, len(scales), height_ratios=(0.8, 1))
    sampler = Sampler(pipeline)
    for column, scale in enumerate(scales):
        velocity = classifier_free(left.velocity, every.velocity, scale)
        found = midpoint(velocity, x, uniform_grid(50))
        a = figure.add_subplot(grid[0, column])
        a.scatter(*every.sample(600, seeded(1)).T, s=2, color="#bbbbbb", marker="o")
        a.scatter(*found.T, s=2, color=BLUE, marker="o")
        a.set(title=f"scale {scale}", xlim=(-3.2, 2.6), ylim=(-2.2, 2.2), xticks=[], yticks=[])
        a.set_aspect("equal")
        drawn = sampler.generate(["three"] * 9, seed=1, guidance=scale, steps=10)
        drawn = nn.functional.pad(drawn, (1, 1, 1, 1), value=0)
        drawn = drawn.view(3, 3, 18, 18).permute(0, 2, 1, 3).reshape(54, 54)
        b = figure.add_subplot(grid[1, column])
        b.imshow(drawn, cmap="gray")
        b.set(xticks=[], yticks=[])
        b.grid(visible=False)
    return figure


def training(model: str) -> plt.Figure:
    """Chapter 8."""
    figure, (a, b) = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=(1, 1.35))
    run = Path(model)
    records = [r for r in read_metrics(run / "metrics.jsonl") if "loss" in r]
    a.plot([r["step"] for r in records], [r["loss"] for r in records], marker="")
    a.set(title="loss", xlabel="step", yscale="log")
    a.set_yticks([0.2, 0.4, 0.8, 1.6], ["0.2", "0.4", "0.8", "1.6"])
    a.set_yticks([], minor=True)
    every, prompts, steps, columns = checkpoints.find(run), ["two", "5", "seven", "8"], [], []
    for i, (step, file) in enumerate(every):
        if i in (0, 1, 2, 3, 5, 7, 11, len(every) - 1):
            steps.append(step)
            pipeline = Pipeline.from_checkpoint(file, "cpu")
            columns.append(Sampler(pipeline).generate(prompts, seed=3, steps=10))
    shown = nn.functional.pad(torch.stack(columns)[:, :, 0], (1, 1, 1, 1), value=0)
    shown = shown.permute(1, 2, 0, 3).reshape(
        18 * len(prompts), -1
    )  # from (steps, prompts, 18, 18)
    b.imshow(shown, cmap="gray", vmin=-1, vmax=1)
    b.set(title="the same noise, later and later", xlabel="step")
    b.set_xticks([18 * i + 8.5 for i in range(len(steps))], steps)
    b.set_yticks([18 * i + 8.5 for i in range(len(prompts))], prompts)
    b.grid(visible=False)
    return figure


def distillation(model: str) -> plt.Figure:
    """Chapter 9."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
    x, fine = torch.linspace(-2, 2, 24)[:, None], uniform_grid(100)
    exact = states(TWO.velocity, x, fine)
    for axes, steps, velocity, title in (
        (panels[0], 2, TWO.velocity, "the teacher in 2 steps"),
        (panels[1], 2, learned(uniform_grid(2)), "a student of 2 steps"),
        (panels[2], 1, learned(uniform_grid(1)), "a student of 1 step"),
    ):
        seen: list[Tensor] = []
        euler(velocity, x, uniform_grid(steps), lambda i, t, x, seen=seen: seen.append(x))
        axes.plot(fine, exact.squeeze(-1), color="#bbbbbb", linewidth=0.7, linestyle="-", marker="")
        paths_panel(axes, uniform_grid(steps), torch.stack(seen), title, marker=".")
        axes.set_ylim(-2.3, 2.3)
    panels[0].set_ylabel("x")
    return figure


def worth(model: str) -> plt.Figure:
    """Chapter 10."""
    figure, (a, b) = plt.subplots(1, 2, figsize=(9, 3.2))
    flux = PRESETS["flux1-dev"]
    splits = [(19, 38), (57, 0), (0, 57), (33, 0), (0, 79)]
    names = ["FLUX.1:\n19 + 38", "57 + 0", "0 + 57", "33 + 0", "0 + 79"]
    sizes, costs = [], []
    for depth, single in splits:
        params = FluxParams(**vars(flux) | {"depth": depth, "depth_single_blocks": single})
        with torch.device("meta"):
            network = Flux(params)
        sizes.append(sum(p.numel() for p in network.parameters()) / 1e9)
        costs.append(forward_flops(params, 512, 4096) / 1e12)
    colours = [BLUE, RED, GREEN, RED, GREEN]
    for axes, values, title in (
        (a, sizes, "parameters, billions"),
        (b, costs, "TFLOP of one evaluation, 1024x1024"),
    ):
        bars = axes.bar(names, values, color=colours)
        axes.bar_label(bars, fmt="%.1f")
        axes.set(title=title, xlabel="dual + single blocks", ylim=(0, max(values) * 1.12))
        axes.grid(axis="x", visible=False)
    return figure


MAKERS = (path, solvers, time, rope, attention, parallel, guidance, training, distillation, worth)
FIGURES = {maker.__name__: maker for maker in MAKERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(FIGURES), metavar="NAME")
    parser.add_argument("--model", default="output/image/digits/tiny")
    parser.add_argument("--out", type=Path, default=HERE / "images")
    given = parser.parse_args()
    matplotlib.use("agg")
    own = {"figure.constrained_layout.use": True, "figure.dpi": 120, "text.parse_math": True}
    plt.style.use([STYLE, own])
    for name in given.names:
        figure = FIGURES[name](given.model)
        figure.canvas.draw()
        drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        plt.close(figure)
        drawn.quantize(256, dither=Image.Dither.NONE).save(given.out / f"{name}.png", optimize=True)
        print(given.out / f"{name}.png")


if __name__ == "__main__":
    main()
