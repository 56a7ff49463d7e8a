"""One gate for kinds of numbers: weights are floating point, without scales of their own.

Scaled fp8 is multiplied out here; whatever else is quantised is refused by name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fluxsmith.errors import UserError
from fluxsmith.storage.mapped import release

FP8 = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16, *FP8)
SCALED = ("float8_e4m3fn", "float8_e5m2")  # what is multiplied out, by ComfyUI's names
FIX = "give the model in bfloat16, float16, float32 or fp8"

# ComfyUI's names of what belongs to an fp8 weight, the older beside the newer one: its scale, the
# scale of a layer's input, which only arithmetic in fp8 needs, and marks of the format.
SCALE = re.compile(r"(^|\.)(scale_weight|weight_scale)$")
IDLE = re.compile(r"(^|\.)(scale_input|input_scale|comfy_quant|scaled_fp8)$")

MARKS = "_quantization_metadata"  # such marks in a file's metadata
IDLE_KEYS = ("format", "full_precision_matrix_mult")

# Names of tensors that quantised weights bring along, and whose they are. The last catches others.
QUANTISED = {
    r"\.(nested_)?(absmax|quant_map)$|\.quant_state\b": "by bitsandbytes (NF4 or FP4)",
    r"\.(SCB|weight_format)$": "by bitsandbytes (int8)",
    r"\.(wscales|wzeros|wtscale|wcscales|smooth(_factor)?(_orig)?)$": "for Nunchaku",
    r"\.(qzeros|g_idx|scales)$": "by GPTQ or AWQ",
    r"\.weight\._(data|scale|shift)$": "by quanto",
    r"tensor_impl|_qdata$|\.int_data$": "by torchao",
    r"weight_scale_2$": "as NVFP4",
    r"(?<!norm)(?<!logit)(?<!dora)[._]scales?(_|$)": "with scales",
    r"absmax|zero_?point|qweight|quant(?!_conv)": "in some way",
}


def refuse_quantised_config(settings: Mapping[str, Any], origin: str) -> None:
    """Raises a UserError where a config.json, or a file's metadata, say that weights are quantised;
    the tensors need not be read for it."""
    if found := settings.get("quantization_config"):
        method = found.get("quant_method", found) if isinstance(found, Mapping) else found
        raise UserError(f"{origin}: quantised, says its quantization_config: {method!s:.80}; {FIX}")


def refuse_quantised(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str
) -> None:
    """Raises a UserError that names what is quantised in a way that can't be undone here, told by
    the tensors' names and dtypes and by the file's metadata."""
    refuse_quantised_config(metadata, origin)
    for form in _forms(tensors, metadata, origin):
        if form not in SCALED:
            raise UserError(f"{origin}: holds weights in {form}; {FIX}")
    known = [name for name in tensors if not (SCALE.search(name) or IDLE.search(name))]
    for name in known:
        for pattern, what in QUANTISED.items():
            if re.search(pattern, name):
                raise UserError(f"{origin}: holds weights quantised {what}, as {name} shows; {FIX}")
    for name in known:
        if tensors[name].dtype not in FLOATING:
            kind = str(tensors[name].dtype).removeprefix("torch.")
            raise UserError(f"{origin}: {name} is {kind}, not floating point; {FIX}")


def dequantised(tensors: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The tensors with every fp8 weight that has a scale multiplied by it, in bfloat16. Takes
    what it replaces out of `tensors`, so that both are never held in memory."""
    for name in [name for name in tensors if IDLE.search(name)]:
        del tensors[name]
    for name in [name for name in tensors if SCALE.search(name)]:
        of = f"{name.rpartition('.')[0]}.weight"
        scale, weight = tensors.pop(name), tensors.pop(of, None)
        if weight is None or weight.dtype not in FP8:
            raise UserError(f"{origin}: {name} is a scale, but {of} is not in fp8; {FIX}")
        rows = weight.shape[0] if weight.ndim else 1
        if scale.numel() != 1 and tuple(scale.shape) not in ((rows,), (rows, 1)):
            raise UserError(
                f"{origin}: {name} has the shape {tuple(scale.shape)}, and {of} "
                f"{tuple(weight.shape)}: one scale, or one a row, can be undone; {FIX}"
            )
        scale = scale.float().reshape(-1, *[1] * (weight.ndim - 1))
        tensors[of] = (weight.float() * scale).bfloat16()
        release(weight)
    return tensors


def _forms(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str) -> set[str]:
    """The formats that ComfyUI's marks name, with what else is done to the weights: JSON texts in
    the bytes of a tensor, or one for all layers in the metadata."""
    texts = [bytes(t.flatten().tolist()) for n, t in tensors.items() if n.endswith("comfy_quant")]
    try:
        marks = [json.loads(text) for text in texts]
        marks += json.loads(metadata.get(MARKS, '{"layers": {}}'))["layers"].values()
        return {
            " and ".join(
                [mark["format"], *(key for key in mark if mark[key] and key not in IDLE_KEYS)]
            )
            for mark in marks
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{origin}: its marks of quantised layers can't be read; {FIX}") from None
