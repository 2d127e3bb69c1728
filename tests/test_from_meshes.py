"""Rendering a folder of meshes: formats, colours, axes, splits, what cannot be read; and `mnif-data`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from mnif_nerf.cli import data as data_command
from mnif_nerf.data.generate.meshes import MeshSummary, find_meshes, render_mesh_folder
from mnif_nerf.data.generate.settings import MeshFolderOptions, ViewCounts
from mnif_nerf.data.geometry.raytrace import SurfaceRenderer, brightness
from mnif_nerf.data.readers.mesh_files import UNCOLOURED, frame, read_surface
from mnif_nerf.data.readers.splits import scene_names, split_names
from mnif_nerf.data.readers.srn import list_splits, read_split
from mnif_nerf.errors import MNIFError

SMALL = {
    "train_views": 3,
    "heldout_views": 2,
    "test_views": 2,
    "resolution": 12,
    "progress": False,
    "workers": 1,
}


def _taken(options: dict[str, Any], settings: type) -> Any:
    """Settings of that class, made of the options that it knows, which are taken out."""
    names = [entry.name for entry in dataclasses.fields(settings) if entry.name in options]
    return settings(**{name: options.pop(name) for name in names})


def render_folder(source: Path, output: Path, **options: Any) -> MeshSummary:
    """`render_mesh_folder` with its settings as one list."""
    folder, views = _taken(options, MeshFolderOptions), _taken(options, ViewCounts)
    return render_mesh_folder(source, output, folder, views, **options)


def textured_box() -> trimesh.Trimesh:
    """y up, 1 x 1 x 2 (x, y, z); front (+z) face red, all others blue, by a texture of two texels."""
    mesh = trimesh.creation.box((1.0, 1.0, 2.0))
    mesh.unmerge_vertices()
    front = np.repeat(mesh.face_normals[:, 2] > 0.5, 3)
    uv = np.stack([np.where(front, 0.25, 0.75), np.full(len(front), 0.5)], axis=1)
    picture = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return mesh


def vertex_coloured_box(color: tuple[int, int, int] = (10, 200, 30), size=(2.0, 1.0, 0.5)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh.visual.vertex_colors = np.tile([*color, 255], (len(mesh.vertices), 1))
    return mesh


def colour_from(path: Path, direction: tuple[float, float, float], **axes: str) -> np.ndarray:
    """Unshaded colour of what is seen from `direction` (our axes) when looking at the middle."""
    toward = np.asarray(direction, float)
    seen = SurfaceRenderer(read_surface(path, **axes)).trace(2 * toward, -toward[None])[0]
    assert seen[3] == 1
    return seen[:3] / brightness(toward)


def test_gltf_texture_and_axes(tmp_path):
    """glTF's +z front becomes +x, its y becomes our z."""
    path = tmp_path / "a.glb"
    textured_box().export(path)
    surface = read_surface(path)
    np.testing.assert_allclose(np.ptp(surface.vertices, axis=0), np.array([2, 1, 1]) / np.sqrt(6), atol=1e-6)
    np.testing.assert_allclose(colour_from(path, (1, 0, 0)), [1, 0, 0], atol=1e-5)
    for direction in ((-1, 0, 0), (0, 1, 0), (0, 0, 1)):
        np.testing.assert_allclose(colour_from(path, direction), [0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(colour_from(path, (0, 0, 1), up="z"), [1, 0, 0], atol=1e-5)


def test_scene_graph_transforms_are_applied(tmp_path):
    scene = trimesh.Scene()
    shift = trimesh.transformations.translation_matrix([0, 3, 0])
    scene.add_geometry(vertex_coloured_box((255, 0, 0), (1, 1, 1)), transform=shift)
    scene.add_geometry(vertex_coloured_box((0, 0, 255), (1, 1, 1)))
    scene.export(tmp_path / "two.glb")
    surface = read_surface(tmp_path / "two.glb")
    np.testing.assert_allclose(np.ptp(surface.vertices, axis=0), np.array([1, 1, 4]) / np.sqrt(18), atol=1e-6)
    np.testing.assert_allclose(colour_from(tmp_path / "two.glb", (0, 0, 1)), [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(colour_from(tmp_path / "two.glb", (0, 0, -1)), [0, 0, 1], atol=1e-5)


@pytest.mark.parametrize("suffix", ["ply", "off", "stl", "obj", "glb"])
def test_formats_and_their_up_axis(tmp_path, suffix):
    """The box is 2 long, 1 wide, 0.5 high where z is up; where y is up its third side points forward."""
    path = tmp_path / f"box.{suffix}"
    vertex_coloured_box().export(path)
    span = np.ptp(read_surface(path).vertices, axis=0)
    expected = [0.5, 2, 1] if suffix in ("obj", "glb") else [2, 1, 0.5]
    np.testing.assert_allclose(span, np.array(expected) / np.sqrt(5.25), atol=1e-6)
    colour = colour_from(path, (0, 0, 1))
    expected = np.array([10, 200, 30]) / 255
    if suffix in ("off", "stl"):
        expected = np.full(3, UNCOLOURED)
    elif suffix == "glb":  # glTF defines vertex colours as linear light; trimesh writes its bytes there unchanged
        expected = np.where(expected < 0.0031308, 12.92 * expected, 1.055 * expected ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(colour, expected, atol=5e-3)


def test_obj_with_material_file_and_gltf_colour_factor(tmp_path):
    (tmp_path / "m.mtl").write_text("newmtl red\nKd 0.8 0.1 0.2\nnewmtl green\nKd 0.1 0.7 0.2\n")
    (tmp_path / "two.obj").write_text(
        "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 0 1\nv 0 0 1\nv 0 -1 0\nv 1 -1 0\nv 1 -1 1\nv 0 -1 1\n"
        "usemtl red\nf 1 3 2\nf 1 4 3\nusemtl green\nf 5 6 7\nf 5 7 8\n"
    )
    np.testing.assert_allclose(colour_from(tmp_path / "two.obj", (0, 0, 1)), [0.8, 0.1, 0.2], atol=5e-3)
    np.testing.assert_allclose(colour_from(tmp_path / "two.obj", (0, 0, -1)), [0.1, 0.7, 0.2], atol=5e-3)
    mesh = trimesh.creation.box()
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 128, 0, 255])
    mesh.visual = trimesh.visual.TextureVisuals(material=material)
    mesh.export(tmp_path / "factor.glb")
    # Linear light 128/255 is 0.736 as a picture shows it.
    np.testing.assert_allclose(colour_from(tmp_path / "factor.glb", (0, 0, 1)), [1, 0.736, 0], atol=5e-3)


def test_every_pair_of_axes_is_a_rotation():
    for up, sign, axis in itertools.product("xyz", "+-", "xyz"):
        if up == axis:
            with pytest.raises(MNIFError, match=f"`forward` .{axis}: lies along the up axis {up}"):
                frame(".glb", up, sign + axis)
            continue
        turn = frame(".glb", up, sign + axis)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1.0)
        forward = np.zeros(3)
        forward["xyz".index(axis)] = 1 if sign == "+" else -1
        np.testing.assert_allclose(turn @ forward, [1, 0, 0])
    for up in ("x", "y", "z"):
        assert np.linalg.det(frame(".stl", up, "auto")) == pytest.approx(1.0)
    with pytest.raises(MNIFError, match="`up` w: unknown axis"):
        frame(".glb", "w", "auto")
    with pytest.raises(MNIFError, match="`forward` up: unknown axis"):
        frame(".glb", "auto", "up")


BAD_MESHES = {
    "broken.glb": (b"this is no mesh", "cannot be read as a mesh"),
    "empty.obj": (b"", "an empty mesh|cannot be read"),
    "points.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "an empty mesh|cannot be read"),
    "nan.off": (b"OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "a vertex is NaN or infinite"),
    "infinite.off": (b"OFF\n3 1 0\n0 0 0\ninf 0 0\n0 1 0\n3 0 1 2\n", "a vertex is NaN or infinite"),
    "point.off": (b"OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n", "all vertices lie in one point"),
    "index.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "cannot be read as a mesh"),
    "cut.ply": (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 900\nproperty float x\nend_header\nab",
        ".",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_MESHES))
def test_bad_meshes_are_told_in_one_sentence(tmp_path, name):
    content, reason = BAD_MESHES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MNIFError, match=reason) as caught:
        read_surface(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(MNIFError, match="none of its 1 meshes can be used; the first: "):
        render_folder(tmp_path, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_folder_becomes_a_data_set_and_skips_are_named(tmp_path):
    source = tmp_path / "My cars"
    for index in range(5):
        source.mkdir(exist_ok=True)
        vertex_coloured_box((40 * index, 90, 60)).export(source / f"car {index}.ply")
    (source / "broken.glb").write_bytes(b"no")
    (source / "readme.txt").write_text("not a mesh")
    summary = render_folder(source, tmp_path / "out", **SMALL)
    assert summary.category == "My_cars"
    assert [path.name for path, _ in summary.skipped] == ["broken.glb"]
    assert {split: len(names) for split, names in summary.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert set(list_splits(tmp_path / "out")) == {"train", "val", "test", "train_val"}
    train = read_split(tmp_path / "out", "train")
    assert (train.num_scenes, train.num_views, train.height) == (3, 9, 12)
    assert read_split(tmp_path / "out", "train_val").names == train.names
    assert "broken.glb" in " ".join(json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped"])

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    again = render_folder(source, tmp_path / "out", **SMALL)
    assert again.splits == summary.splits
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    with pytest.raises(MNIFError, match="made with seed 0, asked for 1"):
        render_folder(source, tmp_path / "out", **{**SMALL, "seed": 1})
    vertex_coloured_box().export(source / "new.ply")
    with pytest.raises(MNIFError, match=r"made with meshes '6 files.*choose another `output`"):
        render_folder(source, tmp_path / "out", **SMALL)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(MNIFError, match="no such folder; give the folder that holds your meshes"):
        render_folder(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(MNIFError, match=r"no mesh in it; expected files that end in .glb"):
        render_folder(tmp_path, tmp_path / "out")
    vertex_coloured_box().export(tmp_path / "a.ply")
    with pytest.raises(MNIFError, match="is a file; give the folder"):
        render_folder(tmp_path / "a.ply", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_views", 0), ("test_views", 0), ("resolution", 0), ("heldout_views", -1), ("seed", -1),
     ("val_fraction", 1.0), ("test_fraction", -0.1), ("resolution", 10**6)],
)  # fmt: skip
def test_settings_that_make_no_sense(name, value, tmp_path):
    with pytest.raises(MNIFError, match=f"`{name}` {value}: must be"):
        render_folder(tmp_path, tmp_path / "out", **{**SMALL, name: value})


def test_equal_names_are_told_apart(tmp_path):
    names = [
        "car.ply",
        "one/car.ply",
        "two/car.ply",
        "two/car.stl",
        "Car.obj",
        "van.glb",
        "two-car.ply",
        "a b.off",
    ]
    files = [tmp_path / name for name in names]
    given = scene_names(files, tmp_path)
    assert len({name.casefold() for name in given}) == len(names)
    assert given[5] == "van"
    assert given[1] == "one-car"
    assert given[7] == "a_b"
    assert all("/" not in name and not name.startswith(".") for name in given)


def test_hidden_files_and_the_output_itself_are_left_out(tmp_path):
    for name in ("a.ply", ".hidden/b.ply", "out/c.ply", "deep/er/d.PLY"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in find_meshes(tmp_path, tmp_path / "out")]
    assert found == ["a.ply", "deep/er/d.PLY"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (3, (3, 0, 0)), (4, (2, 1, 1)), (12, (10, 1, 1)), (100, (80, 10, 10))],
)
def test_split_sizes(count, expected):
    names = [f"m{index:03d}" for index in range(count)]
    splits = split_names(names, 0.1, 0.1, 0)
    assert tuple(len(splits.get(split, [])) for split in ("train", "val", "test")) == expected
    assert sorted(itertools.chain(*splits.values())) == names
    assert splits == split_names(names, 0.1, 0.1, 0)
    assert list(split_names(names, 0.0, 0.0, 0)) == ["train"]


def test_nothing_left_for_training():
    with pytest.raises(MNIFError, match="leave none of 4 meshes for training"):
        split_names(list("abcd"), 0.5, 0.5, 0)


def run_command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mnif-data", *arguments])
    try:
        data_command.entrypoint()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_command_from_meshes_and_check(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for index in range(2):
        vertex_coloured_box((90, 50 * index, 60)).export(tmp_path / "in" / f"{index}.ply")
    out = tmp_path / "out"
    views = ["--train-views", "3", "--heldout-views", "1", "--resolution", "12", "--workers", "1"]
    assert run_command(monkeypatch, "from-meshes", str(tmp_path / "in"), "--output", str(out), *views) == 0
    printed = capsys.readouterr().out
    assert "category in, 2 train; skipped 0" in printed
    assert f"Next: ns-train mnif-lite --data {out}" in printed
    assert run_command(monkeypatch, "check", str(out)) == 0
    assert "problems: none" in capsys.readouterr().out
    next(out.glob("in_train/*/pose/000001.txt")).write_text("1 2 3\n")
    assert run_command(monkeypatch, "check", str(out)) == 1
    assert "000001.txt: 3 numbers, expected 16" in capsys.readouterr().out


def test_command_voxels_and_digits(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    (tmp_path / "in").mkdir()
    vertex_coloured_box().export(tmp_path / "in" / "a.ply")
    made = [tmp_path / name for name in ("meshes", "cars", "digits")]
    few = ["--num-train", "2", "--num-val", "0", "--num-test", "0"]
    calls = (
        ["from-meshes", str(tmp_path / "in"), "--voxels", "16"],
        ["procedural-cars", "--voxels", "16", *few],
        ["digits"],
    )
    said = ("mnif-voxel-lite", "mnif-voxel-lite", "mnif-image-lite")
    for out, call, method in zip(made, calls, said):
        workers = [] if call == ["digits"] else ["--workers", "1"]
        assert run_command(monkeypatch, *call, "--output", str(out), *workers) == 0
        assert f"Next: ns-train {method} --data {out}" in capsys.readouterr().out
        assert run_command(monkeypatch, "check", str(out)) == 0
        printed = capsys.readouterr().out
        assert "problems: none" in printed
        assert f"Next: ns-train {method} --data {out}" in printed


def test_command_procedural_cars(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "cars")
    sizes = [
        "--num-train",
        "1",
        "--num-val",
        "0",
        "--num-test",
        "0",
        "--train-views",
        "2",
        "--heldout-views",
        "1",
        "--workers",
        "1",
    ]
    assert run_command(monkeypatch, "procedural-cars", "--output", out, "--resolution", "12", *sizes) == 0
    assert "1 cars (1 train, 0 val, 0 test)" in capsys.readouterr().out
    assert run_command(monkeypatch, "procedural-cars", "--output", out, "--resolution", "16", *sizes) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_command_download_takes_a_local_archive(tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, "download", "nothing-of-that-name", "--output", str(tmp_path / "d")) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_ctrl_c_leaves_no_temporary_folder(tmp_path):
    """The process group gets SIGINT while cars are rendered; what is there afterwards is whole."""
    import os
    import signal

    out = tmp_path / "cars"
    arguments = [
        "procedural-cars",
        "--output",
        str(out),
        "--num-train",
        "40",
        "--resolution",
        "32",
        "--workers",
        "2",
    ]
    command = [sys.executable, "-c", "from mnif_nerf.cli.data import entrypoint; entrypoint()", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240  # two imports of torch, on a machine that may be busy
    while not list(out.glob("cars_train/0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip().splitlines()[-1].startswith("interrupted")
    scenes = list(out.glob("cars_train/*"))
    assert 0 < len(scenes) < 40
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert all(len(list(scene.glob("rgb/*.png"))) == 16 for scene in scenes)
    assert json.loads((out / "dataset.json").read_text())["complete"] is False


def test_a_mesh_we_exported_comes_back_in_its_own_colours(tmp_path):
    from tiny_model import Ball

    from mnif_nerf.export.mesh import field_to_mesh
    from mnif_nerf.export.mesh_files import write_mesh

    mesh = field_to_mesh(Ball(), resolution=16)
    seen = np.asarray(mesh.visual.vertex_colors)[np.asarray(mesh.faces), :3] / 255.0
    for suffix in ("glb", "ply"):  # glTF keeps linear light, PLY what is seen
        surface = read_surface(write_mesh(mesh, tmp_path / f"ball.{suffix}"))
        np.testing.assert_allclose(surface.corner_colors.mean(axis=(0, 1)), seen.mean(axis=(0, 1)), atol=0.01)
