"""What is said where training goes wrong, and that nothing is where it goes well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.spec import FieldSpec
from mnif_nerf.latents import watch as watch_module
from mnif_nerf.latents.meta import PointObjective
from mnif_nerf.latents.model import Stage1Model
from mnif_nerf.latents.optimizer_settings import optimizer_settings
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.latents.watch import TrainingWatch
from mnif_nerf.modalities.grid_training import GridTask
from mnif_nerf.rendering.batch import PointBatch

INSTANCES = 4


class Stripes:
    """Four signals of one coordinate: sines of four frequencies."""

    def draw(self, step: int) -> PointBatch:
        points = 2 * torch.rand(INSTANCES, 1, 64, generator=torch.Generator().manual_seed(step)) - 1
        frequencies = torch.arange(1, INSTANCES + 1).view(-1, 1, 1)
        return PointBatch(torch.arange(INSTANCES), points, torch.sin(3 * frequencies * points))

    def fixed(self, instances: Tensor) -> PointBatch:
        return self.draw(0)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_STEPS_BETWEEN_CHECKS", 40)


def train(steps: int, field_lr: float = 1e-3, latent_lr: float = 1e-2) -> list[str]:
    """What is said in so many steps."""
    said: list[str] = []
    spec = FieldSpec(1, 1, 16, 1, 4, 4, w0=6.0, head="signed", parametrization="scaled")
    model = Stage1Model(spec, [str(n) for n in range(INSTANCES)], GridTask())
    settings = optimizer_settings(field_lr, 3e-3, latent_lr, 20)
    optimizers = OptimizerGroups.from_settings(model.parameter_groups(), settings, 100_000)
    Stage1Trainer(model, Stripes(), optimizers, warn=said.append).train(0, steps)
    return said


def test_nothing_is_said_of_training_that_goes_well() -> None:
    assert train(330) == []


def test_a_loss_that_is_no_number_ends_training_within_a_hundred_steps() -> None:
    """On a GPU nobody else looks before the next checkpoint."""
    with pytest.raises(MNIFError, match=r"training has diverged at step 99 \(latents are not finite\)"):
        train(150, field_lr=float("inf"))


def test_latents_that_make_no_difference_are_told_once() -> None:
    (sentence,) = train(150, latent_lr=1e-12)
    assert sentence.startswith("step 60: latents make no difference (loss 0.")
    assert "`projection`" in sentence


@pytest.mark.parametrize(("after", "said"), [(0.9, 0), (1.5, 1)])
def test_a_loss_that_rises_and_stays_is_told_once(after: float, said: int) -> None:
    sentences: list[str] = []
    watch = TrainingWatch(sentences.append)
    for step in range(300):
        watch.loss(step, torch.tensor(2.0 - step / 300))  # falls to 1
    assert sentences == []
    for step in range(300, 420):
        watch.loss(step, torch.tensor(1.17 * after))
    watch.loss(420, torch.tensor(0.0))
    assert sentences == []  # one window might be chance
    for step in range(421, 1000):
        watch.loss(step, torch.tensor(1.17 * after))
    assert len(sentences) == said
    assert all("step 499: the loss has risen from 1.17 to 1.7" in sentence for sentence in sentences)


def test_a_latent_is_not_blamed_before_it_was_trained() -> None:
    sentences: list[str] = []
    watch = TrainingWatch(sentences.append)
    model = Stage1Model(FieldSpec(1, 1, 8, 1, 2, 3, head="signed"), ["a", "b", "c", "d"], GridTask())
    objective = PointObjective(model.field, Stripes().draw(0))
    for step, visits in ((600, 3.0), (1000, 5.0), (1400, 19.0)):
        watch.latents(step, objective, torch.zeros(INSTANCES, 3), visits)
    assert sentences == []
    for step in (1800, 2200):
        watch.latents(step, objective, torch.zeros(INSTANCES, 3), 21.0)
    assert len(sentences) == 1


def test_a_run_that_stands_far_above_what_it_was_is_broken() -> None:
    """Short runs by their first step, long ones by the least mean of a hundred steps."""
    for losses, broken in (
        ([1.0, *[0.9] * 20], False),
        ([1.0, *[5.0] * 20], True),
        ([1.0, *[float("nan")] * 20], True),
        ([1.0, 9.0, 9.0], False),  # too few to tell
        ([1.0] * 100 + [2.0] * 200, True),
        ([1.0] * 100 + [2.0] * 200 + [0.9] * 100, False),  # it came down again
    ):
        watch = TrainingWatch(lambda text: None)
        for step, loss in enumerate(losses):
            watch.loss(step, torch.tensor(loss))
        assert bool(watch.broken) == broken
        assert not broken or "the loss has risen from 1 to" in watch.broken
