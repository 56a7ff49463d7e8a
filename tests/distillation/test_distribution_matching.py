"""Students whose pictures are held to their teacher's distribution, beside a critic."""

import shutil

import pytest
import torch
from distillation.making import BRIEF, QUICK, flow_matching_of_the_critic, some, trainer_of
from helpers import assert_agree, randomise, same
from kernels.fake_cuda_graph import ByOperations

from fluxsmith.cli import main
from fluxsmith.distillation.prompts import PromptLoader
from fluxsmith.distillation.students import student_config
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import euler, uniform_grid
from fluxsmith.randomness import generator
from fluxsmith.training.run import train


def matching(run, steps, *overrides):
    """The trainer of a new student."""
    return trainer_of(run, steps, "train.init_from=null", *overrides, match=True)


def losses_of(trainer):
    """Those of the next batch, and what was drawn for it."""
    objective = trainer.objective
    example = objective.draw(trainer.next_batch(), generator(0, "test"))
    return objective.losses(objective.prepare(example)), example


@pytest.mark.parametrize("steps", [1, 2])
def test_the_critics_loss_is_flow_matching_of_what_is_drawn(teacher, steps):
    """Oracle: the student's pictures by the solver that sampling uses, and flow matching."""
    trainer = matching(teacher, steps)
    student = trainer.pipeline
    randomise(student, 0.02)  # no longer where the teacher is
    losses, example = losses_of(trainer)
    noise, captions = example.batch.images, example.batch.captions
    cond = student.encode_text(captions)
    with torch.no_grad():
        made = euler(lambda x, t: student.velocity(x, t, cond), noise, uniform_grid(steps))
    drawn = made.clamp(-1, 1)
    assert not torch.equal(drawn, made)
    expected = flow_matching_of_the_critic(trainer.objective, example, drawn)
    assert_agree(losses.terms["critic"], expected, 1e-4)


@pytest.mark.parametrize(("steps", "furthest"), [(1, 1.6), (2, 1)])
def test_a_picture_moves_by_the_difference_of_teacher_and_critic(teacher, steps, furthest):
    """Oracle: the same by way of the picture, through all steps of the student."""
    trainer = matching(teacher, steps, "objective.matched_guidance=3")
    objective, student = trainer.objective, trainer.pipeline
    randomise(objective.critic.pipeline.network, 0.02)
    losses, example = losses_of(trainer)
    captions, eps, at = example.batch.captions, example.eps[:, 0], example.t[:, 0]
    t, ones = at[:, None, None, None], torch.ones(len(eps))
    x, cond = example.batch.images, student.encode_text(captions)
    for i in range(steps):
        x = x - student.velocity(x, (1 - i / steps) * ones, cond) / steps
    made = x.detach()
    x_t = torch.lerp(made.clamp(-1, 1), eps, t)
    with torch.no_grad():
        v_t = objective.teacher.velocity(x_t, at, captions, 3 * ones)
        v_c = objective.critic.velocity(x_t, at, objective.teacher.texts(captions)[0])
    g = t * (v_t - v_c)
    stay = ((made > furthest) & (g < 0)) | ((made < -furthest) & (g > 0))
    assert 0 < stay.sum() < (made.abs() > furthest).sum()
    weights = list(student.network.parameters())
    expected = torch.autograd.grad(x, weights, g.masked_fill(stay, 0) / x.numel())
    found = torch.autograd.grad(losses.terms["matching"].mean(), weights)
    for ours, theirs in zip(found, expected, strict=True):
        assert_agree(ours, theirs, within=1e-3 * float(theirs.abs().max()) + 1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_at_its_teachers_distribution_nothing_moves(teacher, precision):
    """A critic begins as the conditional teacher, and so agrees with it at a scale of 1."""
    changes = "objective.matched_guidance=1", f"train.precision={precision}"
    losses, _ = losses_of(matching(teacher, 2, *changes))
    assert losses.terms["matching"].max() < 1e-9


def test_a_pictures_times_have_no_relation_and_are_spread_over_the_density(teacher):
    trainer = matching(teacher, 1, "train.batch_size=64")
    t = trainer.objective.draw(trainer.next_batch(), generator(0, "test")).t
    assert abs(float(torch.corrcoef(t.T)[0, 1])) < 0.4
    slices = torch.special.ndtr((t.flatten().logit() - 0.3) / 0.7).mul(t.numel()).long()
    assert len(slices.unique()) > 0.95 * t.numel()  # one in each, but for those that are cut


def test_prompts_and_noise_are_a_function_of_the_step(teacher):
    found = Teacher(teacher)
    loader = PromptLoader(found, 8, seed=0)
    whole, rows = loader.batch(3), loader.batch(3, [5, 1])
    assert torch.equal(rows.images, whole.images[[5, 1]])
    assert rows.captions == [whole.captions[5], whole.captions[1]]
    noise = torch.cat([loader.batch(step).images for step in range(50)])
    assert len(noise.flatten(1).unique(dim=0)) == len(noise)
    assert abs(float(noise.mean())) < 0.02 and float(noise.std()) == pytest.approx(1, abs=0.02)
    drawn = {caption for step in range(50) for caption in loader.batch(step).captions}
    assert drawn == set(loader.captions())
    assert not torch.equal(PromptLoader(found, 8, seed=1).batch(3).images, whole.images)
    position = loader.position(3)
    found.pipeline.captions = [*loader.captions(), "one more"]
    with pytest.raises(UserError, match="on data of other names, captions or contents"):
        PromptLoader(found, 8, seed=0).resume(position, 3, "the checkpoint")


@pytest.mark.parametrize("interval", [[0.0, 1.0], [0.3, 0.6]])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_teacher_is_guided_alike_without_a_look_at_the_device(make_teacher, interval, scale):
    found = Teacher(make_teacher(f"sample.guidance_interval={interval}"))
    x, t, prompts = some(found.pipeline)
    t = torch.tensor([0.1, 0.5, 0.9])
    expected = found.velocity(x, t, prompts, torch.full((3,), scale))
    ours = found.guided_velocity(x, t, found.texts(prompts), scale, "float32")
    assert_agree(ours, expected, 1e-5)


def test_each_network_learns_from_its_own_losses(teacher):
    trainer = matching(teacher, 2, "objective.matched_guidance=3")
    (losses, _), objective = losses_of(trainer), trainer.objective
    student = [p for p in trainer.pipeline.parameters() if p.requires_grad]
    critic = list(objective.module.parameters())
    of = {
        name: torch.autograd.grad(
            term.mean(), [*student, *critic], retain_graph=True, allow_unused=True
        )
        for name, term in losses.terms.items()
    }
    for name, learns, other in (
        ("matching", student, critic),
        ("critic", critic, student),
    ):
        grads = dict(zip([*student, *critic], of[name], strict=True))
        assert any(grads[p] is not None and grads[p].any() for p in learns), name
        assert all(grads[p] is None or not grads[p].any() for p in other), name


def test_the_critic_learns_faster_than_the_student(teacher):
    """Adam's first step is the learning rate, whatever the gradient."""
    trainer = matching(
        teacher,
        2,
        "train.warmup_steps=0",
        "train.weight_decay=0",
        "train.learning_rate=1e-4",
        "train.tail=0",
    )
    networks = trainer.pipeline.network, trainer.objective.critic.pipeline.network
    before = [network.img_in.weight.detach().clone() for network in networks]
    trainer.train_step()
    moved = [
        (network.img_in.weight - old).abs().median()
        for network, old in zip(networks, before, strict=True)
    ]
    assert_agree(torch.stack(moved), torch.tensor([1e-4, 5e-4]), 1e-6)
    teachers = trainer.objective.teacher.pipeline.network.img_in.weight
    assert torch.equal(teachers, before[1])


def test_a_batch_in_pieces_is_the_batch(teacher):
    found = []
    for pieces in 1, 4:
        trainer = matching(teacher, 2, f"train.accumulate={pieces}", "train.grad_clip=0")
        trainer.optimiser.step = lambda: None
        trainer.optimiser.zero_grad = lambda **_: None
        trainer.train_step()
        found.append([p.grad for p in trainer.update.trained])
    for whole, pieces in zip(*found, strict=True):
        assert_agree(pieces, whole, within=1e-3 * float(whole.abs().max()) + 1e-7)


def test_a_captured_step_is_the_step(teacher):
    """On the CPU, by a stand-in for CUDA graphs."""
    one, two = (matching(teacher, 2, "train.learning_rate=1e-3") for _ in range(2))
    for trainer in one, two:
        trainer.update.host_sync = False
    two.capture_steps(ByOperations())
    for _ in range(3):
        one.train_step()
        two.train_step()
    before = one.objective.teacher.pipeline.network.state_dict()
    for networks in (
        (one.pipeline.network, two.pipeline.network),
        (one.objective.critic.pipeline.network, two.objective.critic.pipeline.network),
    ):
        ours, theirs = (network.state_dict() for network in networks)
        for name, weight in ours.items():
            assert_agree(theirs[name], weight, 1e-4)
        assert not same(ours, before)


def test_a_loras_critic_is_a_lora_on_the_same_weights(teacher, tmp_path):
    lora = "train.adapter={kind: lora, rank: 2, targets: [attention]}"
    trainer = matching(teacher, 2, lora, f"train.init_from={teacher}")
    objective = trainer.objective
    held = {p.data_ptr() for p in objective.teacher.pipeline.parameters()}
    frozen = {
        p.data_ptr() for p in objective.critic.pipeline.network.parameters() if not p.requires_grad
    }
    assert frozen <= held
    own = sum(p.numel() for p in objective.module.parameters())
    assert own == sum(p.numel() for p in trainer.pipeline.parameters() if p.requires_grad)
    before = {name: p.clone() for name, p in objective.teacher.pipeline.named_parameters()}
    trainer.train_step()
    assert same(dict(objective.teacher.pipeline.named_parameters()), before)
    assert train(student_config(teacher, 2, [*BRIEF, lora], match=True)) == 0
    path = tmp_path / "teacher-2step-matched" / "diffusion-4.pt"
    assert path.stat().st_size < (teacher / "diffusion-1.pt").stat().st_size / 4


def test_a_dev_teacher_and_its_critic_are_given_the_scale_that_is_matched(make_teacher):
    dev = make_teacher("model.guidance_embed=true", "sample.guidance_method=embedded")
    scales = "objective.guidance=3.5", "objective.matched_guidance=2.5"
    trainer = matching(dev, 2, *scales)
    objective = trainer.objective
    losses, example = losses_of(trainer)
    assert losses.terms["matching"].max() < 1e-9  # both are the teacher at 2.5
    x, t, prompts = example.batch.images, example.t[:, 0], example.batch.captions
    expected = objective.teacher.velocity(x, t, prompts, torch.full((len(t),), 2.5))
    cond, _ = objective.teacher.texts(prompts)
    with torch.no_grad():
        assert_agree(objective.critic.velocity(x, t, cond), expected, 1e-5)


@pytest.mark.parametrize(("steps", "scales"), [(1, [1, 1.29, 2.16]), (2, [1, 1.255, 2.02])])
def test_the_scale_that_is_matched_follows_the_teachers(teacher, steps, scales):
    found = [
        matching(teacher, steps, f"objective.guidance={scale}").objective.matched
        for scale in (1, 1.5, 3)
    ]
    assert found == pytest.approx(scales)


def test_a_teacher_without_a_null_prompt_can_be_matched_at_its_scale_1_alone(make_teacher):
    plain = make_teacher("data.caption_dropout=0", "sample.guidance=1")
    assert matching(plain, 2, "objective.matched_guidance=1")
    with pytest.raises(UserError, match="there is no null prompt"):
        matching(plain, 2, "objective.matched_guidance=2")


def test_it_goes_on_from_the_student_of_as_many_steps_or_of_more(teacher):
    with pytest.raises(UserError, match=r"none beside .*teacher; make one first, by --steps 4,"):
        student_config(teacher, 1, BRIEF, match=True)
    for steps in 4, 1:
        assert train(student_config(teacher, steps, QUICK)) == 0
    more = student_config(teacher, 2, BRIEF, match=True)
    assert more.train.init_from == str(teacher.with_name("teacher-4step"))
    with pytest.raises(UserError, match=r"none beside .*make one first, by --steps 8,"):
        student_config(teacher, 8, BRIEF, match=True)
    config = student_config(teacher, 1, BRIEF, match=True)
    assert config.objective.kind == "distribution_matching"
    assert config.resolved_output_dir.endswith("teacher-1step-matched")
    assert config.train.init_from == str(teacher.with_name("teacher-1step"))
    elsewhere = student_config(teacher, 1, [*BRIEF, "output_dir=elsewhere"], match=True)
    assert elsewhere.train.init_from == config.train.init_from
    own = f"output_dir={teacher}-own"
    assert train(student_config(teacher, 2, [*QUICK, own])) == 0
    after = student_config(teacher, 2, [*BRIEF, f"{own}-matched"], match=True)
    assert after.train.init_from == f"{teacher}-own"
    named = student_config(teacher, 2, [*BRIEF, f"train.init_from={teacher}-4step"], match=True)
    assert named.train.init_from.endswith("-4step")
    with pytest.raises(UserError, match=r"objective\.steps=3"):  # before what it begins as
        student_config(teacher, 2, ["objective.steps=3"], match=True)


def test_one_that_is_resumed_needs_the_first_one_no_more(teacher, tmp_path):
    assert train(student_config(teacher, 1, QUICK)) == 0
    assert train(student_config(teacher, 1, [*BRIEF, "train.steps=2"], match=True)) == 0
    shutil.rmtree(tmp_path / "teacher-1step")
    assert train(student_config(teacher, 1, BRIEF, match=True), resume="auto") == 0


def test_it_is_for_students_of_few_steps(teacher, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["distill", str(teacher), "--guidance", "--match"])
    assert ended.value.code == 2
    assert "give --steps N with it" in capsys.readouterr().err
