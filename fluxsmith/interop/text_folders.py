"""Text encoders and tokenizers in the folders of a diffusers pipeline: the files as they came,
which older and newer versions of transformers read alike."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from fluxsmith.pipeline import Pipeline
from fluxsmith.storage.files import explaining, make_folder, write_text
from fluxsmith.storage.model_parts import read_part
from fluxsmith.storage.tensor_files import read_tensors, write_tensors
from fluxsmith.storage.weight_files import STANDARD, weight_files
from fluxsmith.text.frozen import FrozenText
from fluxsmith.text.pretrained import Pretrained
from fluxsmith.text.single_file import CLIP_PREFIX, TOKENIZER_FILES

# The numbers of their folders, and their classes in the words that all versions have.
FOLDERS = {"clip": "", "t5": "_2"}
CLASSES = {"clip": ("CLIPTextModel", "CLIPTokenizer"), "t5": ("T5EncoderModel", "T5TokenizerFast")}


def write_text_encoders(pipeline: Pipeline, out: Path) -> dict[str, tuple[str, str]]:
    """text_encoder/ and tokenizer/ for CLIP, text_encoder_2/ and tokenizer_2/ for T5; the classes
    in each folder. Nothing for other encoders."""
    if not isinstance(pipeline.text, FrozenText) or pipeline.text.kind != "clip_t5":
        return {}
    parts = {}
    for kind, encoder in pipeline.text.parts.items():
        model, tokenizer = f"text_encoder{FOLDERS[kind]}", f"tokenizer{FOLDERS[kind]}"
        _write_model(kind, encoder, out / model)
        _copy((encoder.tokenizer_folder() / name for name in TOKENIZER_FILES), out / tokenizer)
        parts[model] = ("transformers", CLASSES[kind][0])
        parts[tokenizer] = ("transformers", CLASSES[kind][1])
    return parts


def _write_model(kind: str, encoder: Pretrained, out: Path) -> None:
    """Config and weights: copied, unless they lie in a single file or under a name, or with names
    of tensors, that not every version finds."""
    place = encoder.model_place()
    files = weight_files(place)
    config = place / "config.json"
    usual = all(file.stem.partition("-")[0] in STANDARD for file in files)
    if kind == "clip":
        usual &= any(name.startswith(CLIP_PREFIX) for name in read_tensors(place))
    if config.is_file() and usual:
        indices = place.glob("*.index*.json") if len(files) > 1 else ()
        _copy([config, *files, *indices], out)
        return
    make_folder(out, "OUT")
    if config.is_file():
        _copy([config], out)
    else:
        settings = {"architectures": [CLASSES[kind][0]], **encoder.config.to_diff_dict()}
        write_text(out / "config.json", json.dumps(settings, indent=2) + "\n")
    prefix = CLIP_PREFIX if kind == "clip" else ""
    tensors = {prefix + name: tensor for name, tensor in read_part(place, kind)[0].items()}
    write_tensors(out / "model.safetensors", tensors, {"format": "pt"})


def _copy(files: Iterable[Path], out: Path) -> None:
    """The files that there are, of a hub's cache what its links point at."""
    make_folder(out, "OUT")
    for file in files:
        if file.is_file():
            with explaining(f"can't copy {file}"):
                shutil.copyfile(file, out / file.name)
