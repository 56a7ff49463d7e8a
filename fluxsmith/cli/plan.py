"""`fluxsmith plan`."""

from typing import Annotated

import typer

from fluxsmith.cli.options import ConfigFile, JsonFile, Overrides
from fluxsmith.errors import UserError


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(help="Devices, with a rank on each.")] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each, as 80GiB; of this machine's by default.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="FLOPS of each in large products, as 989TFLOPS; by default measured."),
    ] = None,
    reached: Annotated[
        float | None,
        typer.Option(help="The share of --rate that a step reaches on one device; by default 0.5."),
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="What each sends to its neighbours, as 450GB/s or 400Gb/s.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="The same between groups of parallel.shard devices.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """What training will take: memory, time, and what to change where it does not fit."""
    import torch

    from fluxsmith.cli.plan_table import show
    from fluxsmith.config import read_config
    from fluxsmith.device import memory_of, pick_device
    from fluxsmith.kernels.memory import give_back_freed_memory, keep_freed_memory
    from fluxsmith.kernels.timing import device_name
    from fluxsmith.planning.forecast import Planner
    from fluxsmith.planning.machine import Machine, quantity
    from fluxsmith.planning.outline import Outline
    from fluxsmith.storage.files import make_folder

    settings = read_config(config, overrides or [])
    if devices < 1:
        raise UserError(f"--devices {devices}: must be 1 or more")
    described = memory is not None or rate is not None
    if reached is not None and rate is None:
        raise UserError(f"--reached {reached:g}: is a share of --rate; give that too")
    reached = 0.5 if reached is None else reached
    if not 0 < reached <= 1:
        raise UserError(f"--reached {reached:g}: must be above 0 and at most 1")
    if json_file is not None:
        make_folder(json_file.parent, "--json")
    if rate is not None and memory is None:
        raise UserError(f"--rate {rate}: is of a described device; say its --memory too")
    device = pick_device("cpu" if described else settings.device)
    shared = devices if device.type == "cpu" else 1  # the ranks that a machine's memory is for
    if shared > 1 and not described:
        torch.set_num_threads(max(1, torch.get_num_threads() // shared))
    machine = Machine(
        name="described" if described else device_name(device),
        devices=devices,
        memory=int(quantity("--memory", memory, "B")) if memory else memory_of(device) // shared,
        gpu=settings.device != "cpu" if described else device.type == "cuda",
        here=not described,
        rate=quantity("--rate", rate, "FLOPS") if rate else None,
        reached=reached,
        bandwidth=quantity("--bandwidth", bandwidth, "B/s") if bandwidth else None,
        network=quantity("--network", network, "B/s") if network else None,
    )
    if device.type == "cpu" and machine.here:
        if settings.parallel.shard == 1:  # as training does
            keep_freed_memory()
        else:
            give_back_freed_memory()
    outline = Outline.of(settings)
    show(settings, machine, outline.notes, Planner(outline, machine).forecast(), json_file)
