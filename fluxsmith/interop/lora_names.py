"""How LoRA files spell the layers of a Flux. A layer has parts, one after the other along its
output: queries, keys, values, the MLP's inner values; most layers have one. A spelling gives a name
to each part, and parts with the same name are one tensor. So all formats are read and written by
the same few lines, and a new one is an entry of FORMATS.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fluxsmith.interop.diffusers_names import DUAL, OUTSIDE, SINGLE, SWAPPED

Names = Mapping[str, tuple[str | None, ...]]  # of a layer's parts; None for one that has no name


@dataclass(frozen=True)
class Spelling:
    """Names of the layers outside of blocks, in a dual block and in a single one."""

    stacks: tuple[str, str]
    outside: Names
    dual: Names
    single: Names
    swaps: bool = False  # whether the last modulation is (scale, shift), as diffusers has it


def _without_norms(names: Names) -> Names:
    return {layer: parts for layer, parts in names.items() if "norm." not in layer}


def _as_ours(names: Names) -> Names:
    return {layer: (layer,) * len(parts) for layer, parts in _without_norms(names).items()}


DIFFUSERS = Spelling(
    ("transformer_blocks", "single_transformer_blocks"),
    OUTSIDE,
    _without_norms(DUAL),
    _without_norms(SINGLE),
    swaps=True,
)
BFL = Spelling(
    ("double_blocks", "single_blocks"), _as_ours(OUTSIDE), _as_ours(DUAL), _as_ours(SINGLE)
)
XFLUX = Spelling(
    BFL.stacks,
    {},
    {
        "img_attn.qkv": ("processor.qkv_lora1",) * 3,
        "txt_attn.qkv": ("processor.qkv_lora2",) * 3,
        "img_attn.proj": ("processor.proj_lora1",),
        "txt_attn.proj": ("processor.proj_lora2",),
    },
    {"linear1": (*("processor.qkv_lora",) * 3, None), "linear2": ("processor.proj_lora",)},
)


@dataclass(frozen=True)
class Format:
    """What surrounds a layer's name in the names of a file's tensors."""

    spelling: Spelling
    prefix: str
    down: str
    up: str
    alpha: str = ""  # the ending of the tensor with rank times scale; "" where ups are scaled
    separator: str = "."


FORMATS = {
    "diffusers": Format(DIFFUSERS, "transformer.", ".lora_A.weight", ".lora_B.weight"),
    "kohya": Format(BFL, "lora_unet_", ".lora_down.weight", ".lora_up.weight", ".alpha", "_"),
    "comfyui": Format(BFL, "diffusion_model.", ".lora_down.weight", ".lora_up.weight", ".alpha"),
    "bfl": Format(BFL, "", ".lora_A.weight", ".lora_B.weight"),
    "x-flux": Format(XFLUX, "", ".down.weight", ".up.weight"),
    "onetrainer": Format(
        DIFFUSERS, "lora_transformer_", ".lora_down.weight", ".lora_up.weight", ".alpha", "_"
    ),
}  # what ai-toolkit writes is diffusers'

KEY = re.compile(
    r"(?P<base>.+?)\.(?:(?:lora[._])?(?:(?P<down>A|down)|(?P<up>B|up))(?:\.default)?\.weight"
    r"|(?P<alpha>alpha))"
)
PREFIX = re.compile(
    r"(?:base_model|model|diffusion_model|transformer|unet|dit|pipe|module|_?orig_mod|lora|"
    r"lora_unet|lora_transformer|lycoris)_"
)
BLOCK = re.compile(
    r"(double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)_(\d+)_(.+)"
)


class Place(NamedTuple):
    """The parts of a layer, first to last, that a tensor's name stands for."""

    layer: str
    first: int
    last: int
    swapped: bool = False


def runs(parts: tuple[str | None, ...]) -> Iterator[tuple[str | None, int, int]]:
    """Neighbouring parts with the same name: the name, and the numbers of the first and last."""
    first = 0
    for i, name in enumerate(parts):
        if i + 1 == len(parts) or parts[i + 1] != name:
            yield name, first, i
            first = i + 1


def swaps(layer: str, spelling: Spelling) -> bool:
    """Whether a layer's halves stand the other way round."""
    return spelling.swaps and layer.startswith(SWAPPED)


def _table() -> dict[tuple[str, str], Place]:
    """(stack of blocks or "", name with _ for .) -> the place in a block or outside of them."""
    found = {}
    for spelling in (BFL, DIFFUSERS, XFLUX):
        stacks = (
            ("", spelling.outside),
            *zip(spelling.stacks, (spelling.dual, spelling.single), strict=True),
        )
        for stack, names in stacks:
            for layer, parts in names.items():
                for name, first, last in runs(parts):
                    if name is not None:
                        place = Place(layer, first, last, swaps(layer, spelling))
                        found[stack, name.replace(".", "_")] = place
    return found


TABLE = _table()
OURS = {
    theirs: ours
    for s in (DIFFUSERS, BFL)
    for theirs, ours in zip(s.stacks, BFL.stacks, strict=True)
}


def place_of(base: str) -> Place | None:
    """What the name of a pair stands for, in any spelling and after any prefix; None if nothing."""
    name: str | None = base.replace(".", "_").strip("_")
    while name:
        if block := BLOCK.fullmatch(name):
            stack, number, rest = block.groups()
            if place := TABLE.get((stack, rest)):
                return place._replace(layer=f"{OURS[stack]}.{number}.{place.layer}")
        elif place := TABLE.get(("", name)):
            return place
        name = name[match.end() :] if (match := PREFIX.match(name)) else None
    return None


def names_of(layer: str, form: Format) -> Iterator[tuple[str | None, int, int]]:
    """The names that a format has for a layer, with the first and last part of each; None for parts
    without a name."""
    spelling, (stack, *path) = form.spelling, layer.split(".")
    names, head, own = spelling.outside, "", layer
    if stack in BFL.stacks:
        kind = BFL.stacks.index(stack)
        names = (spelling.dual, spelling.single)[kind]
        head, own = f"{spelling.stacks[kind]}.{path[0]}.", ".".join(path[1:])
    for name, first, last in runs(names.get(own, (None,) * parts_of(layer))):
        spelled = None if name is None else form.prefix + (head + name).replace(".", form.separator)
        yield spelled, first, last


def parts_of(layer: str) -> int:
    """How many parts a layer of ours has."""
    stack, *path = layer.split(".")
    if stack not in BFL.stacks:
        return 1
    return len((BFL.dual, BFL.single)[BFL.stacks.index(stack)][".".join(path[1:])])
