"""Everything that is needed to measure the same thing again."""

from collections.abc import Mapping
from typing import Any

import yaml

from fluxsmith.evaluation.report.markup import Child, Markup, folded, table, tag
from fluxsmith.evaluation.report.wording import number, plain

NAMES = {"num_samples": "samples", "data_digest": "data digest", "fluxsmith": "fluxsmith"}
WEIGHTS = {"ema": "averaged weights (EMA)", "model": "raw weights"}


def title(results: Mapping[str, Any]) -> str:
    return str(results.get("name") or "A model")


def facts(results: Mapping[str, Any]) -> list[str]:
    """Which model it is, in a few words each."""
    said = []
    if results.get("step") is not None:
        said.append(f"step {number(results['step'])}")
    if results.get("weights") is not None:
        said.append(WEIGHTS.get(results["weights"], str(results["weights"])))
    return said + settings_in_words(results)


def settings_in_words(results: Mapping[str, Any]) -> list[str]:
    settings = results.get("settings") or {}
    words = {
        "num_samples": "{} samples",
        "solver": "{} solver",
        "steps": "{} steps",
        "guidance": "guidance {}",
        "seed": "seed {}",
    }
    known = [(key, settings[key]) for key in words if settings.get(key) is not None]
    return [
        words[key].format(number(value) if key == "num_samples" else plain(value))
        for key, value in known
    ]


def repeating(results: Mapping[str, Any]) -> list[Child]:
    """The command, the settings, the versions and digests, the config."""
    provenance = dict(results.get("provenance") or {})
    parts: list[Child] = []
    command = provenance.pop("command", None)
    if command:
        parts.append(tag("pre", tag("code", str(command))))
    model = {key: results.get(key) for key in ("checkpoint", "step", "weights", "model", "format")}
    rows = [
        *_rows({"model digest" if key == "model" else key: value for key, value in model.items()}),
        *_rows(results.get("settings") or {}),
        *_rows(provenance),
    ]
    if rows:
        parts.append(
            _in_words(table("What was measured, how and with what", ["what", "value"], rows))
        )
    if results.get("config"):
        text = yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True)
        parts.append(folded("The config", tag("pre", tag("code", text))))
    return parts


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = ((key, value) for key, value in values.items() if value is not None)
    return [(NAMES.get(key, key.replace("_", " ")), plain(value)) for key, value in known]


def _in_words(content: Markup) -> Markup:
    return tag("div", content, class_="words repeat")
