"""Every impossible setting is one line with the key, the value and the fix."""

import dataclasses
import math
import re

import pytest

from fluxsmith.config import RunConfig
from fluxsmith.config.other_names import OURS
from fluxsmith.config.reading import all_keys
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import SCHEDULES, SOLVERS
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


def test_an_unknown_key_of_the_file_is_told_like_one_of_an_override(mistake):
    message = mistake(text="data: {source: digits, flipp: true}\n")
    assert "data.flipp: unknown key; did you mean data.flip?" in message
    assert "config show" in mistake("zzzzzz=3")  # like no other


@pytest.mark.parametrize("section", ["", "data.", "text.", "model.", "train."])
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
        ("train.steps=many", "train.steps='many': must be a valid integer"),
        ("train.steps=1.5", "train.steps=1.5: must be a valid integer"),
        ("train.steps=", "train.steps=None: must be a valid integer"),
        ("train.steps={x: 1}", "train.steps={'x': 1}: must be a valid integer"),
        ("seed=.inf", "seed=inf: must be a valid integer"),
        ("train.learning_rate=fast", "train.learning_rate='fast': must be a valid number"),
        ("data.flip=1", "data.flip=1: must be a valid boolean"),
        ("name=3", "name=3: must be a text; put it in quotes"),
        ("output_dir=off", "output_dir=False: must be a text; put it in quotes"),
        ("model.axes_dim=64", "model.axes_dim=64: must be a valid list"),
        ("model.axes_dim=[16, wide, 24]", "model.axes_dim.1='wide': must be a valid integer"),
        ("model.axes_dim=[32, 32]", "model.axes_dim=[32, 32]: List should have at least 3"),
        ("data.source=mnits", "data.source='mnits': must be one of"),
        ("data.source=[mnist]", "data.source=\"['mnist']\": must be one of"),
        ("train.kernels=fast", "train.kernels='fast': must be 'auto' or 'off'"),
        ("data.channels=2", "data.channels=2: must be 1 or 3"),
        ("model=big", "model='big': must be a section"),
        ("train=[steps]", "train=['steps']: must be a section"),
        ("train.steps=0", "train.steps=0: must be greater than or equal to 1"),
        ("train.betas=[0.9, 1]", "train.betas.1=1: must be less than 1"),
        ("data.caption_dropout=1.1", "data.caption_dropout=1.1: must be less than or equal to 1"),
        ("text.hidden_size=100", "text.hidden_size=100: must be a multiple of 64"),
        ("train.learning_rate=.nan", "train.learning_rate=nan: must be a finite number"),
        ("flow.mean=.nan", "flow.mean=nan: must be a finite number"),
        ("text.typo=", "text.typo: unknown key"),
    ],
)
def test_a_value_of_the_wrong_type_or_size(mistake, override, line):
    assert line in mistake(override)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.hidden_size=385"], ["model.hidden_size=385", "model.num_heads=6", "384 or 390"]),
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
        assert read(*overrides).flow.choice == DENSITIES[density](**{parameter: 1.5})
    else:
        message = mistake(*overrides)
        assert f"flow.{parameter}=1.5: flow.timesteps={density} has no {parameter}" in message


@pytest.mark.parametrize(
    ("density", "parameter", "value"),
    [("logit_normal", "scale", 0.0), ("mode", "scale", 1.752), ("shifted", "shift", 0.0)],
)
def test_a_parameter_that_its_density_refuses_is_refused_by_the_config(
    mistake, density, parameter, value
):
    message = mistake(f"flow.timesteps={density}", f"flow.{parameter}={value}")
    assert f"flow.{parameter}={value}: must be" in message


def test_the_scale_of_mode_has_the_bound_of_its_density(read):
    scale = 2 / (math.pi - 2)
    assert read("flow.timesteps=mode", f"flow.scale={scale!r}").flow.choice.scale == scale


@pytest.mark.parametrize(
    ("key", "registry"), [("sample.solver", SOLVERS), ("sample.schedule", SCHEDULES)]
)
def test_a_name_is_looked_up_in_its_registry(read, mistake, key, registry):
    for name in registry:
        read(f"{key}={name}")
    assert f"must be one of {', '.join(registry)}" in mistake(f"{key}=other")


def test_a_key_of_another_kind_is_told_whose_it_is(mistake):
    message = mistake("text.t5_tokens=3")
    assert "text.t5_tokens=3: text.encoder=bytes has no t5_tokens" in message
    assert "clip_t5" in message


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("train.lr=1", "train.learning_rate"),
        ("data.resolution=512", "data.image_size"),
        ("train.max_train_steps=9", "train.steps"),
        ("instance_prompt=x", "data.caption"),
        ("train.validation_prompt=x", "sample.prompts"),
    ],
)
def test_names_of_other_trainers_are_told_ours(mistake, key, ours):
    assert f"unknown key; that is {ours} here" in mistake(key)


def test_every_name_of_ours_that_is_told_is_a_key():
    assert set(OURS.values()) <= {*all_keys(RunConfig), *RunConfig.model_fields}
