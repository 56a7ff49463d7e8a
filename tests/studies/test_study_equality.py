"""Arms that are made equal are equal: sizes and steps fitted on shipped configs meet their target
within 2%, by a count of the real network and of its real passes."""

import pytest
from study_makers import declare

from fluxsmith import Pipeline
from fluxsmith.config import read_config
from fluxsmith.config.objective_section import ObjectiveConfig
from fluxsmith.config.reading import build_config, with_overrides
from fluxsmith.errors import UserError
from fluxsmith.model.flops import forward_flops, training_flops
from fluxsmith.studies.costs import flops, parameters
from fluxsmith.studies.declaration import read_study
from fluxsmith.studies.equality import TOLERANCE, check_equal, fit
from fluxsmith.studies.planning import make_plan, write_plan
from fluxsmith.training.console import ProgressConsole

COLORED = "configs/image/digits/colored.yaml"
SHAPES = ["depth=3", "depth_single_blocks=0"], ["depth=0", "depth_single_blocks=3"]


def counted(config):
    return sum(p.numel() for p in Pipeline.build(config).parameters())


@pytest.mark.parametrize("key", ["model.hidden_size", "model.mlp_ratio"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_real_network(key, shape):
    baseline = read_config(COLORED, ["model.depth=1", "model.depth_single_blocks=2"])
    arm = read_config(COLORED, [f"model.{part}" for part in shape])
    target = counted(baseline)
    overrides, reached = fit(key, arm, lambda o: parameters(fitted(arm, o)), target)
    assert reached == counted(fitted(arm, overrides)) == pytest.approx(target, rel=TOLERANCE)


def fitted(config, overrides):
    return build_config(with_overrides(config.model_dump(), overrides), "test")


def test_of_a_lora_its_own_parameters_count():
    lora = ["train.init_from=base.pt", "train.adapter={kind: lora, rank: 4}"]
    ranks = [parameters(read_config(COLORED, [*lora, f"train.adapter.rank={r}"])) for r in (4, 8)]
    assert ranks[1] == 2 * ranks[0] < counted(read_config(COLORED)) / 4


def test_an_arm_that_is_equal_already_keeps_its_width():
    config = read_config(COLORED)
    target = counted(config)
    overrides, _ = fit("model.hidden_size", config, lambda o: parameters(fitted(config, o)), target)
    assert overrides == [
        "model.hidden_size=192",
        "model.num_heads=3",
        "model.axes_dim=[16, 24, 24]",
    ]


def test_flops_are_those_of_the_real_pipeline():
    config = read_config("configs/image/digits/tiny.yaml", ["train.steps=10"])
    pipeline = Pipeline.build(config)
    txt = pipeline.encode_text(["seven"]).tokens.shape[1]
    img = pipeline.image_tokens(pipeline.latent_shape)
    each = training_flops(pipeline.network.params, txt, img)
    assert flops(config) == each * 10 * config.train.batch_size
    drawn = 100 * forward_flops(pipeline.network.params, txt, img)
    assert flops(config, drawn=100) - flops(config) == drawn


def test_flops_of_a_student_are_those_of_its_teacher_too():
    """By hand: a student of four steps takes one and a half before the one that it learns; a
    matched one of two is trained through both, beside a critic at two times and two of the
    teacher's."""
    base = read_config("configs/image/digits/tiny-4step.yaml", ["train.steps=10"])
    pipeline = Pipeline.build(base)
    txt = pipeline.encode_text(["seven"]).tokens.shape[1]
    sizes = pipeline.network.params, txt, pipeline.image_tokens(pipeline.latent_shape)
    pictures = 10 * base.train.batch_size
    step = training_flops(*sizes)
    assert flops(base) == (step + 1.5 * forward_flops(*sizes)) * pictures
    objective = {"kind": "distribution_matching", "teacher": "any", "steps": 2, "guidance": 1.5}
    section = ObjectiveConfig.model_validate(objective)
    matched = base.model_copy(update={"objective": section})
    assert flops(matched) == (4 * step + 2 * forward_flops(*sizes)) * pictures


def test_what_can_not_be_met_is_refused():
    check_equal("flops", "a", 101.9, "b", 100)
    with pytest.raises(UserError, match=r"arms\.a: equal=flops can't be met within 2%"):
        check_equal("flops", "a", 103, "b", 100)


@pytest.mark.parametrize("equal", ["flops", pytest.param("seconds", marks=pytest.mark.slow)])
def test_steps_are_fitted_shown_and_kept(equal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arms = {"one": ["train.steps=400"], "two": ["model.depth_single_blocks=4"]}
    study = read_study(declare(tmp_path, equal=equal, arms=arms))
    folder = tmp_path / "study"
    with ProgressConsole() as console:
        plan = make_plan(study, folder, console)
        write_plan(plan, restart=False)
        again = make_plan(study, folder, console)
        more = declare(tmp_path, equal=equal, arms=arms | {"three": ["model.depth=2"]}, seeds=3)
        third = make_plan(read_study(more), folder, console)
    assert again == plan
    one, two = (plan.arms[name] for name in arms)
    assert one.fitted == []
    assert two.fitted == [f"train.steps={two.config.train.steps}"]
    cost = {
        "flops": lambda arm: flops(arm.config),
        "seconds": lambda arm: arm.seconds_a_step * arm.config.train.steps,
    }[equal]
    assert cost(two) == pytest.approx(cost(one), rel=TOLERANCE)
    assert [third.arms[name] for name in arms] == [one, two]
    assert third.arms["three"].fitted
