"""Every impossible setting is one line with the key, the value and the fix."""

import dataclasses
import re
from typing import get_args

import pytest

from fluxsmith.config import RunConfig
from fluxsmith.config.reading import all_keys
from fluxsmith.config.sections import DataConfig, FlowConfig, SampleConfig
from fluxsmith.data import SOURCES
from fluxsmith.errors import UserError
from fluxsmith.flow.schedule import SCHEDULES
from fluxsmith.flow.solvers import SOLVERS
from fluxsmith.flow.timesteps import DENSITIES


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.stpes", "train.steps"),
        ("model.hiden_size", "model.hidden_size"),
        ("data.imagesize", "data.image_size"),
        ("sede", "seed"),
        ("trian.steps", "train"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(mistake, wrong, right):
    message = mistake(f"{wrong}=3")
    assert wrong.partition(".")[0] in message
    assert f"unknown key; did you mean {right}?" in message


def test_an_unknown_key_of_the_file_is_named_with_its_section(mistake):
    message = mistake(text="data: {source: digits, flipp: true}\n")
    assert "data.flipp: unknown key; did you mean data.flip?" in message


def test_an_unknown_key_like_no_other_says_where_they_are_listed(mistake):
    assert "config show" in mistake("zzzzzz=3")


SECTIONS = ["", "data.", "text.", "autoencoder.", "model.", "flow.", "train.", "sample."]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section or "top")
def test_a_key_in_the_wrong_section_is_told_the_section_it_belongs_to(mistake, section):
    keys = set(all_keys(RunConfig))
    leaves = {key.rpartition(".")[2] for key in keys}
    wrong = []
    for leaf in sorted(leaves):
        if section + leaf not in keys:
            suggested = re.search(r"did you mean (\S+)\?", mistake(f"{section}{leaf}=1"))
            if not suggested or suggested[1].rpartition(".")[2] != leaf:
                wrong.append(f"{section}{leaf}: {suggested and suggested[1]}")
    assert wrong == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.steps=many", "train.steps='many': must be a whole number"),
        ("train.steps='7'", "train.steps='7': must be a whole number"),
        ("train.steps=1.5", "train.steps=1.5: must be a whole number"),
        ("train.steps=true", "train.steps=True: must be a whole number"),
        ("train.steps=", "train.steps=None: must be a whole number"),
        ("train.steps=[1, 2]", "train.steps=[1, 2]: must be a whole number"),
        ("train.steps={x: 1}", "train.steps={'x': 1}: must be a whole number"),
        ("seed=.inf", "seed=inf: must be a whole number"),
        ("train.learning_rate=fast", "train.learning_rate='fast': must be a number"),
        ("train.learning_rate=true", "train.learning_rate=True: must be a number"),
        ("data.flip=1", "data.flip=1: must be true or false"),
        ("data.flip=maybe", "data.flip='maybe': must be true or false"),
        ("name=3", "name=3: must be text"),
        ("data.path=[a]", "data.path=['a']: must be text"),
        ("model.axes_dim=64", "model.axes_dim=64: must be a list"),
        ("model.axes_dim=[16, wide, 24]", "model.axes_dim.1='wide': must be a whole number"),
        ("model.axes_dim=[32, 32]", "model.axes_dim=[32, 32]: must have 3 entries"),
        ("train.betas=[0.9, 0.9, 0.9]", "train.betas=[0.9, 0.9, 0.9]: must have 2 entries"),
        ("data.source=mnits", "data.source='mnits': must be one of"),
        ("data.source=[mnist]", "data.source=['mnist']: must be one of"),
        ("data.channels=2", "data.channels=2: must be one of"),
        ("data.channels=true", "data.channels=True: must be"),
        ("model=big", "model='big': must be a section"),
        ("model=", "model=None: must be a section"),
        ("train=[steps]", "train=['steps']: must be a section"),
    ],
)
def test_a_value_of_the_wrong_type(mistake, override, line):
    assert line in mistake(override)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.steps=-1", "train.steps=-1: must be at least 1"),
        ("train.steps=0", "train.steps=0: must be at least 1"),
        ("train.batch_size=0", "train.batch_size=0: must be at least 1"),
        ("train.warmup_steps=-1", "train.warmup_steps=-1: must be at least 0"),
        ("train.log_every=0", "train.log_every=0: must be at least 1"),
        ("train.learning_rate=0", "train.learning_rate=0: must be above 0"),
        ("train.betas=[0.9, 1]", "train.betas.1=1: must be below 1"),
        ("train.ema_decay=1", "train.ema_decay=1: must be below 1"),
        ("data.caption_dropout=1.1", "data.caption_dropout=1.1: must be at most 1"),
        ("data.image_size=0", "data.image_size=0: must be at least 1"),
        ("text.hidden_size=100", "text.hidden_size=100: must be a multiple of 64"),
        ("model.num_heads=0", "model.num_heads=0: must be at least 1"),
        ("train.learning_rate=.nan", "train.learning_rate=nan: must be a finite number"),
        ("train.grad_clip=.inf", "train.grad_clip=inf: must be a finite number"),
        ("sample.guidance=-.inf", "sample.guidance=-inf: must be a finite number"),
        ("flow.mean=.nan", "flow.mean=nan: must be a finite number"),
    ],
)
def test_a_value_out_of_range(mistake, override, line):
    assert line in mistake(override)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model.hidden_size=385"],
            ["model.hidden_size=385", "model.num_heads=6", "384 or 390"],
        ),
        (["model.axes_dim=[16, 24, 26]"], ["model.axes_dim=[16, 24, 26]", "66", "= 64"]),
        (["model.axes_dim=[16, 23, 25]"], ["model.axes_dim=[16, 23, 25]", "even"]),
        (["data.image_size=30"], ["data.image_size=30", "model.patch_size=8", "24 or 32"]),
        (["data.image_size=4"], ["data.image_size=4", "model.patch_size=8", "use 8"]),
        (["train.accumulate=3"], ["train.accumulate=3", "train.batch_size=64", "divide"]),
        (["sample.guidance_method=embedded"], ["embedded", "model.guidance_embed=true"]),
        (["sample.guidance_interval=[0.8, 0.2]"], ["sample.guidance_interval", "[0.8, 0.2]"]),
    ],
)
def test_settings_that_do_not_go_together(mistake, overrides, says):
    message = mistake(*overrides)
    assert [part for part in says if part not in message] == []


def test_the_fixes_that_the_messages_name_are_fixes(read):
    assert read("data.image_size=24").data.image_size == 24
    assert read("model.hidden_size=384").model.hidden_size == 384
    config = read("sample.guidance_method=embedded", "model.guidance_embed=true")
    assert config.sample.guidance_method == "embedded"


def test_each_mistake_has_its_line(read):
    with pytest.raises(UserError) as caught:
        read("train.steps=-1", "train.batch_size=0", "modle.depth=3")
    lines = str(caught.value).splitlines()
    for key in ("train.steps", "train.batch_size", "modle"):
        assert sum(f" {key}" in line for line in lines) == 1
    assert len(lines) == 3


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("parameter", ["mean", "scale", "shift"])
def test_a_density_takes_the_parameters_it_has_and_no_other(read, mistake, density, parameter):
    overrides = (f"flow.timesteps={density}", f"flow.{parameter}=1.5")
    if parameter in {field.name for field in dataclasses.fields(DENSITIES[density])}:
        parameters = read(*overrides).flow.parameters()
        assert parameters == {parameter: 1.5}
        DENSITIES[density](**parameters)
    else:
        message = mistake(*overrides)
        assert f"flow.{parameter}=1.5" in message
        assert f"flow.timesteps={density}" in message


@pytest.mark.parametrize(
    ("density", "parameter", "value"),
    [
        ("logit_normal", "scale", 0.0),
        ("logit_normal", "scale", -1.0),
        ("mode", "scale", 1.76),
        ("mode", "scale", -1.1),
        ("shifted", "shift", 0.0),
    ],
)
def test_a_parameter_that_its_density_refuses_is_refused_by_the_config(
    mistake, density, parameter, value
):
    with pytest.raises(ValueError):
        DENSITIES[density](**{parameter: value})
    message = mistake(f"flow.timesteps={density}", f"flow.{parameter}={value}")
    assert f"flow.{parameter}={value}" in message


@pytest.mark.parametrize(
    ("section", "key", "registry"),
    [
        (DataConfig, "source", SOURCES),
        (FlowConfig, "timesteps", DENSITIES),
        (SampleConfig, "solver", SOLVERS),
        (SampleConfig, "schedule", SCHEDULES),
    ],
)
def test_the_choices_of_a_key_are_those_of_its_registry(section, key, registry):
    assert set(get_args(section.model_fields[key].annotation)) == set(registry)
