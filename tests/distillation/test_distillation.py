"""Students: they begin as their teacher, learn what it does, and refuse what can't be learned."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distillation.making import BRIEF, QUICK, some, trainer_of
from helpers import assert_agree, randomise, same
from PIL import Image
from planning.memory_profile import held_by

from fluxsmith.cli import main
from fluxsmith.config import read_config
from fluxsmith.data.images import to_uint8
from fluxsmith.distillation.students import student_config
from fluxsmith.distillation.teacher import Teacher
from fluxsmith.distillation.trajectories import SHARD, Recipe, TrajectoryStore
from fluxsmith.errors import UserError
from fluxsmith.flow.solvers import euler, uniform_grid
from fluxsmith.interop.open_pipeline import TextToImage
from fluxsmith.planning.forecast import Planner
from fluxsmith.planning.machine import Machine
from fluxsmith.planning.outline import Outline
from fluxsmith.randomness import generator
from fluxsmith.sampling import render
from fluxsmith.sampling.generate import Sampler
from fluxsmith.storage import checkpoint as checkpoints
from fluxsmith.training.recorder import Recorder, read_metrics
from fluxsmith.training.run import build_trainer, train

TIMES = 1.0, 0.75, 0.5, 0.25, 0.0
CONFIGS = Path(__file__).parents[2] / "configs"


def command(arguments: list[str]) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code or 0


def test_the_teacher_guides_each_row_by_its_own_scale(teacher):
    """Oracle: the guidance that sampling uses, one scale at a time."""
    found = Teacher(teacher)
    x, t, prompts = some(found.pipeline)
    scale = torch.tensor([1.0, 2.5, 4.0])
    ours = found.velocity(x, t, prompts, scale)
    sampler = Sampler(found.pipeline)
    for i, prompt in enumerate(prompts):
        cond = found.pipeline.encode_text([prompt])
        with torch.no_grad():
            theirs = sampler.guided_velocity(cond, float(scale[i]))(x[i : i + 1], t[i])
        assert_agree(ours[i : i + 1], theirs, 2e-5)


def test_a_student_of_guidance_begins_as_the_conditional_teacher_at_every_scale(teacher):
    trainer = trainer_of(teacher, None)
    student, found = trainer.pipeline, Teacher(teacher)
    x, t, prompts = some(student)
    cond = student.encode_text(prompts)
    with torch.no_grad():
        for scale in 1.0, 3.5:
            v = student.velocity(x, t, cond, scale)
            assert_agree(v, found.velocity(x, t, prompts, torch.ones(3)), 1e-5)


def test_a_dev_teacher_at_a_scale_is_a_plain_network(make_teacher):
    """The guidance input at one scale is a constant, which the student has in a bias."""
    dev = make_teacher("model.guidance_embed=true", "sample.guidance_method=embedded")
    trainer = trainer_of(dev, 4, "objective.guidance=3.5")
    student, found = trainer.pipeline, Teacher(dev)
    assert student.network.guidance_in is None
    x, t, prompts = some(student)
    with torch.no_grad():
        ours = student.velocity(x, t, student.encode_text(prompts))
    assert_agree(ours, found.velocity(x, t, prompts, torch.full((3,), 3.5)), 1e-5)


def test_what_is_known_already_has_no_loss(teacher):
    """Of the conditional teacher's own states at scale 1, before the first step."""
    plain = "objective.highest_guidance=1", "objective.noised_data=0.5", "sample.guidance=1"
    trainer = trainer_of(teacher, None, *plain)
    objective = trainer.objective
    example = objective.draw(trainer.next_batch(), generator(0, "test"))
    assert example.scale.eq(1).all()
    losses = objective.losses(objective.prepare(example))
    assert losses.total.max() < 1e-9


def test_states_for_guidance_are_of_every_kind(teacher):
    trainer = trainer_of(teacher, None, "train.batch_size=64", "objective.trajectories=256")
    batches = [
        trainer.objective.draw(trainer.loader.batch(step), generator(step, "test"))
        for step in range(8)
    ]
    scale = torch.cat([batch.scale for batch in batches])
    captions = [caption for batch in batches for caption in batch.captions]
    empty = torch.tensor([caption == "" for caption in captions])
    assert scale[empty].eq(1).all() and 0.04 < empty.float().mean() < 0.2
    assert 0.2 < scale.eq(1).float().mean() < 0.45  # a quarter, and those without a prompt
    assert scale.min() == 1 and 3.6 < scale.max() <= 4  # twice the teacher's
    t = torch.cat([batch.t for batch in batches])
    assert len(t.unique()) > 100 and t.max() == 1 and t.min() < 0.15


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_step_student_learns_where_its_own_steps_bring_it(teacher, steps):
    """The loss times the step is the distance of its Euler path from the teacher's states."""
    trainer = trainer_of(teacher, steps, "train.batch_size=8")
    randomise(trainer.pipeline, 0.02)  # no longer where the teacher is
    objective, batch = trainer.objective, trainer.next_batch()
    with torch.no_grad():
        example = objective.draw(batch, generator(0))
        losses = objective.losses(objective.prepare(example))
        cond = trainer.pipeline.encode_text(batch.captions)
        states = []
        euler(
            lambda x, t: trainer.pipeline.velocity(x, t, cond),
            batch.images[:, 0],
            uniform_grid(steps),
            lambda i, t, x: states.append(x),
        )
    every = (batch.images.shape[1] - 1) // steps
    for row in range(len(batch)):
        i = int(example.step[row])
        apart = states[i + 1][row] - batch.images[row, (i + 1) * every]
        assert_agree(losses.total[row], apart.abs().mean() * steps, 1e-5)
        assert losses.t[row] == 1 - i / steps


def test_trajectories_are_guided_a_tenth_more_than_a_student_is_to_draw(teacher):
    for scale, expected in (0.5, 0.5), (1, 1), (1.5, 1.55), (3, 3.2):
        recipe = trainer_of(teacher, 4, f"objective.guidance={scale}").objective.store.recipe
        assert recipe.lowest_scale == recipe.highest_scale == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("schedule", ["uniform", "flux", "shifted"])
def test_a_student_learns_at_the_times_that_it_is_drawn_at(teacher, schedule, steps):
    """Grids that do not nest get trajectories of their own, as finely solved."""
    keys = [f"sample.schedule={schedule}"]
    if schedule == "shifted":
        keys.append("sample.shift_terminal=0.1")
    trainer = trainer_of(teacher, steps, *keys)
    store = trainer.objective.store
    nested = steps == 1 or schedule != "shifted"
    kept = 4 if nested else steps
    assert len(store.grid) == kept + 1 and kept * store.recipe.between == 12
    drawn = trainer.config.sample.choice(steps, 16)
    assert_agree(store.grid[:: kept // steps], drawn, 1e-6)


def test_a_student_comes_nearer_to_its_teacher(teacher):
    """Trained on few trajectories it draws what its teacher draws of the same noise."""
    changes = "train.steps=150", "train.learning_rate=2e-3", "output_dir=" + str(teacher) + "-2"
    trainer = trainer_of(teacher, 2, *changes)
    prompts = ["three", "7", "nine", "0"]
    theirs = trainer.objective.beside(prompts, 5)

    def apart() -> float:
        ours = Sampler(trainer.pipeline).generate(prompts, seed=5)
        return float((ours - theirs).abs().mean())

    before = apart()
    for _ in range(150):
        trainer.train_step()
    after = apart()
    assert after < 0.9 * before


def test_trajectories_depend_on_their_number_alone(teacher, tmp_path):
    found = Teacher(teacher)
    recipe = Recipe(TIMES, 1, 1.0, 5.0, 0.25, 0.1, True)
    few = TrajectoryStore(found, recipe, SHARD, 0, str(tmp_path / "few"))
    many = TrajectoryStore(found, recipe, 3 * SHARD, 0, str(tmp_path / "many"))
    few.make()
    many.make()
    more = TrajectoryStore(found, recipe, 3 * SHARD, 0, str(tmp_path / "few"))
    more.make()  # goes on where `few` ended
    for index in 0, SHARD - 1, SHARD, 3 * SHARD - 1:
        a, b = more.rows([index]), many.rows([index])
        assert a.captions == b.captions and same([a.images, a.t, a.scale], [b.images, b.t, b.scale])
    assert not same(many.rows([0]).images, many.rows([1]).images)
    assert not same(many.rows([0]).t, many.rows([SHARD]).t)  # times of their own


@pytest.mark.parametrize("interval", [[0.0, 1.0], [0.2, 0.8]])
def test_the_teachers_states_are_its_solvers(teacher, tmp_path, interval):
    """Oracle: the pictures that sampling draws from the same noise with the same steps."""
    found = Teacher(teacher)
    sample = found.config.sample.model_copy(update={"guidance_interval": interval})
    found.pipeline.config = found.config.model_copy(update={"sample": sample})
    store = TrajectoryStore(found, Recipe(TIMES, 2, 3.0, 3.0), SHARD, 0, str(tmp_path / "cache"))
    store.make()
    batch = store.rows(range(5))
    drawn = found.pictures(batch.captions, store.seed, guidance=3.0, steps=8, solver="adams2")
    assert_agree(batch.images[:, -1].clamp(-1, 1), drawn, 4e-3)  # kept in float16


def test_what_was_made_is_not_made_again(teacher, tmp_path):
    found = Teacher(teacher)
    store = TrajectoryStore(found, Recipe(TIMES, 1, 2.0, 2.0), 2 * SHARD, 0, str(tmp_path))
    store.make()
    first, second = sorted(store.folder.iterdir())
    second.unlink()
    first.write_bytes(first.read_bytes()[:-1])
    before = first.stat().st_mtime_ns
    again = TrajectoryStore(found, Recipe(TIMES, 1, 2.0, 2.0), 2 * SHARD, 0, str(tmp_path))
    again.make()
    assert second.is_file() and first.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"can't be read.*delete it"):
        again.rows([0])


@pytest.mark.parametrize(("steps", "match"), [(None, False), (2, False), (1, True)])
def test_a_resumed_student_is_the_student(teacher, tmp_path, steps, match):
    """And has its critic, where it is matched."""
    changes = ["train.checkpoint_every=2", "train.schedule=constant", "train.tail=null"]
    changes += [*BRIEF, "train.init_from=null"] if match else QUICK
    whole = student_config(teacher, steps, [*changes, f"output_dir={tmp_path / 'whole'}"], match)
    assert train(whole) == 0
    parted = [*changes, f"output_dir={tmp_path / 'parted'}"]
    assert train(student_config(teacher, steps, [*parted, "train.steps=2"], match)) == 0
    resumed = student_config(teacher, steps, parted, match)
    assert train(resumed, resume="auto") == 0
    a, b = (checkpoints.load(tmp_path / name / "diffusion-4.pt") for name in ("whole", "parted"))
    for part in "model", "ema", "optimizer", "data":
        assert same(a[part], b[part])
    assert ("objective" in a) == match and same(a.get("objective"), b.get("objective"))


def test_a_batch_in_pieces_without_some_of_the_steps_teaches_the_same(teacher):
    """A piece of one image learns one of four steps; the gradients are those of the whole."""
    found = []
    for pieces in 1, 8:
        trainer = trainer_of(teacher, 4, f"train.accumulate={pieces}", "train.grad_clip=0")
        trainer.optimiser.step = lambda: None
        trainer.optimiser.zero_grad = lambda **_: None
        trainer.train_step()
        found.append({name: p.grad for name, p in trainer.pipeline.named_parameters()})
    assert any(whole.abs().max() > 1e-3 for whole in found[0].values())
    for name, whole in found[0].items():
        assert_agree(found[1][name], whole, within=1e-3 * float(whole.abs().max()) + 1e-7)


def test_the_commands_of_a_few_step_student(teacher, tmp_path, capsys):
    """From the teacher to a picture; the config that is left behind resumes the run."""
    run = tmp_path / "teacher-2step"
    assert command(["distill", str(teacher), "--steps", "2", *QUICK]) == 0
    assert (run / "sample-4.png").is_file()
    told = checkpoints.load(run / "diffusion-4.pt")
    assert told["metadata"]["teacher"] == Teacher(teacher).digest
    assert told["metadata"]["method"] == "trajectory_distillation"
    assert told["metadata"]["evaluations"] == told["config"]["sample"]["steps"] == 2
    config = str(run / "config.yaml")
    assert command(["train", config, "--resume", "auto", "train.steps=6"]) == 0
    assert (run / "diffusion-6.pt").is_file()
    out = tmp_path / "out"
    assert command(["sample", str(run), "--prompt", "seven", "--out", str(out)]) == 0
    (picture,) = out.glob("*/0000.png")
    with Image.open(picture) as image:
        assert (image.info["steps"], image.info["guidance"]) == ("2", "1.0")
    assert command(["sample", str(run), "--prompt", "seven", "--guidance", "3"]) == 2
    assert "has its guidance in its weights" in capsys.readouterr().err


def test_the_grid_shows_the_teacher_beside_its_student(teacher):
    trainer = trainer_of(teacher, None, "sample.num_samples=3")
    trainer.folder.mkdir()
    Recorder(trainer.folder, 0, print, []).write_samples(7, *trainer.draw_samples())
    path = trainer.folder / "sample-7.png"
    with Image.open(path) as picture:
        width = picture.width
    pairs = 3  # the prompts; a row holds up to four pairs
    assert width > 2 * pairs * render.CELL
    images, prompts, _, beside = trainer.draw_samples()
    teachers = trainer.objective.teacher.pictures(prompts, trainer.config.seed)
    assert torch.equal(beside, to_uint8(teachers)) and not torch.equal(beside, images)


def test_a_student_needs_no_data_where_it_learns_from_trajectories_alone(
    teacher, tmp_path, monkeypatch
):
    """Its teacher's data set is not there."""
    checkpoint = checkpoints.load(teacher / "diffusion-1.pt")
    checkpoint["config"]["data"] |= {"source": "mnist", "path": str(tmp_path / "nowhere")}
    checkpoints.save(teacher / "diffusion-2.pt", checkpoint)
    for steps, more in (4, ()), (None, ("objective.noised_data=0",)):
        trainer = trainer_of(teacher, steps, *more)
        trainer.train_step()


def test_a_student_of_fewer_steps_begins_as_one_of_more(teacher):
    """Of the same teacher at the same scale; init_from=null asks for the teacher itself."""
    assert student_config(teacher, 2).train.init_from is None
    assert train(student_config(teacher, 4, QUICK)) == 0
    four = str(teacher.with_name("teacher-4step"))
    assert student_config(teacher, 2, QUICK).train.init_from == four
    assert student_config(teacher, 1, QUICK).train.init_from == four
    assert student_config(teacher, 8, QUICK).train.init_from is None
    for change in "train.init_from=null", "objective.guidance=3":
        assert student_config(teacher, 2, [*QUICK, change]).train.init_from is None
    student = trainer_of(teacher, 2).pipeline
    learned = checkpoints.load(checkpoints.newest(Path(four)))["ema"]
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, learned[name]), name


def test_a_student_may_be_a_lora_on_its_teacher(teacher, tmp_path):
    """It begins as the teacher, whose weights are there once for both, and its checkpoint holds the
    difference alone."""
    lora = "train.adapter={kind: lora, rank: 2, targets: [attention]}"
    trainer = trainer_of(teacher, 2, lora)
    frozen = {name: p for name, p in trainer.pipeline.named_parameters() if not p.requires_grad}
    held = {p.data_ptr() for p in trainer.objective.teacher.pipeline.parameters()}
    assert frozen and {p.data_ptr() for p in frozen.values()} == held
    x, t, prompts = some(trainer.pipeline)
    found = Teacher(teacher)
    with torch.no_grad():
        ours = trainer.pipeline.velocity(x, t, trainer.pipeline.encode_text(prompts))
    assert_agree(ours, found.velocity(x, t, prompts, torch.ones(3)), 1e-5)
    config = student_config(teacher, 2, [*QUICK, lora])
    assert train(config) == 0
    path = tmp_path / "teacher-2step" / "diffusion-4.pt"
    assert path.stat().st_size < (teacher / "diffusion-1.pt").stat().st_size / 4
    drawn = command(["sample", str(path), "--prompt", "3", "--out", str(tmp_path / "out")])
    assert drawn == 0


def test_a_lora_student_of_a_dev_teacher_begins_as_it_is_at_one_scale(make_teacher, tmp_path):
    """And is drawn from its checkpoint, resumed and exported with the same base."""
    dev = make_teacher("model.guidance_embed=true", "sample.guidance_method=embedded")
    own = "train.adapter={kind: lora, rank: 2}", "objective.guidance=3.5"
    student, found = trainer_of(dev, 4, *own).pipeline, Teacher(dev)
    x, t, prompts = some(student)
    with torch.no_grad():
        ours = student.velocity(x, t, student.encode_text(prompts))
    assert_agree(ours, found.velocity(x, t, prompts, torch.full((3,), 3.5)), 1e-5)
    config = student_config(dev, 4, [*QUICK, *own, "train.checkpoint_every=2"])
    assert train(config) == 0
    run = tmp_path / "teacher-4step"
    whole = checkpoints.load(run / "diffusion-4.pt")
    (run / "diffusion-4.pt").unlink()
    assert train(config, resume="auto") == 0
    assert same(checkpoints.load(run / "diffusion-4.pt")["ema"], whole["ema"])
    assert whole["metadata"]["base"]["path"] == str(dev / "diffusion-1.pt")
    out = tmp_path / "whole.safetensors"
    assert command(["export", str(run), str(out), "--format", "bfl"]) == 0
    assert command(["import", str(out), str(tmp_path / "whole.pt")]) == 0
    drawn = [
        TextToImage.from_checkpoint(path, "cpu").generate(["7"], seed=3)
        for path in (run / "diffusion-4.pt", tmp_path / "whole.pt")
    ]
    assert torch.equal(*drawn)


def test_a_lora_student_of_guidance_learns_its_input(teacher, tmp_path, capsys):
    """Which begins at zero, so layers of it must be among those that are trained."""
    typed = ["distill", str(teacher), "--guidance", *QUICK, "train.learning_rate=0.01"]
    assert command([*typed, "train.adapter={kind: lora, rank: 2}"]) == 2
    assert "name embedders" in capsys.readouterr().err
    own = "train.adapter={kind: lora, rank: 2, targets: [attention, embedders]}"
    student, found = trainer_of(teacher, None, own).pipeline, Teacher(teacher)
    x, t, prompts = some(student)
    with torch.no_grad():
        v = student.velocity(x, t, student.encode_text(prompts), 3.5)
    assert_agree(v, found.velocity(x, t, prompts, torch.ones(3)), 1e-5)
    assert command([*typed, own, "train.ema_decay=0.5"]) == 0
    learned = TextToImage.from_checkpoint(tmp_path / "teacher-dev" / "diffusion-4.pt", "cpu")
    with torch.no_grad():
        cond = learned.encode_text(prompts)
        low, high = (learned.velocity(x, t, cond, scale) for scale in (1.0, 5.0))
    assert (low - high).abs().mean() > 1e-4


def test_another_teacher_is_refused_on_resuming(teacher, capsys):
    typed = ["distill", str(teacher), "--steps", "2", *QUICK]
    assert command(typed) == 0
    contents = checkpoints.load(teacher / "diffusion-1.pt")
    contents["ema"] = {name: weight + 0.01 for name, weight in contents["ema"].items()}
    checkpoints.save(teacher / "diffusion-3.pt", contents)
    made = sorted(teacher.glob("trajectories/*"))
    assert command([*typed, "--resume", "auto", "train.steps=8"]) == 2
    assert "learned from another than" in capsys.readouterr().err
    assert sorted(teacher.glob("trajectories/*")) == made


@pytest.mark.slow
def test_a_full_disk_loses_no_trajectory(teacher):
    """A limit on the size of files, as a disk that is full fails: in the middle of a shard."""
    first = ["distill", str(teacher), "--steps", "2", *QUICK]
    assert command([*first, f"output_dir={teacher}-first"]) == 0
    (shard,) = teacher.glob("trajectories/*/*.safetensors")
    before = shard.read_bytes()
    typed = [*first, "objective.trajectories=128"]
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    run = f"from fluxsmith.cli import main; main({typed!r})"
    found = subprocess.run([sys.executable, "-c", full + run], capture_output=True, text=True)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert re.search(r"can't write .*00001.safetensors: .*File too large", found.stderr)
    assert [*teacher.glob("trajectories/*/*.safetensors")] == [shard]
    assert shard.read_bytes() == before
    assert subprocess.run([sys.executable, "-c", run], capture_output=True).returncode == 0


@pytest.mark.parametrize(("name", "steps"), [("dev", None), ("4step", 4)])
@pytest.mark.parametrize("of", ["digits/tiny", "mnist/small"])
def test_the_configs_of_students_are_what_distill_makes(of, name, steps, tmp_path, monkeypatch):
    config = read_config(CONFIGS / f"image/{of}.yaml")
    shipped = read_config(CONFIGS / f"image/{of}-{name}.yaml")
    monkeypatch.chdir(tmp_path)
    run, seen = Path(f"output/image/{of}"), config.train.steps * config.train.batch_size
    run.mkdir(parents=True)
    told = {"format": checkpoints.FORMAT, "config": config.model_dump(), "images_seen": seen}
    empty = {key: {} for key in checkpoints.KEYS} | told | {"step": config.train.steps}
    checkpoints.save(run / f"diffusion-{config.train.steps}.pt", empty)
    assert student_config(run, steps).model_dump() == shipped.model_dump()


def mistakes(make_teacher, tmp_path):
    """What is typed, and what the line must say."""
    teacher = make_teacher(name="good")
    never_null = make_teacher("data.caption_dropout=0", name="never-null")
    student = tmp_path / "good-2step"
    assert command(["distill", str(teacher), "--steps", "2", *QUICK]) == 0
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "diffusion-1.pt").write_bytes((teacher / "diffusion-1.pt").read_bytes()[:-100])
    good = [str(teacher), "--steps", "4"]
    scale = [str(teacher), "--guidance"]
    return [
        ([str(tmp_path / "none"), "--guidance"], "no checkpoint"),
        ([str(torn), "--guidance"], "not a whole checkpoint"),
        ([str(teacher)], "give --guidance or --steps"),
        ([str(teacher), "--guidance", "--steps", "4"], "give --guidance or --steps"),
        ([str(teacher), "--steps", "0"], "--steps 0: must be one of 1, 2, 4, 8"),
        ([str(teacher), "--steps", "3"], "--steps 3: must be one of"),
        ([str(teacher), "--steps", "1000"], "--steps 1000: must be one of"),
        ([str(student), "--steps", "1"], "a student of few steps, which can't teach"),
        ([str(student), "--steps", "1", "--match"], "a student of few steps, which can't teach"),
        ([str(student), "--guidance"], "a student of few steps, which can't teach"),
        ([str(never_null), "--guidance"], "data.caption_dropout=0.*no null prompt"),
        ([str(never_null), "--steps", "4"], "data.caption_dropout=0.*no null prompt"),
        ([*scale, "objective.lowest_guidance=0.5"], "objective.lowest_guidance=0.5"),
        ([*scale, "objective.lowest_guidance=6"], "highest_guidance=4.0: is below"),
        ([*scale, "objective.noised_data=2"], "objective.noised_data=2"),
        ([*scale, "model.guidance_embed=false"], "guidance_embed"),
        ([*scale, "data.image_size=32"], "data.image_size=32"),
        ([*scale, "sample.guidance=7"], "sample.guidance=7.0: this student learns scales of 1 and"),
        ([*scale, "flow.prediction=data"], "flow.prediction=data: .* flow.prediction=velocity"),
        ([*good, "model.theta=500"], "model.theta=500.0: .* model.theta=10000.0"),
        ([*good, "sample.guidance=2"], "sample.guidance=2.0.*nothing to guide with"),
        ([*good, "objective.steps=3"], "objective.steps=3"),
        ([*good, "objective.trajectories=0"], "objective.trajectories=0"),
    ]


def test_a_teacher_that_needs_a_picture_is_refused(teacher):
    contents = checkpoints.load(teacher / "diffusion-1.pt")
    contents["config"]["model"]["conditioning"] = "kontext"
    checkpoints.save(teacher / "diffusion-2.pt", contents)
    with pytest.raises(UserError, match="kontext model; only models of text alone"):
        student_config(teacher, 4)


def test_mistakes_get_a_line(make_teacher, tmp_path, capsys):
    for typed, line in mistakes(make_teacher, tmp_path):
        capsys.readouterr()
        assert command(["distill", *typed]) == 2, typed
        told = capsys.readouterr().err
        assert "Traceback" not in told and len(told.splitlines()) <= 2
        assert re.search(line, told), (typed, told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "match"),
    [(4, False), (None, False), (1, True), (2, True)],
    ids=["few steps", "guidance", "one step, matched", "two steps, matched"],
)
def test_a_plan_counts_the_passes_and_the_memory_of_a_student(teacher, steps, match):
    begun = ["train.init_from=null"] if match else []
    trainer = trainer_of(teacher, steps, "train.batch_size=64", *begun, match=match)
    pictures = []
    config, objective = trainer.config, trainer.objective
    others = objective.others or (objective.teacher.pipeline,)
    for pipeline in (trainer.pipeline, *others):
        pipeline.network.img_in.register_forward_pre_hook(
            lambda _, given: pictures.append(len(given[0]))
        )
    for _ in range(8):
        trainer.train_step()
    outline = Outline.of(config)
    expected = outline.passes + outline.cost.passes
    assert sum(pictures) / 8 / 64 == pytest.approx(expected, rel=0.05)

    def real():
        again = build_trainer(config, torch.device("cpu"))
        for _ in range(2):
            again.train_step()

    del trainer, objective, others
    real()  # what comes once and stays
    machine = Machine("described", 1, 2**40, gpu=False, here=False)
    memory = Planner(outline, machine).memory(outline.config)
    assert memory.pop("teacher") == pytest.approx(memory["average"], rel=0.01)
    planned = sum(memory.values())
    # The teacher's weights lie in its file, of which the profiler counts every byte.
    mapped = (teacher / "diffusion-1.pt").stat().st_size
    assert planned + mapped == pytest.approx(held_by(real), rel=0.03)


@pytest.mark.parametrize("steps", [None, 1])
def test_a_lora_run_teaches_what_it_draws(teacher, toy, tmp_path, steps):
    run = tmp_path / "style"
    settings = (f"train.init_from={teacher}", "train.adapter.kind=lora", "train.adapter.rank=4")
    assert train(toy(*settings, "train.steps=20", f"output_dir={run}", "name=style")) == 0
    config = student_config(run, steps, QUICK)
    assert config.train.adapter.kind == "none"
    theirs = Teacher(run).pipeline
    expected = TextToImage.from_checkpoint(run / "diffusion-20.pt").generate(["3"], steps=2, seed=1)
    assert_agree(Sampler(theirs).generate(["3"], steps=2, seed=1), expected, within=1e-5)
    student = build_trainer(config, torch.device("cpu")).pipeline
    assert same(dict(student.text.state_dict()), dict(theirs.text.state_dict()))
    assert train(config) == 0


@pytest.mark.parametrize("settings", [("objective.noised_data=1",), ("train.accumulate=8",)])
def test_dev_learns_from_any_share_of_data_in_pieces_of_any_size(teacher, settings):
    """Data alone, and pieces of one image, half of which are data on average."""
    config = student_config(teacher, None, [*QUICK, *settings])
    assert train(config) == 0
    objective = build_trainer(config, torch.device("cpu")).objective
    objective.store.make()
    draw, batch = torch.Generator().manual_seed(0), build_trainer(config, torch.device("cpu"))
    one = batch.next_batch().at(range(1))
    states = [objective.draw(one, draw) for _ in range(64)]
    of_data = sum(state.captions == one.captions for state in states)
    if "objective.noised_data=1" in settings:
        assert of_data == 64
    else:
        assert 16 < of_data < 48


@pytest.mark.parametrize(
    ("steps", "change", "says"),
    [
        (4, "objective.steps=2", "a student of objective.steps=2 draws with 2; set sample.steps=2"),
        (4, "sample.steps=2", "sample.steps=2: a student of objective.steps=4 draws with 4"),
        (4, "sample.guidance_method=cfg", "draws with none; set sample.guidance_method=none"),
        (4, "sample.solver=heun", "draws with euler; set sample.solver=euler"),
        (None, "sample.guidance_method=cfg", "set sample.guidance_method=embedded"),
        (None, "data.bucket_step=8 data.buckets=auto", "or objective.noised_data=0"),
    ],
)
def test_a_student_is_drawn_as_it_is_trained(teacher, steps, change, says):
    with pytest.raises(UserError, match=re.escape(says)):
        train(student_config(teacher, steps, [*QUICK, *change.split()]))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(None, "objective.noised_data=0"), (2, "train.log_every=1")])
def test_a_student_without_data_is_not_looked_at_as_one_with_it(teacher, settings):
    steps, more = settings
    plan = [*QUICK, more, "train.diagnose=true", "train.steps=120", "train.sample_every=0"]
    config = student_config(teacher, steps, plan)
    assert train(config) == 0
    records = read_metrics(Path(config.resolved_output_dir) / "metrics.jsonl")
    assert records and not any("average_step" in record for record in records)


def test_a_student_of_another_teacher_is_not_begun_from(make_teacher, teacher):
    assert train(student_config(teacher, 4, QUICK)) == 0
    assert student_config(teacher, 2, QUICK).train.init_from
    again = make_teacher("seed=6", name="other")
    shutil.rmtree(teacher)
    again.rename(teacher)
    assert student_config(teacher, 2, QUICK).train.init_from is None


def test_a_student_that_was_stopped_or_is_damaged_is_not_begun_from(teacher):
    assert train(student_config(teacher, 4, QUICK)) == 0
    whole = teacher.with_name("teacher-4step") / "diffusion-4.pt"
    checkpoints.save(whole.with_name("diffusion-3.pt"), checkpoints.load(whole) | {"step": 3})
    whole.write_bytes(whole.read_bytes()[:1000])
    assert student_config(teacher, 2, QUICK).train.init_from is None
    whole.unlink()
    assert student_config(teacher, 2, QUICK).train.init_from is None


@pytest.mark.parametrize(("scale", "highest"), [(1, 3), (7, 14)])
def test_scales_are_learned_on_both_sides_of_the_teachers(make_teacher, scale, highest):
    config = student_config(make_teacher(f"sample.guidance={scale}"), None, QUICK)
    assert config.objective.highest_guidance == highest
    assert config.sample.guidance == scale


@pytest.mark.parametrize(
    ("steps", "asked", "told"),
    [
        (2, "--steps 2", ""),
        (2, "--steps 8", "steps=8 solver=euler: this student learned to draw in 2 steps of euler"),
        (2, "--solver heun", "steps=2 solver=heun: this student learned"),
        (None, "--guidance 4", ""),
        (None, "--guidance 8", "guidance=8.0: this student learned scales of 1 and of 1.0 to 4.0"),
    ],
)
def test_what_a_student_did_not_learn_is_said(teacher, tmp_path, capsys, steps, asked, told):
    assert train(student_config(teacher, steps, QUICK)) == 0
    run = str(teacher.with_name("teacher-dev" if steps is None else "teacher-2step"))
    capsys.readouterr()
    drawn = ["sample", run, "--prompt", "7", "--out", str(tmp_path / "drawn"), *asked.split()]
    assert command(drawn) == 0
    assert told in (said := capsys.readouterr().err) and bool(said) == bool(told)


@pytest.mark.slow
def test_a_comparison_says_what_a_student_did_not_learn(teacher, capsys):
    assert train(student_config(teacher, 2, QUICK)) == 0
    both = ["compare", str(teacher.with_name("teacher-2step")), str(teacher)]
    for asked, told in (("", ""), ("--steps 8", "this student learned to draw in 2 steps")):
        capsys.readouterr()
        assert command([*both, "--num-samples", "20", *asked.split()]) == 0
        assert told in (said := capsys.readouterr().err) and bool(said) == bool(told)


@pytest.mark.slow
def test_a_sweep_leaves_a_student_its_own_steps(teacher, tmp_path):
    assert train(student_config(teacher, 2, QUICK)) == 0
    run = str(teacher.with_name("teacher-2step"))
    assert command(["evaluate", run, "--metrics", "sweep", "--num-samples", "20"]) == 0
    drawn = ["sample", run, "--steps", "auto", "--prompt", "7", "--out", str(tmp_path / "drawn")]
    assert command(drawn) == 0
    (picture,) = (tmp_path / "drawn").glob("*.png")
    with Image.open(picture) as image:
        assert (image.text["steps"], image.text["solver"]) == ("2", "euler")
