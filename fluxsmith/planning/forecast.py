"""A run's figures before it starts: memory by part, time, the largest batch, and what to change
where it does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fluxsmith.config import RunConfig
from fluxsmith.device import pick_device, shapes_only
from fluxsmith.model.flux import Flux
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.planning.calibration import Calibration, calibrate
from fluxsmith.planning.machine import Machine
from fluxsmith.planning.outline import Outline, changed
from fluxsmith.planning.sharing import BFLOAT16, FLOAT32, Sharing, Sizes
from fluxsmith.planning.trace import Allocations, traced
from fluxsmith.training.division import pieces_of, smaller_parts

FAR = 64  # times the batch size of a config, beyond which no step is traced


class Described(Ranks):
    """Ranks that are only spoken of."""

    def __init__(self, size: int) -> None:
        self.size = size


@dataclass(frozen=True)
class Forecast:
    """What a run will take."""

    parameters: int  # all that is learned
    text_tokens: float  # of a picture, on average
    image_tokens: int
    memory: dict[str, int]  # bytes on each device, by part
    limit: int  # bytes that each has
    saving: int  # bytes more, while a checkpoint is written in the background
    flops: float  # of a step, on all devices together
    traffic: dict[str, float]  # bytes that each sends in a step: within a copy, and between copies
    seconds: float | None  # of a step; None where nobody said how quick a device is
    how: str  # they were found
    mfu: float | None  # the share of the devices' rate that goes into the model
    largest_batch: int  # that fits, with all else as it is; 0: none
    advice: str  # what to change first where it does not fit

    @property
    def in_all(self) -> int:
        return sum(self.memory.values())


class Planner:
    """Makes the forecast of an outline's config for a machine."""

    def __init__(self, outline: Outline, machine: Machine) -> None:
        self.outline, self.machine = outline, machine
        self.config = outline.config
        if machine.gpu and self.config.train.precision == "auto":
            self.config = changed(self.config, train={"precision": "bfloat16"})
        if machine.gpu:
            self.config = changed(self.config, train={"kernels": "off"})
        with shapes_only():
            network = Flux(outline.params(self.config))
            whole = outline.learned(self.config, network)
            self.sizes = Sizes.of(whole, network, network.blocks)
            critic = self.sizes.cut
            self._teacher = outline.cost.teachers * sum(p.nbytes for p in whole.parameters())
        if adapter := self.config.train.adapter.choice:
            whole.requires_grad_(False)
            adapter.attach(network, self.config.seed)
            own = sum(p.numel() for p in whole.parameters() if p.requires_grad)
            self.sizes, critic = Sizes((), 0, own), own  # which are whole on every rank
            if adapter.dtype_of(outline.stored) == outline.stored:
                self._teacher = 0  # the frozen weights are its own
        # Its weights, their gradients and the optimiser's two moments.
        self._critic = outline.cost.critics * 4 * FLOAT32 * critic
        self._alone: dict[Any, Allocations] = {}  # traces, by what they depend on

    def forecast(self) -> Forecast:
        """Measures what it can on this machine, if that is the one."""
        config, machine, calibration = self.config, self.machine, None
        if machine.here and machine.rate is None:
            local = self._on_a_rank(config)
            calibration = calibrate(self.outline, local, pick_device(config.device))
        lost = calibration.lost if calibration else 0.0
        memory = self.memory(config, lost)
        traffic, flops = self.traffic(), self.outline.of_a_step(config) * config.train.batch_size
        computed = self.outline.computed(config) * config.train.batch_size
        seconds, how = self._seconds(computed, traffic, calibration)
        spent = seconds and machine.rate and seconds * machine.rate * machine.devices
        txt, img = self.outline.tokens(config)
        fits = sum(memory.values()) <= machine.memory
        return Forecast(
            self.sizes.cut + self.sizes.whole, txt, img, memory, machine.memory,
            self.saving(memory), flops, traffic, seconds, how,
            flops / spent if spent else None, self._largest_batch(config, lost),
            "" if fits else self._advice(config, lost),
        )  # fmt: skip

    def traffic(self) -> dict[str, float]:
        """The bytes that each rank sends in a step, to those with which it shares a copy of the
        model, and between copies."""
        sharing = self._sharing(self.config)
        return {"within": sharing.within(self.sizes), "between": sharing.between(self.sizes)}

    def saving(self, memory: dict[str, int]) -> int:
        """Bytes more on the first rank, while a checkpoint is written from a copy in the host's
        memory: of its own share, or of all that is cut where that becomes one file."""
        train, cut = self.config.train, self.config.parallel.shard > 1
        if self.machine.gpu or not 0 < train.checkpoint_every < train.steps:
            return 0
        if cut and train.checkpoint_format == "sharded":
            parts = ("weights", "optimiser", "average")
            return sum(memory[part] for part in parts) if train.background_save else 0
        whole = 4 * FLOAT32 * (self.sizes.cut + self.sizes.whole)  # with average and two moments
        return whole if train.background_save or cut else 0

    def memory(self, config: RunConfig, lost: float = 0.0) -> dict[str, int]:
        """The bytes on each device, by part, and the share `lost` of them beside."""
        local = self._on_a_rank(config)
        held = local.train.batch_size * self.outline.passes
        local = changed(local, train={"batch_size": held})
        key = local.train.batch_size, local.train.accumulate, config.parallel.checkpoint_activations
        if key not in self._alone:
            self._alone[key] = traced(self.outline, local)
        found = self._sharing(config).on_a_rank(self._alone[key], self.sizes)
        found["lost between tensors"] = round(lost * sum(found.values()))
        found["teacher"], found["critic"] = self._teacher, self._critic
        found["data set"] = 0 if self.machine.gpu else self.outline.data
        return {part: size for part, size in found.items() if size}

    def _on_a_rank(self, config: RunConfig) -> RunConfig:
        """The work of one rank, as if it were alone."""
        pieces = pieces_of(config, Described(self.machine.devices))
        own = pieces // self.machine.devices
        micro = -(-config.train.accumulate // pieces)
        batch = config.train.batch_size // self.machine.devices
        return changed(
            config,
            train={"batch_size": batch, "accumulate": own * micro},
            parallel={"shard": 1, "pieces": own},
        )

    def _sharing(self, config: RunConfig) -> Sharing:
        half = config.train.precision == "bfloat16" and not config.train.deterministic
        passes = self._on_a_rank(config).train.accumulate
        size = BFLOAT16 if half else FLOAT32
        return Sharing(self.machine.devices, config.parallel.shard, size, passes)

    def _seconds(
        self, flops: float, traffic: dict[str, float], calibration: Calibration | None
    ) -> tuple[float | None, str]:
        """Of a step. A cut model is gathered while it computes; a sum over whole copies follows the
        backward pass."""
        machine = self.machine
        if calibration is not None:
            computing, how = calibration.seconds, calibration.measured
        elif machine.rate is None:
            return None, "--rate was not given"
        else:
            computing = flops / machine.devices / (machine.rate * machine.reached)
            how = f"{machine.reached:.0%} of the rate in products"
        within = traffic["within"] / machine.bandwidth if machine.bandwidth else 0.0
        network = machine.network or machine.bandwidth
        between = traffic["between"] / network if network else 0.0
        if machine.devices > 1:
            how += f"; computing {computing:.3g} s, sending {within:.3g} + {between:.3g} s"
        unknown = traffic["within"] and machine.bandwidth is None
        if unknown or (traffic["between"] and network is None):
            how += ", for want of --bandwidth"
        return max(computing, within) + between, how

    def _largest_batch(self, config: RunConfig, lost: float) -> int:
        """Memory grows almost evenly with the images of a micro-batch: large products may be
        another library's. So a first answer is looked at once more, unless it is far away."""
        size, unit = config.train.batch_size, self._on_a_rank(config).train.accumulate
        unit *= self.machine.devices

        def needed(n: int) -> int:
            return sum(self.memory(changed(config, train={"batch_size": n}), lost).values())

        def reached(a: tuple[int, int], b: tuple[int, int]) -> int:
            each = max(1, b[1] - a[1]) / (b[0] - a[0])
            return max(0, int(b[0] + (self.machine.memory - b[1]) / each) // unit * unit)

        one, two = ((n, needed(n)) for n in (size, 2 * size))
        n = reached(one, two)
        return reached(two, (n, needed(n))) if two[0] < n <= FAR * size else n

    def _advice(self, config: RunConfig, lost: float) -> str:
        """What changes the result least and is enough; else what is left to do."""
        least = None
        for change in self._changes(config):
            now = config
            for section, keys in change.items():
                now = changed(now, **{section: keys})
            needed = sum(self.memory(now, lost).values())
            words = " ".join(f"{s}.{k}={v}" for s, keys in change.items() for k, v in keys.items())
            if needed <= self.machine.memory:
                return f"{words}: {needed / 2**30:,.1f} GiB"
            least = min(least or (needed, words), (needed, words))
        if least is None:
            return "a smaller model, or devices with more memory"
        return (
            f"a smaller model, or more devices, or more memory in each: even {least[1]} takes "
            f"{least[0] / 2**30:,.1f} GiB"
        )

    def _changes(self, config: RunConfig) -> Iterator[dict[str, dict[str, Any]]]:
        """First those that leave the result as it is and cost least."""
        devices, pieces = self.machine.devices, pieces_of(config, Described(self.machine.devices))
        smaller = [{"accumulate": n} for n in smaller_parts(config, pieces)]
        again = {"checkpoint_activations": "blocks"}
        for train in smaller:
            yield {"train": train}
        if config.parallel.checkpoint_activations == "none":
            yield {"parallel": again}
            for train in smaller[-1:]:
                yield {"parallel": again, "train": train}
        if config.parallel.shard < devices and config.train.adapter.choice is None:
            yield {"parallel": {"shard": devices}}
            yield {"parallel": {"shard": devices, **again}}
            for train in smaller[-1:]:
                yield {"parallel": {"shard": devices, **again}, "train": train}
