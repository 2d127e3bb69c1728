"""The logic behind the viewer's controls: what is shown and why, and that a refused change changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_image_model, tiny_model, tiny_voxel_model

from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Wish
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.viewer import latent_browser as walks
from mnif_nerf.viewer.directions import POSITION_STEP, REACH, Directions
from mnif_nerf.viewer.latent_browser import LatentWalk
from mnif_nerf.viewer.saving import export_object, free_path, save_latent


@pytest.fixture
def walk(pipe: MNIFPipeline) -> LatentWalk:
    return LatentWalk(pipe, "run mnif-train-prior.")


# ------------------------------------------------------------------------------------------------------ directions


def test_directions_are_those_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(500, 4, generator=generator) * torch.tensor([0.1, 3.0, 1.0, 0.01]) + 7
    directions = Directions.from_latents(latents, 3)
    assert directions.basis.abs().argmax(dim=0).tolist() == [1, 2, 0]
    assert directions.basis.shape == (4, 3)
    torch.testing.assert_close(directions.scale, latents.std(dim=0)[[1, 2, 0]], rtol=0.05, atol=0)
    torch.testing.assert_close(directions.basis.T @ directions.basis, torch.eye(3), atol=1e-5, rtol=0)
    assert (directions.basis.max(dim=0).values > 0.9).all()
    # A step along a direction moves the position by as much, and no other.
    moved = directions.mean + directions.offset([0.5, -1.0, 0.0])
    assert directions.positions(moved) == (0.5, -1.0, 0.0)


def test_positions_are_clipped_and_rounded_to_what_a_slider_can_say() -> None:
    latents = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    directions = Directions.from_latents(latents, 5)
    assert len(directions.scale) == 2
    assert directions.positions(torch.tensor([100.0, 0.0]))[0] == REACH
    (first, second) = directions.positions(torch.tensor([0.333, 9.0]))
    assert first == pytest.approx(round(0.333 / 2**0.5 / POSITION_STEP) * POSITION_STEP)
    assert second == 0.0, "the latents do not differ along it"
    assert not directions.flat
    assert Directions.from_latents(torch.ones(3, 2), 2).flat


# ---------------------------------------------------------------------------------------------------------- sources


def test_a_walk_starts_at_a_training_instance_with_two_ends_to_interpolate_between(pipe: MNIFPipeline) -> None:
    walk = LatentWalk(pipe, instance=3)
    assert walk.row == 3
    assert torch.equal(walk.latent, pipe.latents[3])
    assert walk.shown == "#3 car_03"
    assert walk.nearest == "itself"
    assert walk.settings.first == "1: car_03"
    distances = (pipe.latents - pipe.latents[3]).norm(dim=1)
    assert walk.settings.second == f"2: {pipe.names[int(distances.argmax())]}"
    walk.change(source=walks.INTERPOLATION, mix=1.0)
    assert torch.equal(walk.latent, pipe.latents[int(distances.argmax())])


def test_drawing_gives_what_mnif_sample_gives_for_the_seed_and_then_the_next(walk: LatentWalk) -> None:
    walk.draw()
    assert (walk.settings.source, walk.settings.seed) == (walks.GENERATED, 0)
    assert torch.equal(walk.latent, walk.pipe.sample_latents(1, seed=0, steps=30)[0])
    assert walk.row is None
    assert walk.nearest.startswith(walk.pipe.nearest(walk.latent)[0])
    walk.draw()
    assert walk.settings.seed == 1
    walk.change(seed=7)
    assert torch.equal(walk.latent, walk.pipe.sample_latents(1, seed=7, steps=30)[0])
    walk.draw()
    assert walk.settings.seed == 8
    assert walk.said == "drew seed 8"


@pytest.mark.parametrize(
    ("name", "value", "source"),
    [
        ("instance", 2, walks.TRAINING),
        ("seed", 3, walks.GENERATED),
        ("temperature", 0.5, walks.GENERATED),
        ("steps", 12, walks.GENERATED),
        ("mix", 0.2, walks.INTERPOLATION),
    ],
)
def test_a_control_shows_what_it_controls(walk: LatentWalk, name: str, value: float, source: str) -> None:
    walk.change(source=walks.MEAN)
    before = walk.latent
    walk.change(**{name: value})
    assert walk.settings.source == source
    assert getattr(walk.settings, name) == value
    assert not torch.equal(walk.latent, before)


def test_choosing_a_remembered_object_shows_it_alone_where_that_is_the_source(walk: LatentWalk) -> None:
    walk.change(source=walks.REMEMBERED)
    assert torch.equal(walk.latent, walk.pipe.latents[0])
    walk.change(first=walk.settings.second)
    assert walk.settings.source == walks.REMEMBERED
    assert torch.equal(walk.latent, walk.remembered[walk.settings.second])
    assert walk.short == walk.settings.second.partition(": ")[2]


def test_the_mean_is_the_mean(walk: LatentWalk) -> None:
    walk.change(source=walks.MEAN)
    torch.testing.assert_close(walk.latent, walk.pipe.latents.mean(dim=0))
    assert walk.shown == "mean"


def test_two_remembered_objects_become_a_and_b(walk: LatentWalk) -> None:
    walk.draw()
    first = walk.latent
    walk.remember()
    walk.draw()
    second = walk.latent
    assert walk.remember() == "4: seed 1"
    assert (walk.settings.first, walk.settings.second) == ("3: seed 0", "4: seed 1")
    walk.change(mix=0.25)
    torch.testing.assert_close(walk.latent, 0.75 * first + 0.25 * second)
    assert walk.shown == "75% A, 25% B"
    # What is remembered of an interpolation leaves its ends alone: the picture must not jump.
    walk.remember()
    assert (walk.settings.first, walk.settings.second) == ("3: seed 0", "4: seed 1")
    torch.testing.assert_close(walk.remembered["5: 3 to 4 at 0.25"], walk.latent)


# ------------------------------------------------------------------------------------------------------- directions


def test_a_slider_moves_the_latent_along_its_direction_and_back_exactly(walk: LatentWalk) -> None:
    walk.draw()
    base, start = walk.latent.clone(), walk.settings.positions
    assert start == Directions.from_latents(walk.pipe.latents, 6).positions(base)
    wanted = tuple(position + (0.7 if k == 1 else 0) for k, position in enumerate(start))
    if abs(wanted[1]) > REACH:
        wanted = tuple(position - (0.7 if k == 1 else 0) for k, position in enumerate(start))
    walk.change(positions=wanted)
    directions = Directions.from_latents(walk.pipe.latents, 6)
    along = directions.basis.T @ (walk.latent - base) / directions.scale
    torch.testing.assert_close(along, torch.tensor(wanted) - torch.tensor(start), atol=1e-4, rtol=0)
    assert walk.edited
    assert walk.short == "seed 0 edited"
    assert walk.settings.source == walks.GENERATED
    walk.reset()
    assert torch.equal(walk.latent, base)
    assert not walk.edited


def test_a_new_object_puts_the_sliders_to_where_it_lies(walk: LatentWalk) -> None:
    walk.change(positions=(1.0, *walk.settings.positions[1:]))
    assert walk.row is None
    walk.change(instance=4)
    assert torch.equal(walk.latent, walk.pipe.latents[4])
    assert walk.settings.positions == Directions.from_latents(walk.pipe.latents, 6).positions(walk.pipe.latents[4])
    assert walk.row == 4


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"instance": 12}, "training instance 12 does not exist; there are 12"),
        ({"instance": -1}, "does not exist"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 2**40}, "out of range"),
        ({"steps": 100_000}, "expected at most"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": 1e30}, "`temperature` 1e\\+30"),
        ({"mix": 1.5}, "outside A and B"),
        ({"source": "nonsense"}, "not known"),
        ({"first": "9: gone"}, "nothing is remembered as '9: gone'"),
        ({"positions": (99.0, 0.0, 0.0, 0.0, 0.0)}, "standard deviations"),
    ],
)
def test_a_mistake_is_a_sentence_and_changes_nothing(walk: LatentWalk, asked: dict[str, object], words: str) -> None:
    walk.draw()
    settings, latent = walk.settings, walk.latent
    with pytest.raises(MNIFError, match=words):
        walk.change(**asked)
    assert walk.settings == settings
    assert walk.latent is latent
    walk.draw()
    assert walk.settings.seed == 1


def test_without_a_prior_the_control_says_what_to_run_and_later_it_draws(pipe: MNIFPipeline) -> None:
    bare = MNIFPipeline(dataclasses.replace(pipe.model, prior=None))
    walk = LatentWalk(bare, "run mnif-train-prior --load-config x.")
    with pytest.raises(MNIFError, match="run mnif-train-prior --load-config x"):
        walk.draw()
    assert walk.settings.source == walks.TRAINING
    assert walk.row == 0
    walk.adopt(pipe, "")
    walk.draw()
    assert walk.settings.seed == 0, "the refused draw did not use the seed up"


def test_a_part_is_held_and_the_rest_redrawn(pipe: MNIFPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, wishes = [], []

    def redraw(_: object, latent: torch.Tensor, side: str, share: float, seed: int, wish: object) -> torch.Tensor:
        asked.append((latent, side, share, seed))
        wishes.append(wish)
        return latent[None] + 1 + seed

    monkeypatch.setattr("mnif_nerf.pipelines.fit.held.redraw", redraw)
    walk = LatentWalk(pipe, "")
    with pytest.raises(MNIFError, match="press Redraw the rest"):
        walk.change(source=walks.REDRAWN)
    start = walk.latent
    walk.change(hold="back", share=0.25)
    assert walk.settings.source == walks.TRAINING, "choosing what to hold shows nothing else"
    walk.redraw()
    torch.testing.assert_close(walk.latent, start + 1)
    assert walk.row is None
    assert walk.said == "held 25% of car_00 from the back, drew the rest"
    walk.redraw()  # of the same object again
    torch.testing.assert_close(walk.latent, start + 2)
    assert [(side, share, seed) for _, side, share, seed in asked] == [("back", 0.25, 0), ("back", 0.25, 1)]
    assert walk.shown == "back of car_00 redraw 2"
    walk.change(positions=(1.0, *walk.settings.positions[1:]))
    moved = walk.latent
    walk.redraw()  # what was moved is another object
    torch.testing.assert_close(asked[2][0], moved)
    assert wishes == [None] * 3
    walk.settings = dataclasses.replace(walk.settings, label=(("kind", "van"),), guidance=3.0)
    walk.redraw()
    assert wishes[3] == Wish({"kind": "van"}, 3.0)
    assert walk.said.endswith("from the back, drew the rest as van")
    bare = LatentWalk(MNIFPipeline(dataclasses.replace(pipe.model, prior=None)), "run mnif-train-prior.")
    with pytest.raises(MNIFError, match="run mnif-train-prior"):
        bare.redraw()


def test_latents_that_are_all_alike_have_no_directions(pipe: MNIFPipeline) -> None:
    model = dataclasses.replace(pipe.model, latents=torch.zeros_like(pipe.latents), prior=None)
    walk = LatentWalk(MNIFPipeline(model))
    assert set(walk.settings.positions) == {0.0}
    with pytest.raises(MNIFError, match="alike"):
        walk.change(positions=(1.0, *walk.settings.positions[1:]))
    # Training goes on: from the next object on, there are directions.
    walk.adopt(MNIFPipeline(dataclasses.replace(model, latents=pipe.latents)), "")
    walk.change(instance=1)
    assert any(walk.settings.positions)


def test_memory_is_bounded(walk: LatentWalk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "MAX_REMEMBERED", 3)
    walk.remember()
    with pytest.raises(MNIFError, match="3 objects are remembered"):
        walk.remember()


def test_one_instance_is_enough() -> None:
    walk = LatentWalk(MNIFPipeline(tiny_model(num_instances=1)))
    assert walk.settings.first == walk.settings.second == "1: car_00"
    walk.change(mix=0.5)
    assert walk.nearest.startswith("car_00")


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(("text", "row"), [("car_07", 7), ("11", 11), (" CAR_02 ", 2), ("r_09", 9)])
def test_instances_are_found_by_name_index_or_a_part_that_only_one_has(walk: LatentWalk, text: str, row: int) -> None:
    walk.find(text)
    assert walk.row == row


@pytest.mark.parametrize(
    ("text", "words"), [("car", "12 training instances have 'car'"), ("bus", "no training instance is named 'bus'")]
)
def test_a_name_of_none_or_many_is_answered_with_some_that_exist(walk: LatentWalk, text: str, words: str) -> None:
    with pytest.raises(MNIFError, match=f"{words}.*such as car_"):
        walk.find(text)
    assert walk.row == 0


# ---------------------------------------------------------------------------------------------------------- training


def test_refresh_follows_the_training_and_keeps_what_was_moved(pipe: MNIFPipeline) -> None:
    walk = LatentWalk(pipe)
    walk.change(source=walks.MEAN)
    later = MNIFPipeline(dataclasses.replace(pipe.model, latents=pipe.latents + 1.0))
    walk.adopt(later, "")
    walk.refresh()
    torch.testing.assert_close(walk.latent, later.latents.mean(dim=0))
    walk.change(positions=(0.5, *walk.settings.positions[1:]))
    moved = walk.latent - later.latents.mean(dim=0)
    walk.adopt(pipe, "")
    walk.refresh()
    assert walk.settings.positions[0] == 0.5
    torch.testing.assert_close(walk.latent - pipe.latents.mean(dim=0), moved)


# ------------------------------------------------------------------------------------------------------------- files


def test_a_training_that_starts_with_equal_latents_gets_directions_and_ends_later(pipe: MNIFPipeline) -> None:
    alike = MNIFPipeline(dataclasses.replace(pipe.model, latents=torch.zeros_like(pipe.latents)))
    walk = LatentWalk(alike, "no prior.", instance=1)
    walk.refresh()
    assert not any(bool(latent.any()) for latent in walk.remembered.values())
    walk.adopt(pipe, "no prior.")
    walk.refresh()
    assert walk.row == 1
    assert torch.equal(walk.latent, pipe.latents[1])
    assert walk.settings.positions == Directions.from_latents(pipe.latents, 6).positions(pipe.latents[1])
    first, second = walk.remembered
    assert first == walk.settings.first == "1: car_01"
    assert second == walk.settings.second != first
    assert torch.equal(walk.remembered[first], pipe.latents[1])
    walk.change(positions=(walk.settings.positions[0] + 0.5, *walk.settings.positions[1:]))
    assert walk.edited


def test_what_was_remembered_of_equal_latents_stays(pipe: MNIFPipeline) -> None:
    alike = MNIFPipeline(dataclasses.replace(pipe.model, latents=torch.zeros_like(pipe.latents)))
    walk = LatentWalk(alike, "no prior.")
    label = walk.remember()
    walk.adopt(pipe, "no prior.")
    walk.refresh()
    assert label in walk.remembered


def test_what_is_saved_can_be_read_and_nothing_is_overwritten(walk: LatentWalk, tmp_path: Path) -> None:
    from mnif_nerf.cli.generation_common import read_latents

    walk.draw()
    folder = tmp_path / "run" / "viewer"
    first, second = (save_latent(walk.item(), folder) for _ in range(2))
    assert [path.name for path in (first, second)] == ["seed-0.safetensors", "seed-0-2.safetensors"]
    torch.testing.assert_close(read_latents(first)[0], walk.latent)
    assert NeuralObject.load(first).render(resolution=8).size == (8, 8)
    mesh = export_object(walk.item(), folder)
    assert mesh.name == "seed-0.glb"
    assert mesh.read_bytes()[:4] == b"glTF"


def test_solids_and_pictures_are_saved_too(tmp_path: Path) -> None:
    solid = LatentWalk(MNIFPipeline(tiny_voxel_model()))
    assert export_object(solid.item(), tmp_path).suffix == ".glb"
    picture = LatentWalk(MNIFPipeline(tiny_image_model()))
    path = export_object(picture.item(), tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert save_latent(picture.item(), tmp_path).is_file()


def test_names_become_file_names_and_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    assert free_path(tmp_path, "../a b/é:*?", ".glb").parent == tmp_path
    assert free_path(tmp_path, "..", ".glb").name == "object.glb"
    (tmp_path / "viewer").touch()
    with pytest.raises(MNIFError, match="is a file"):
        free_path(tmp_path / "viewer", "x", ".glb")
