"""Points of meshes of any kind, and of voxels: what they stand for, whole data sets, and bad input."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from mnif_nerf.cli import data as data_command
from mnif_nerf.data.check.surfaces import check_surfaces
from mnif_nerf.data.generate import meshes
from mnif_nerf.data.generate.mesh_points import sample_mesh_folder
from mnif_nerf.data.generate.mesh_record import RECORD
from mnif_nerf.data.geometry.closed_pieces import close_pieces
from mnif_nerf.data.geometry.solid_mesh import MAX_FACES
from mnif_nerf.data.geometry.surface_points import PointCounts, SurfacePoints
from mnif_nerf.data.geometry.voxel_points import draw_voxel_points
from mnif_nerf.data.readers.mesh_input import MeshInput
from mnif_nerf.data.stores import surface_jobs
from mnif_nerf.data.stores.surface_jobs import mesh_points
from mnif_nerf.data.stores.surface_store import open_surface_store, packed_splits, surface_splits
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities import from_data
from mnif_nerf.modalities.data_report import check

pytest.importorskip("igl")
pytest.importorskip("manifold3d")

COUNTS = PointCounts.of(400)


def box(size: tuple[float, float, float] = (3, 2, 1), at: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(at)
    return mesh


def points_of(mesh: trimesh.Trimesh, folder: Path) -> tuple[SurfacePoints, dict[str, int]]:
    mesh.export(folder / "mesh.ply")
    return mesh_points(MeshInput(folder / "mesh.ply"), COUNTS, np.random.default_rng(0))


def box_distance(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    beyond = np.abs(points) - half
    return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)


def without_lid(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.face_normals[:, 2] < 0.9], process=False)


def twice(mesh: trimesh.Trimesh, flipped: bool) -> trimesh.Trimesh:
    faces = mesh.faces[:, ::-1] if flipped else mesh.faces
    return trimesh.Trimesh(mesh.vertices, np.concatenate([mesh.faces, faces]), process=False)


def mixed(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Every third face turned around."""
    faces = mesh.faces.copy()
    faces[::3] = faces[::3, ::-1]
    return trimesh.Trimesh(mesh.vertices, faces, process=False)


HALVES = trimesh.util.concatenate([box((2, 2, 1), (-0.5, 0, 0)), box((2, 2, 1), (0.5, 0, 0))])
SAME_SOLID = {
    "closed": (box(), {"closed": 1}),
    "inside out": (trimesh.Trimesh(box().vertices, box().faces[:, ::-1], process=False), {"turned": 1}),
    "doubled": (twice(box(), False), {"closed": 1}),
    "both sides": (twice(box(), True), {"closed": 1}),
    "no lid": (without_lid(box()), {"capped": 1}),
    "turned at random": (mixed(box()), {"closed": 1}),
    "two that overlap": (HALVES, {"closed": 2}),
    "two that touch": (trimesh.util.concatenate([box((1, 2, 1), (-1, 0, 0)), box((2, 2, 1), (0.5, 0, 0))]), {}),
    "a wall within": (
        trimesh.util.concatenate([box(), trimesh.Trimesh([(0, -1, -0.5), (0, 1, -0.5), (0, 0, 0.5)], [(0, 1, 2)])]),
        {"closed": 1, "sheets": 1},
    ),
}


@pytest.mark.parametrize("name", SAME_SOLID)
def test_all_these_meshes_stand_for_one_box(name: str, tmp_path: Path) -> None:
    mesh, expected = SAME_SOLID[name]
    points, facts = points_of(mesh, tmp_path)
    half = np.array([3, 2, 1]) / np.sqrt(14) / 2
    np.testing.assert_allclose(points.distance, box_distance(points.points.astype(np.float64), half), atol=6e-5)
    assert {key: facts[key] for key in expected} == expected


def test_a_sheet_is_thickened(tmp_path: Path) -> None:
    """Refusing it would drop every leaf, curtain and carpet; a field can hold a plate of this thickness."""
    sheet = trimesh.Trimesh([(0, 0, 0), (4, 0, 0), (4, 3, 0), (0, 3, 0)], [(0, 1, 2), (0, 2, 3)])
    points, facts = points_of(sheet, tmp_path)
    assert (facts["sheets"], facts["closed"], facts["capped"]) == (1, 0, 0)
    expected = box_distance(points.points.astype(np.float64), np.array([0.4, 0.3, 0.005]))
    np.testing.assert_allclose(points.distance, expected, atol=5e-5)


def test_colours_come_from_the_outer_surface(tmp_path: Path) -> None:
    """A red box around a blue one: no point is blue, and the reader's colours arrive as they are."""
    outer, inner = box(), box((2.9, 1.9, 0.9))
    outer.visual.face_colors, inner.visual.face_colors = (200, 20, 30, 255), (10, 20, 250, 255)
    points, facts = points_of(trimesh.util.concatenate([inner, outer]), tmp_path)
    assert points.color is not None
    np.testing.assert_allclose(
        points.color, np.broadcast_to(np.array([200, 20, 30]) / 255, points.color.shape), atol=1e-6
    )
    assert facts["tinted"] == 1


def textured(path: Path) -> Path:
    """An .obj whose front half is red and whose back half is green, by a picture."""
    mesh = box()
    uv = np.stack([np.where(mesh.vertices[:, 0] > 0, 0.75, 0.25), np.full(8, 0.5)], axis=1)
    picture = Image.fromarray(np.array([[[0, 200, 0]] * 4 + [[200, 0, 0]] * 4] * 8, np.uint8))
    material = trimesh.visual.material.SimpleMaterial(image=picture)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    path.parent.mkdir(exist_ok=True)
    mesh.export(path)
    return path


def test_textures_and_what_is_missing_of_them(tmp_path: Path) -> None:
    path = textured(tmp_path / "a" / "box.obj")
    points, _ = mesh_points(MeshInput(path, "z", "+x"), COUNTS, np.random.default_rng(0))
    assert points.color is not None
    end = np.abs(points.points[:, 0]) > 0.45
    front = points.points[end, 0] > 0
    np.testing.assert_allclose(
        points.color[end][front], np.broadcast_to([200 / 255, 0, 0], (front.sum(), 3)), atol=0.01
    )
    assert (points.color[end][~front, 1] > 0.7).all()
    picture = next(file for file in path.parent.iterdir() if file.suffix in (".png", ".jpg"))
    picture.unlink()
    with pytest.raises(MNIFError, match=rf"box.obj: lacks a picture.*\({picture.name}: missing\); put what is missing"):
        mesh_points(MeshInput(path), COUNTS, np.random.default_rng(0))


def test_meshes_that_stand_for_nothing_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (2, 0, 0)], [(0, 1, 2)], process=False)
    far = trimesh.util.concatenate([box((1, 1, 1)), box((1, 1, 1), (500, 0, 0))])
    for mesh, said in ((line, "no face has an area"), (far, "its parts lie far apart, the largest is 0.09")):
        with pytest.raises(MNIFError, match=said) as caught:
            points_of(mesh, tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / 'mesh.ply'}: ")
        assert str(caught.value).count(str(tmp_path)) == 1
    (tmp_path / "nan.off").write_bytes(b"OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n")
    with pytest.raises(MNIFError, match="a vertex is NaN or infinite"):
        mesh_points(MeshInput(tmp_path / "nan.off"), COUNTS, np.random.default_rng(0))
    monkeypatch.setattr("mnif_nerf.data.geometry.solid_mesh.MAX_FACES", 11)
    with pytest.raises(MNIFError, match="12 triangles are more than 11; decimate the mesh first"):
        points_of(box(), tmp_path)
    assert MAX_FACES >= 2_000_000


def test_many_triangles_take_bounded_time(tmp_path: Path) -> None:
    """The full size, two million, is measured by hand (docs/data.md)."""
    ball = trimesh.creation.icosphere(6)
    start = time.monotonic()
    closed = close_pieces(ball.vertices / 2, ball.faces)
    assert (len(closed.faces), closed.num_closed) == (len(ball.faces), 1)
    points, _ = points_of(ball, tmp_path)
    radius = 0.5 / np.sqrt(3)
    distance = np.linalg.norm(points.points, axis=1) - radius
    np.testing.assert_allclose(points.distance, distance, atol=3e-4)
    assert time.monotonic() - start < 120


def folder_of_meshes(root: Path, count: int = 4, color: bool = True) -> Path:
    root.mkdir()
    for index in range(count):
        mesh = box((3, 2, 1 + index))
        if color:
            mesh.visual.vertex_colors = (250, 10 * index, 0, 255)
        mesh.export(root / f"m{index}.ply")
    return root


def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """Interrupts whoever writes the points of more than `count` meshes: the names written, and the count to change."""
    made: list[str] = []
    most = [count]
    whole = surface_jobs.write_part

    def write_part(path: Path, arrays: dict) -> None:
        if len(made) == most[0]:
            raise KeyboardInterrupt
        made.append(path.stem)
        whole(path, arrays)

    monkeypatch.setattr(surface_jobs, "write_part", write_part)
    return made, most


def test_a_folder_becomes_a_data_set_that_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch) -> None:
    source, out = folder_of_meshes(tmp_path / "in"), tmp_path / "out"
    (source / "line.off").write_bytes(b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    made, most = stopped_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sample_mesh_folder(source, out, 400, workers=1, progress=False)
    assert packed_splits(out) == ()
    most[0] = 100
    summary = sample_mesh_folder(source, out, 400, workers=1, progress=False)
    assert len(made) == len(set(made)) == 4  # none twice
    assert {split: len(names) for split, names in summary.splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert [path.name for path, _ in summary.skipped] == ["line.off"]
    assert surface_splits(out) == ("train", "val", "test")
    store = open_surface_store(out, "train")
    assert store.has_color
    assert set(store.names) == set(summary.splits["train"])
    assert not list(out.rglob("*.parts"))
    again = sample_mesh_folder(source, out, 400, workers=1, progress=False)
    assert (again.splits, len(again.skipped)) == (summary.splits, 1)
    assert from_data(out).name == "sdf"
    assert str(check(out, progress=False)).endswith("problems: none")


def test_what_was_read_before_a_run_was_killed_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    source, out = folder_of_meshes(tmp_path / "in"), tmp_path / "out"
    (source / "line.off").write_bytes(b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    read: list[str] = []
    whole, most = meshes._probe, [3]

    def probe(mesh: MeshInput) -> Any:
        if len(read) == most[0]:
            raise KeyboardInterrupt
        read.append(mesh.path.name)
        return whole(mesh)

    monkeypatch.setattr(meshes, "_probe", probe)
    with pytest.raises(KeyboardInterrupt):
        sample_mesh_folder(source, out, 400, workers=1, progress=False)
    record = out / RECORD
    assert read == ["line.off", "m0.ply", "m1.ply"]
    assert len(record.read_text().splitlines()) == 3
    record.write_text(record.read_text()[:-20])  # killed while it wrote the last line
    most[0] = 100
    sample_mesh_folder(source, out, 400, workers=1, progress=False)
    assert read[3:] == ["m1.ply", "m2.ply", "m3.ply"]
    finished = sample_mesh_folder(source, out, 400, workers=1, progress=False)
    assert len(read) == 6
    assert [path.name for path, _ in finished.skipped] == ["line.off"]
    os.utime(source / "m2.ply", (1, 1))  # another file of the same size
    for _ in range(2):  # said until somebody acts
        notes = sample_mesh_folder(source, out, 400, workers=1, progress=False).notes
        assert len(notes) == 1
        assert "1 of the files have changed since they were used (m2)" in notes[0]
    sample_mesh_folder(source, tmp_path / "other", 400, workers=1, progress=False)
    assert read.count("line.off") == 2  # records are of one output


def test_a_file_that_changes_while_a_run_is_stopped_is_used_as_it_is_now(tmp_path: Path, monkeypatch) -> None:
    source, out = folder_of_meshes(tmp_path / "in"), tmp_path / "out"
    made, most = stopped_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sample_mesh_folder(source, out, 400, workers=1, progress=False)
    first = made[0]
    os.utime(source / f"{first}.ply", (1, 1))
    most[0] = 100
    notes = sample_mesh_folder(source, out, 400, workers=1, progress=False).notes
    assert made[3:] == [first, "m3"] or made[3:] == ["m3", first]
    assert any(f"used again ({first})" in note for note in notes)
    assert not any("changed" in note for note in sample_mesh_folder(source, out, 400, workers=1, progress=False).notes)


def test_no_record_is_written_where_nothing_of_ours_is(tmp_path: Path) -> None:
    out = tmp_path / "foreign"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(MNIFError, match="not empty"):
        sample_mesh_folder(folder_of_meshes(tmp_path / "in"), out, 400, workers=1, progress=False)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "broken.ply").write_bytes(b"no mesh")
    with pytest.raises(MNIFError, match="none of its 1 meshes"):
        sample_mesh_folder(bad, tmp_path / "new", 400, workers=1, progress=False)
    assert not (tmp_path / "new").exists()


def test_points_are_computed_on_first_use_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of_meshes(tmp_path / "in", 2, color=False)
    assert from_data(root).name == "voxel"  # meshes alone are voxels to be; only the method asks for points
    assert surface_splits(root) == ("train",)
    store = open_surface_store(root, "train", 300, workers=1, progress=False)
    assert (store.names, store.has_color, store.num_points) == (("m0", "m1"), False, 330)
    assert "no file has colour: shapes are learned alone" in capsys.readouterr().out
    manifest = store.folder / "manifest.json"
    before = manifest.stat().st_mtime_ns
    open_surface_store(root, "train", 300, workers=1, progress=False)
    assert manifest.stat().st_mtime_ns == before
    box((1, 1, 4)).export(root / "m2.ply")
    assert open_surface_store(root, "train", 300, workers=1, progress=False).num_instances == 3
    with pytest.raises(MNIFError, match="no val split"):
        open_surface_store(root, "val", 300)
    for path in root.glob("*.ply"):
        path.write_bytes(b"broken")
    with pytest.raises(
        MNIFError, match=r"none of its train objects can be used; the first: .*cannot be read as a mesh"
    ):
        open_surface_store(root, "train", 300, workers=1, progress=False)
    with pytest.raises(MNIFError, match="nothing in it can be read"):
        surface_splits(tmp_path / "in" / ".mnif")


def test_voxels_have_exact_distances_and_no_colour(tmp_path: Path) -> None:
    cells = np.zeros((20, 10, 10), bool)
    cells[4:16, 2:8, 2:8] = True
    points = draw_voxel_points(cells, COUNTS, np.random.default_rng(0))
    clear = points.kind < 3
    expected = box_distance(points.points.astype(np.float64), np.array([0.3, 0.15, 0.15]))
    np.testing.assert_allclose(points.distance[clear], expected[clear], atol=0.026)  # half a cell, at edges
    assert np.abs(points.distance - expected)[clear].mean() < 0.006
    outwards = (
        expected[~clear] < box_distance(points.points + 0.02 * points.normals, np.array([0.3, 0.15, 0.15]))[~clear]
    )
    assert outwards.mean() > 0.98
    np.save(tmp_path / "box.npy", cells)
    store = open_surface_store(tmp_path, "train", 200, workers=1, progress=False)
    assert (store.names, store.has_color) == (("box",), False)


def test_every_fault_of_points_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample_mesh_folder(folder_of_meshes(tmp_path / "in", 3), out, 400, workers=1, progress=False)
    lines, problems = check_surfaces(out, progress=False)
    assert not problems
    assert (
        "train: 3 objects, 440 points each (120 in the cube, 280 around the surface, 40 on it), with colour" in lines[1]
    )
    path = out / "points" / "train" / "distance.array"
    distances = np.load(path)
    distances[0] = np.abs(distances[0])
    distances[1, 5] = np.nan
    distances[2, -50] = 0.4
    with open(path, "wb") as file:
        np.save(file, distances)
    _, problems = check_surfaces(out, progress=False)
    for problem, said in zip(problems, ("no point is inside", "a distance is NaN", "far from it")):
        assert said in problem
    assert len(problems) == 3


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = folder_of_meshes(tmp_path / "in", 2, color=False), tmp_path / "out"
    arguments = ["from-meshes", str(source), "--sdf", "--points", "200", "--output", str(out), "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["mnif-data", *arguments])
    data_command.entrypoint()
    printed = capsys.readouterr().out
    assert "no file has colour: shapes are learned alone." in printed
    assert f"Next: ns-train mnif-sdf-lite --data {out}\n" in printed
    monkeypatch.setattr("sys.argv", ["mnif-data", *arguments, "--voxels", "16"])
    with pytest.raises(SystemExit):
        data_command.entrypoint()
    assert "error: --sdf and --voxels are different data" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["mnif-data", "check", str(out)])
    data_command.entrypoint()
    assert f"Next: ns-train mnif-sdf-lite --data {out}" in capsys.readouterr().out
