"""What is shown is what is read, with an explanation of every key."""

import json

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fluxsmith.config import RunConfig, json_schema, read_config, show
from fluxsmith.config.reading import all_keys, build_config

KEYS = set(all_keys(RunConfig))


def test_what_is_shown_is_the_config_with_an_explanation_of_every_key(read):
    config = read()
    shown = show(config)
    assert yaml.safe_load(shown) == config.model_dump()
    for line in shown.splitlines():
        if line and line[-1] != ":":
            setting, _, comment = line.partition("  # ")
            assert ": " in setting
            assert len(comment) > 10, line
            assert comment != "None"


def test_reading_what_is_shown_gives_the_config_back(read):
    config = read(
        "seed=7",
        "train.learning_rate=3e-5",
        "model.axes_dim=[8, 28, 28]",
        "flow.timesteps=shifted",
        "flow.shift=2",
        "data.source=folder",
        "data.path='a: b # c'",
        "sample.guidance_interval=[0.1, 0.9]",
    )
    assert read(text=show(config)) == config


@given(
    path=st.text(max_size=100) | st.none(),
    name=st.text(max_size=20).filter(lambda s: s.isprintable() and not set(s) & set("/\\")),
    seed=st.integers(),
    theta=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    mean=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
@example(path="null", name="1e4", seed=0, theta=1e-5, mean=-0.0)
@example(path="\x85", name="x", seed=0, theta=1.0, mean=None)
@example(path="a\nb", name="two   words", seed=0, theta=1e22, mean=None)
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_config_survives_being_shown(tmp_path, path, name, seed, theta, mean):
    data = {
        "name": name,
        "output_dir": "output/any",
        "seed": seed,
        "data": {"source": "mnist", "path": path},
        "flow": {"mean": mean},
        "model": {"theta": theta},
    }
    config = build_config(data, origin="any")
    file = tmp_path / "shown.yaml"
    file.write_text(show(config), encoding="utf-8")
    assert read_config(file) == config


def test_the_schema_describes_every_key_and_allows_no_other():
    schema = json.loads(json_schema())
    described = set()

    def walk(node: dict, prefix: str) -> None:
        for choice in node.get("oneOf", []):
            walk(choice, prefix)
        if "$ref" in node:
            walk(schema["$defs"][node["$ref"].rpartition("/")[2]], prefix)
        if "properties" in node:
            assert node["additionalProperties"] is False
            for key, entry in node["properties"].items():
                walk(entry, f"{prefix}{key}.")
                if len(entry.get("description", "")) > 10:
                    described.add(prefix + key)

    walk(schema, "")
    assert described == KEYS


def test_the_schema_that_ships_is_the_one_printed(repository):
    shipped = repository / "configs" / "schema.json"
    assert shipped.is_file(), "run `fluxsmith config schema > configs/schema.json`"
    assert shipped.read_text(encoding="utf-8") == json_schema()


def test_the_configs_that_ship_are_read_and_survive_being_shown(repository, read):
    files = sorted((repository / "configs").glob("**/*.yaml"))
    assert repository / "configs/image/digits/tiny.yaml" in files
    for file in files:
        config = read_config(file)
        assert read(text=show(config)) == config, file
