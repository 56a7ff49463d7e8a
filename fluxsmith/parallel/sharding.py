"""A model cut over ranks (FSDP2): each has a share of every tensor of the network, and of its
gradient, average and moments. A block's weights are whole while it computes."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fluxsmith.errors import UserError
from fluxsmith.parallel.ranks import Ranks
from fluxsmith.parallel.shares import Whole
from fluxsmith.parallel.sums import reduce_scatter, sum_over_ranks


class Shards(Whole):
    """Cuts a model's network, by its blocks, over `shard` ranks; its other modules stay whole."""

    def __init__(
        self, model: nn.Module, network: nn.Module, blocks: Sequence[nn.Module], ranks: Ranks,
        shard: int, device: torch.device, exact: bool, dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        """`exact`: gradients are summed in the tree of pieces. `dtype`: that of weights while they
        compute, where it is not float32; what is kept and summed always is."""
        self.model, self.exact, self.sums_each_piece = model, exact, exact
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        self.network, self.waiting = cast(FSDPModule, network), ranks.waiting
        sizes, names = (ranks.size // shard, shard), ("replicate", "shard")
        mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
        self._host = init_device_mesh("cpu", sizes, mesh_dim_names=names)["shard"]
        self._copies, self._shares = mesh.get_group("replicate"), mesh.get_group("shard")
        for group in (self._copies, self._shares, self._host.get_group()):
            _set_pg_timeout(ranks.patience, group)
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        for module in (*blocks, network):
            fully_shard(module, mesh=mesh["shard"], reshard_after_forward=True, mp_policy=policy)
            self._sum_as_asked(module)
        if any(p.is_meta for p in network.parameters()):
            network.to_empty(device=device)
        for block in blocks:
            block.register_forward_pre_hook(_hide, prepend=True)  # before FSDP's own
            block.register_forward_pre_hook(_show)
        self._cut: dict[int, DTensor] = {}  # by the id of its part
        super().__init__(model, {name: self._part(p) for name, p in model.named_parameters()})

    def _part(self, p: nn.Parameter) -> nn.Parameter:
        if not isinstance(p, DTensor):
            return p
        part = nn.Parameter(_local(p), p.requires_grad)
        self._cut[id(part)] = p
        return part

    def _sum_as_asked(self, module: Any) -> None:
        """Gradients are added, for the losses are divided already: in the order of the tree or as
        the library likes; then over the ranks that have the same shares."""
        if not hasattr(module, "set_custom_reduce_scatter"):
            raise UserError("parallel.shard: needs torch 2.9 or newer; install it, or leave it out")
        if self.exact:
            module.set_custom_reduce_scatter(InOrder())
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if self._copies.size() > 1:
            module.set_all_reduce_hook(lambda x: sum_over_ranks([x], self._copies, self.exact))

    def uncut(self, parameters: Sequence[nn.Parameter]) -> Sequence[nn.Parameter]:
        return [p for p in parameters if id(p) not in self._cut]

    def sync(self, wanted: bool) -> None:
        self.network.set_requires_gradient_sync(wanted)

    def collect(self) -> None:
        for part in self.parts.parameters():
            whole = self._cut.get(id(part))
            if whole is not None and whole.grad is not None:
                part.grad, whole.grad = _local(whole.grad), None

    def joined(self, part: Tensor, x: Tensor) -> Tensor:
        whole = self._cut.get(id(part))
        if whole is None or x.shape != part.shape:
            return x
        return _joined(x, whole.device_mesh, whole)

    def gathered(self, part: Tensor, x: Tensor) -> Tensor:
        joined = self.joined(part, x)
        return joined.full_tensor() if isinstance(joined, DTensor) else x

    def share(self, part: Tensor, x: Tensor) -> Tensor:
        whole = self._cut.get(id(part))
        if isinstance(x, DTensor):
            return _local(x)
        if whole is None or x.shape != whole.shape:
            return x
        return cut(x, self._shares.size(), self._shares.rank())

    def empty(self, part: Tensor, whole: Tensor) -> Tensor:
        known = self._cut.get(id(part))
        if known is None or whole.shape != known.shape:
            return super().empty(part, whole)
        return _joined(torch.empty_like(part, device="cpu"), self._host, known)

    def on_host(self, x: Tensor, copy: bool) -> Tensor:
        if not isinstance(x, DTensor):
            return super().on_host(x, copy)
        return _joined(super().on_host(_local(x), copy), self._host, x)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        own = self.model.state_dict() | dict(self.parts.named_parameters())
        if own.keys() != weights.keys():
            raise RuntimeError(f"{min(own.keys() ^ weights.keys())} is in one of them only")
        for name, part in own.items():
            share = self.share(part, weights[name])
            if share.shape != part.shape:
                raise RuntimeError(f"{name} is {tuple(weights[name].shape)} there")
            part.copy_(share)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    @torch.no_grad()
    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        """The model's weights become these, and these the model's: FSDP knows the tensors that it
        was given, so it is their contents that change."""
        for name, part in self.parts.named_parameters():
            before = part.detach().clone()
            part.copy_(weights[name])
            weights[name].copy_(before)

    def squares(
        self, parameters: Sequence[nn.Parameter], of: Callable[[Sequence[Tensor | None]], Tensor]
    ) -> Tensor:
        if self.exact:  # of whole gradients, one after the other
            return torch.cat(
                [of([p.grad if p.grad is None else self.gathered(p, p.grad)]) for p in parameters]
            )
        own = of([p.grad for p in parameters])
        shared = torch.tensor([id(p) in self._cut for p in parameters], device=own.device)
        everywhere = torch.where(shared, own, 0)
        dist.all_reduce(everywhere, group=self._shares)
        return torch.where(shared, everywhere, own)


class InOrder:
    """FSDP's reduce-scatter by our tree."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup,
        op: Any, async_op: bool = False,
    ) -> None:  # fmt: skip
        reduce_scatter(output_tensor, input_tensor, group)


def cut(x: Tensor, shares: int, rank: int) -> Tensor:
    """The rows of a tensor that a rank has, as FSDP cuts them."""
    cuts = x.chunk(shares)
    return cuts[rank] if rank < len(cuts) else x[:0]


class _Hidden:
    """Inputs of a block that FSDP does not see. It puts an operation of its own before all others;
    where several blocks share an input, that would add the gradients of each block first, unlike a
    model that is not cut. The first input tells it when a block is done."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        self.inputs = inputs


def _hide(block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return given[0], _Hidden(given[1:])


def _show(block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return given[0], *given[1].inputs


def _local(x: Tensor) -> Tensor:
    with torch.no_grad():  # else it is a copy for autograd
        return cast(DTensor, x.detach()).to_local()


def _joined(x: Tensor, mesh: DeviceMesh, like: DTensor) -> DTensor:
    return DTensor.from_local(
        x.detach(), mesh, like.placements, shape=like.shape, stride=like.stride()
    )
