"""Composition is measured rightly: real pictures are right, and each part goes wrong on its own."""

import pytest
import torch
from evaluation_models import DIGITS

from fluxsmith import Pipeline
from fluxsmith.config.reading import build_config
from fluxsmith.data.captions import DIGIT_CLASSES
from fluxsmith.data.colored_digits import COLORS, PALETTE, captions, paint
from fluxsmith.data.imageset import ImageSet
from fluxsmith.errors import UserError
from fluxsmith.evaluation import classifier
from fluxsmith.evaluation.evaluators import EVALUATORS
from fluxsmith.evaluation.evaluators.composition import colors, luminance, triples_of
from fluxsmith.evaluation.samples import Reference, Samples, Settings
from fluxsmith.sampling.generate import Sampler

HELD_OUT = [["red", 7], ["blue", 3]]
COLORED = DIGITS | {
    "data": {
        "source": "colored-digits", "image_size": 16, "channels": 3, "resize": "stretch",
        "hold_out": HELD_OUT,
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(classifier, "UPDATES", (25, 25))  # a quick one
        yield Reference(build_config(COLORED, "test"))


class Painter(Sampler):
    """Draws test images of the digit, ink and paper asked for, or as `wrong` turns them."""

    def __init__(self, pictures: ImageSet, wrong=lambda digit, ink, paper: (digit, ink, paper)):
        super().__init__(Pipeline.build(build_config(COLORED, "test")))
        inks = range(len(COLORS))
        self.meant = {
            caption: (d, i, p)
            for d in range(10) for i in inks for p in inks if i != p
            for caption in captions(d, i, p)
        }  # fmt: skip
        self.rows = {}
        for row, label in enumerate(pictures.labels.tolist()):
            self.rows.setdefault(pictures.captions[label], row)
        self.pictures, self.wrong = pictures, wrong

    def generate(self, prompts, **_):
        shown = [captions(*self.wrong(*self.meant[prompt])) for prompt in prompts]
        known = [ways if ways in self.rows else next(iter(self.rows)) for ways in shown]
        images = self.pictures.images[[self.rows[ways] for ways in known]]
        return images.float() / 127.5 - 1


def measured(sampler, reference, n=60):
    samples = Samples(sampler, reference, Settings(num_samples=n))
    return EVALUATORS["composition"].measure(samples)


def test_colours_of_real_pictures_are_read_without_a_mistake(colored):
    data = colored.train
    ink, paper = colors(data.images)
    wanted = triples_of([data.captions[label][0] for label in data.labels.tolist()])
    assert torch.equal(ink, wanted[:, 1])
    assert torch.equal(paper, wanted[:, 2])


def test_luminance_forgets_the_colours_and_which_of_them_is_lighter(colored):
    grey = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    grey[:, :, 3:5, 3:5] = 255
    one = luminance(paint(grey, torch.tensor([0, 4]), torch.tensor([7, 3])))
    assert torch.equal(one, grey)


def test_right_pictures_score_as_test_images_do_and_wrong_ones_by_their_part(colored):
    right = measured(Painter(colored.train), colored)
    assert right["trained"]["all"] == right["trained"]["digit"] > 0.6
    assert right["trained"]["ink"] == right["trained"]["paper"] == 1
    assert right["test"]["samples"] == len(colored.test)
    assert [pair["pair"] for pair in right["pairs"]] == ["red 7", "blue 3"]

    swapped = Painter(colored.train, lambda digit, ink, paper: (digit, paper, ink))
    found = measured(swapped, colored)["trained"]
    assert max(found["ink"], found["paper"]) < 0.03  # a swap may be a pair that is held out
    assert found["digit"] > 0.6


def test_it_is_for_coloured_digits_alone():
    sampler = Sampler(Pipeline.build(build_config(DIGITS, "test")))
    samples = Samples(sampler, Reference(sampler.pipeline.config), Settings(num_samples=4))
    with pytest.raises(UserError, match=r"is for data\.source=colored-digits"):
        EVALUATORS["composition"].measure(samples)


def test_the_table_shows_every_part(colored):
    figures = EVALUATORS["composition"].figures(measured(Painter(colored.train), colored))
    assert [figure.name for figure in figures] == ["Composition", "Composition of held-out pairs"]
    assert all(figure.floor for figure in figures)


def test_classes_of_coloured_digits_are_the_digits(colored):
    assert colored.class_names == DIGIT_CLASSES.names
    prompts = dict(colored.prompts)
    assert prompts["a red six on blue"] == prompts["on blue, a red six"] == 6
    assert "a red seven on blue" not in prompts
    assert PALETTE.keys() >= set(COLORS)


class Editor(Sampler):
    """Gives the test pictures as the data has them, or leaves them as they were."""

    def __init__(self, config, images):
        super().__init__(Pipeline.build(config))
        self.images = images

    def generate(self, prompts, *, first_index=0, **_):
        return self.images[first_index : first_index + len(prompts)].float() / 127.5 - 1


def test_edits_are_held_to_the_pictures_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "UPDATES", (25, 25))
    data = COLORED["data"] | {"edits": True}
    model = DIGITS["model"] | {"conditioning": "kontext"}
    config = build_config(COLORED | {"data": data, "model": model}, "test")
    reference = Reference(config)
    right = measured(Editor(config, reference.test.images), reference, n=len(reference.test))
    assert right["trained"]["all"] == right["test"]["all"] > 0.5
    left = measured(Editor(config, reference.test.references), reference, n=len(reference.test))
    assert left["trained"]["ink"] < 0.01
    assert left["trained"]["paper"] == right["trained"]["paper"] > 0.99
    assert left["held_out"] is None
