"""Where the time of a training step goes: a table by operation, and a trace to look at."""

from pathlib import Path

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from fluxsmith.benchmark.ours import Ours
from fluxsmith.config import RunConfig
from fluxsmith.device import pick_device
from fluxsmith.files import make_folder, write_text

STEPS = 3
ROWS = 40


def profile_step(config: RunConfig, folder: Path) -> None:
    """Writes profile.txt and trace.json (for https://ui.perfetto.dev) into the folder."""
    make_folder(folder, "--profile")
    device = pick_device(config.device)
    ours = Ours(config, device)
    ours.train_step()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            ours.train_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=by, row_limit=ROWS)
    write_text(folder / "profile.txt", text + "\n")
    profiler.export_chrome_trace(str(folder / "trace.json"))
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    Console().print(
        f"table  {folder / 'profile.txt'}\ntrace  {folder / 'trace.json'}", markup=False
    )
