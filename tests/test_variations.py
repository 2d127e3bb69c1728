"""Varied copies of meshes: what changes, what does not, and which data sets get them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from mnif_nerf.data.generate.mesh_points import sample_mesh_folder
from mnif_nerf.data.generate.meshes import voxelise_mesh_folder
from mnif_nerf.data.generate.settings import MeshFolderOptions
from mnif_nerf.data.generate.varied_copies import is_varied, original_of, plan_copies
from mnif_nerf.data.geometry.raytrace import Surface, face_normals
from mnif_nerf.data.geometry.variations import VARIATIONS, Variation, varied
from mnif_nerf.data.readers.labels import read_labels
from mnif_nerf.data.readers.mesh_files import read_surface
from mnif_nerf.data.stores.surface_store import open_surface_store
from mnif_nerf.errors import MNIFError

RED, GREEN, GREY = (0.8, 0.1, 0.1), (0.1, 0.7, 0.2), (0.3, 0.3, 0.3)


def thing(color: tuple[float, float, float], textured: bool = False) -> Surface:
    """A long coloured box with a grey one on its left side, of diagonal 1."""
    parts = [trimesh.creation.box((2.0, 1.0, 1.0)), trimesh.creation.box((0.5, 0.5, 0.5))]
    parts[1].apply_translation((0.5, 0.75, 0.0))
    whole = trimesh.util.concatenate(parts)
    vertices = whole.vertices - whole.bounds.mean(0)
    colors = np.repeat(np.array([color, GREY], np.float32), 12, axis=0)[:, None].repeat(3, axis=1)
    found = Surface(vertices / np.linalg.norm(np.ptp(vertices, axis=0)), np.array(whole.faces), colors)
    if textured:
        found.textures = [np.rint(255 * np.array([[color, GREY]])).astype(np.uint8)]
        found.texture = np.zeros(24, int)
        found.uv = np.repeat([(0.25, 0.5), (0.75, 0.5)], 12, axis=0)[:, None].repeat(3, axis=1)
        found.corner_colors = np.ones_like(colors)
    return found


def volume(surface: Surface) -> float:
    return float(trimesh.Trimesh(surface.vertices, surface.faces, process=False).volume)


def seen_colors(surface: Surface) -> np.ndarray:
    """Of the faces' middles, float32 [F, 3]."""
    faces, middle = np.arange(len(surface.faces)), np.full((len(surface.faces), 3), 1 / 3)
    return surface.corner_colors.mean(1) * surface.texels(faces, middle)[:, :3]


@pytest.mark.parametrize("kind", VARIATIONS)
@pytest.mark.parametrize("textured", [False, True])
def test_a_copy_is_whole_centred_and_of_unit_diagonal(kind: str, textured: bool) -> None:
    surface = thing(RED, textured)
    before = [np.copy(surface.vertices), np.copy(surface.corner_colors), *map(np.copy, surface.textures)]
    for seed in range(4):
        found = varied(surface, Variation((kind,), (seed,)), thing(GREEN))
        assert np.linalg.norm(np.ptp(found.vertices, axis=0)) == pytest.approx(1.0)
        np.testing.assert_allclose(found.vertices.min(0) + found.vertices.max(0), 0, atol=1e-12)
        assert volume(found) > 0  # faces look outwards
        assert ((seen_colors(found) >= 0) & (seen_colors(found) <= 1)).all()
    after = [surface.vertices, surface.corner_colors, *surface.textures]
    for old, new in zip(before, after):
        np.testing.assert_array_equal(old, new)


def test_mirroring_puts_left_right_for_half_of_the_copies() -> None:
    surface = thing(RED)
    sides = [varied(surface, Variation(("mirror",), (seed,))).vertices[8:, 1].mean() for seed in range(20)]
    right = sum(side < 0 for side in sides)
    assert surface.vertices[8:, 1].mean() > 0
    assert 3 < right < 17


def test_stretching_changes_the_sides_and_bending_the_top_alone() -> None:
    surface = thing(RED)
    sides = np.ptp(surface.vertices, axis=0)
    found = np.ptp(varied(surface, Variation(("stretch",), (3,))).vertices, axis=0)
    assert np.abs(found / sides - 1).max() > 0.05
    bent = varied(surface, Variation(("bend",), (3,)))
    foot = surface.vertices[:8, 2] < 0
    moved = bent.vertices - surface.vertices * (np.ptp(bent.vertices[:, 2]) / sides[2])
    assert np.ptp(moved[:8][foot], axis=0).max() < 1e-12
    assert np.abs(moved[:8][~foot].mean(0) - moved[:8][foot].mean(0))[:2].max() > 0.01


@pytest.mark.parametrize("textured", [False, True])
def test_paint_takes_the_main_colour_and_leaves_grey_parts(textured: bool) -> None:
    found = seen_colors(varied(thing(RED, textured), Variation(("paint",), (1,)), thing(GREEN)))
    np.testing.assert_allclose(found[:12], np.broadcast_to(GREEN, (12, 3)), atol=0.01)
    np.testing.assert_allclose(found[12:], np.broadcast_to(GREY, (12, 3)), atol=0.01)


def test_hue_turns_colours_and_leaves_greys() -> None:
    found = seen_colors(varied(thing(RED), Variation(("hue",), (5,))))
    assert np.abs(found[0] - RED).max() > 0.1
    np.testing.assert_allclose(found[12:], np.broadcast_to(GREY, (12, 3)), atol=0.01)


def test_kinds_do_not_change_each_other() -> None:
    both = varied(thing(RED), Variation(("stretch", "hue"), (7,)))
    np.testing.assert_array_equal(both.vertices, varied(thing(RED), Variation(("stretch",), (7,))).vertices)
    np.testing.assert_array_equal(seen_colors(both), seen_colors(varied(thing(RED), Variation(("hue",), (7,)))))
    assert face_normals(both.vertices, both.faces)[1].min() > 0


def test_copies_have_names_of_their_own_and_do_not_depend_on_each_other() -> None:
    few, many = plan_copies(["a", "b"], 2, ("stretch",), 0), plan_copies(["a", "b"], 5, ("stretch",), 0)
    assert list(few) == ["a-varied1", "a-varied2", "b-varied1", "b-varied2"]
    assert all(many[name] == found for name, found in few.items())
    assert len({variation.seed for variation, _ in many.values()}) == 10
    assert (original_of("a-varied12"), is_varied("a-varied12")) == ("a", True)
    assert (original_of("a-varied"), is_varied("a-varied")) == ("a-varied", False)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"copies": -1}, "`copies` -1: must be 0 to 1000"), ({"copies": 2000}, "must be 0 to 1000"),
     ({"vary": ("twist",)}, "`vary` twist: no such variation; choose of mirror, stretch"),
     ({"copies": 2, "vary": ()}, "all `copies` would be alike")],
)  # fmt: skip
def test_settings_that_cannot_be(options: dict, told: str) -> None:
    with pytest.raises(MNIFError, match=told):
        MeshFolderOptions(**options)


def folder_of(root: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(count):
        box = trimesh.creation.box(generator.uniform(0.5, 1.5, 3))
        box.visual.vertex_colors = (*generator.integers(0, 255, 3), 255)
        kind = root / ("flat" if number % 2 else "high")
        kind.mkdir(parents=True, exist_ok=True)
        box.export(kind / f"box{number}.ply")
    return root


def test_points_of_copies_are_trained_on_and_keep_their_labels(tmp_path: Path) -> None:
    pytest.importorskip("igl")
    source = folder_of(tmp_path / "boxes", 10)
    options = MeshFolderOptions(copies=2)
    summary = sample_mesh_folder(source, tmp_path / "data", 2000, options, 1, False)
    assert len(summary.splits["train"]) == 3 * 8
    assert not any(is_varied(name) for split in ("val", "test") for name in summary.splits[split])
    assert "16 varied copies of the 8 training meshes are made." in summary.notes
    assert summary.table[0] == "10 of 10 meshes are used"
    table = read_labels(tmp_path / "data" / "labels.csv")
    assert table.labels is not None
    values = dict(zip(table.names, next(iter(table.labels.columns.values()))))
    assert len(values) == 26
    assert all(value == values[original_of(name)] for name, value in values.items())
    store = open_surface_store(tmp_path / "data", "train")
    assert sorted(store.names) == sorted(summary.splits["train"])
    again = sample_mesh_folder(source, tmp_path / "data", 2000, options, 1, False)
    assert again.splits == summary.splits
    with pytest.raises(MNIFError, match="made with copies 2, asked for 3"):
        sample_mesh_folder(source, tmp_path / "data", 2000, MeshFolderOptions(copies=3), 1, False)


def test_voxels_of_copies(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "boxes", 4)
    summary = voxelise_mesh_folder(source, tmp_path / "data", 16, MeshFolderOptions(copies=1), 1, False)
    found = sorted(path.stem for path in (tmp_path / "data" / "train").glob("*.npz"))
    assert found == sorted(summary.splits["train"])
    assert sum(map(is_varied, found)) == len(found) // 2
    box = read_surface(next(source.rglob("*.ply")))
    assert len(box.faces) == 12
