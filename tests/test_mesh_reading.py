"""Meshes as people have them: what of a file is used, what is left out, and that both are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gltf import BOX, GREEN, RED, UV, Gltf, png

from mnif_nerf.cli import data as data_command
from mnif_nerf.data.geometry.raytrace import Surface, SurfaceRenderer, brightness, sample_texture
from mnif_nerf.data.readers import mesh_notes as told
from mnif_nerf.data.readers.mesh_files import MeshContent, read_mesh, read_surface
from mnif_nerf.errors import MNIFError


def painted(texture: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"pbrMetallicRoughness": {"baseColorTexture": texture}, **more}


def colors_of(surface: Surface) -> np.ndarray:
    """Colours [F, 3] of 0 to 255 in the middle of the faces."""
    faces = np.arange(len(surface.faces))
    weights = np.full((len(faces), 3), 1 / 3)
    return surface.corner_colors.mean(axis=1) * surface.texels(faces, weights)[:, :3] * 255


def all_of(content: MeshContent, color: tuple[int, int, int]) -> None:
    expected = np.broadcast_to(np.float64(color), (len(content.surface.faces), 3))
    np.testing.assert_allclose(colors_of(content.surface), expected, atol=1.5)


def kinds(content: MeshContent) -> list[str]:
    return [note.kind for note in content.notes if note.kind != told.NO_COLOR]


def obj(path: Path, mtl: str | None, uv: bool = True, extra: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"mtllib {path.stem}.mtl"] + ["v {} {} {}".format(*vertex) for vertex in BOX.vertices]
    lines += ["vt {} {}".format(*pair) for pair in UV] + ["usemtl m"]
    pattern = "f {0}/{0} {1}/{1} {2}/{2}" if uv else "f {0} {1} {2}"
    lines += [pattern.format(*(face + 1)) for face in BOX.faces]
    path.write_text("\n".join(lines) + "\n" + extra)
    if mtl is not None:
        path.with_suffix(".mtl").write_text(f"newmtl m\nKd 0.5 0.5 0.5\n{mtl}\n")
    return path


@pytest.mark.parametrize(
    "line",
    ["map_Kd ../images/Red.PNG", "map_Kd ..\\images\\Red.PNG", "map_Kd ./../Images/red.png",
     "map_kd -s 1 1 1 -o 0 0 ../images/Red.PNG", "map_Kd -clamp on -bm 0.5 ../images/Red.PNG",
     "map_Ka ../images/Red.PNG", "Ka 1 1 1\nmap_Ke ../images/Red.PNG",
     'map_Kd "../images/Red.PNG"', "\tmap_Kd\t../images/Red.PNG", "map_Kd {absolute}/images/Red.PNG",
     "map_Kd ../images/R%65d.PNG"],
)  # fmt: skip
def test_pictures_of_obj_files_are_found_however_they_are_spelled(line: str, tmp_path: Path) -> None:
    """ShapeNet keeps them in ../images."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "Red.PNG").write_bytes(png(RED))
    content = read_mesh(obj(tmp_path / "models" / "a.obj", line.format(absolute=tmp_path)), root=tmp_path)
    all_of(content, RED)
    assert not content.notes
    assert {path.name for path in content.used} == {"a.mtl", "Red.PNG"}


def test_pictures_that_are_missing_or_outside_are_told(tmp_path: Path) -> None:
    root = tmp_path / "in"
    path = obj(root / "a.obj", "map_Kd ../Red.PNG")
    (tmp_path / "Red.PNG").write_bytes(png(RED))
    content = read_mesh(path, root=root)
    all_of(content, (127.5,) * 3)  # type: ignore[arg-type]
    assert str(content.notes[0]).startswith(
        "lacks a picture, and has its material's colour instead (../Red.PNG: outside"
    )
    with pytest.warns(UserWarning, match="a.obj: lacks a picture"):
        read_surface(path, root=root)
    (tmp_path / "Red.PNG").unlink()
    assert "../Red.PNG: missing" in str(read_mesh(path, root=root).notes[0])
    (root / "textures").mkdir()
    (root / "textures" / "Red.PNG").write_bytes(png(RED))  # as from another machine
    path = obj(root / "b.obj", "map_Kd C:\\Users\\me\\Red.PNG")
    content = read_mesh(path, root=root)
    all_of(content, RED)
    assert kinds(content) == [told.FOUND_ELSEWHERE]
    (root / "textures" / "Red.PNG").write_bytes(png(RED)[:50])
    assert "damaged" in str(read_mesh(path, root=root).notes[-1])
    assert kinds(read_mesh(obj(root / "c.obj", None), root=root)) == [told.LACKS_MATERIALS]
    path = obj(root / "e.obj", "map_Kd textures/Red.PNG")
    path.rename(root / "f.obj")
    (root / "e.mtl").rename(root / "f.mtl")  # both renamed, "mtllib e.mtl" stays
    (root / "textures" / "Red.PNG").write_bytes(png(RED))
    content = read_mesh(root / "f.obj", root=root)
    all_of(content, RED)
    assert kinds(content) == [told.FOUND_ELSEWHERE]
    assert kinds(read_mesh(obj(root / "d.obj", "map_Kd textures/Red.PNG", uv=False), root=root)) == [told.NOT_USED]


def test_transparency_of_obj_files(tmp_path: Path) -> None:
    half = np.zeros((4, 4, 3), np.uint8)
    half[:, 2:] = 255
    (tmp_path / "mask.png").write_bytes(png(half))
    surface = read_mesh(obj(tmp_path / "a.obj", "map_d mask.png")).surface
    assert surface.cutoff is not None
    faces = np.arange(12)
    seen = [surface.alpha(faces, np.tile(np.eye(3)[k] * 0.98 + 0.006, (12, 1))).mean() for k in range(2)]
    assert seen == [0.0, 1.0]
    surface = read_mesh(obj(tmp_path / "b.obj", "d 0.25")).surface
    assert surface.corner_alpha is not None
    assert surface.corner_alpha.mean() == 0.25
    content = read_mesh(obj(tmp_path / "c.obj", "d 0"))  # all of it: some exporters mean the opposite
    assert kinds(content) == [told.NOT_USED]
    assert content.surface.cutoff is None


@pytest.mark.parametrize("kind", ["f4", "u1", "u2"])
def test_whole_numbers_of_gltf_are_normalised_by_their_type(kind: str, tmp_path: Path) -> None:
    """Blender writes colours as unsigned shorts, gltfpack texture coordinates."""
    top = 1 if kind == "f4" else np.iinfo(kind).max
    linear = np.tile([0.7, 0.01, 0.01, 1.0], (36, 1))
    for material in (None, {"pbrMetallicRoughness": {}}):
        file = Gltf()
        file.node(mesh=file.box(material, COLOR_0=file.array((linear * top).round(9).astype(kind), kind != "f4")))
        content = read_mesh(file.write(tmp_path / "a.glb"))
        np.testing.assert_allclose(colors_of(content.surface).mean(axis=0), (217.7, 25.4, 25.4), atol=4)
    file, pixels = Gltf(), np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = RED, GREEN
    uv = np.round((UV * [0.4, 1] + [0.05, 0]) * top, 9).astype(kind)
    where = file.array(uv, kind != "f4")
    file.node(mesh=file.box(painted(file.texture(png(pixels))), TEXCOORD_0=where))
    all_of(read_mesh(file.write(tmp_path / "b.glb")), RED)


@pytest.mark.parametrize("kind", ["i1", "i2"])
def test_positions_in_whole_numbers(kind: str, tmp_path: Path) -> None:
    file, top = Gltf(), np.iinfo(kind).max
    file.tree["extensionsUsed"] = file.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    for size, place in ((1.0, 0.0), (0.5, 2.0)):
        mesh = file.box()
        points = file.array(np.round(BOX.vertices * 2 * top).astype(kind), normalized=True)
        file.tree["meshes"][mesh]["primitives"][0]["attributes"]["POSITION"] = points
        file.node(mesh=mesh, translation=[place, 0, 0], scale=[size] * 3)
    content = read_mesh(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(content.low, [-1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(content.high, [2.5, 1, 1], atol=1e-6)


def atlas() -> bytes:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32], pixels[:32, 32:], pixels[32:, :32], pixels[32:, 32:] = RED, GREEN, (20, 20, 220), (230, 230, 20)
    return png(pixels)


@pytest.mark.parametrize(
    ("transform", "color"),
    [({"offset": [0.5, 0.0], "scale": [0.5, 0.5]}, GREEN), ({"scale": [0.5, 0.5]}, RED),
     ({"offset": [0.0, 1.0], "scale": [0.5, 0.5], "rotation": np.pi / 2}, (20, 20, 220)),
     ({"offset": [0.5, 0.0], "scale": [0.5, 0.5], "texCoord": 1}, GREEN)],
)  # fmt: skip
def test_texture_transforms(transform: dict[str, Any], color: tuple[int, int, int], tmp_path: Path) -> None:
    file = Gltf()
    texture = file.texture(atlas(), extensions={"KHR_texture_transform": transform}, texCoord=0)
    sets = {"TEXCOORD_0": file.array(UV)}
    if "texCoord" in transform:
        sets = {"TEXCOORD_0": file.array(UV * 0), "TEXCOORD_1": file.array(UV)}
    file.node(mesh=file.box(painted(texture), **sets))
    all_of(read_mesh(file.write(tmp_path / "a.glb")), color)


def test_a_second_set_of_texture_coordinates_and_wrapping(tmp_path: Path) -> None:
    file = Gltf()
    second = file.array((UV * 0.4 + [0.55, 0.05]).astype(np.float32))
    file.node(mesh=file.box(painted(file.texture(atlas(), texCoord=1)), TEXCOORD_0=file.array(UV), TEXCOORD_1=second))
    all_of(read_mesh(file.write(tmp_path / "a.glb")), GREEN)
    pixels = np.arange(4, dtype=np.uint8).reshape(1, 4, 1).repeat(3, axis=2)
    places = np.array([[-0.1, 0.5], [1.1, 0.5], [0.3, 0.5]])
    for wrap, expected in (("repeat", [3, 0, 1]), ("mirror", [0, 3, 1]), ("clamp", [0, 3, 1])):
        assert np.rint(sample_texture(pixels, places, (wrap, wrap))[:, 0] * 255).tolist() == expected


def seen_from_front(surface: Surface) -> np.ndarray:
    found = SurfaceRenderer(surface).trace(np.array([2.0, 0, 0]), np.array([[-1.0, 0.02, 0.03]]))[0]
    found[:3] /= brightness(np.array([1.0, 0, 0]))
    return found


def test_what_is_cut_out_or_see_through_shows_what_is_behind(tmp_path: Path) -> None:
    def build(alpha: float, **mode: Any) -> Surface:
        file = Gltf()
        front = np.array(BOX.vertices) * [1, 1, 0.01] + [0, 0, 1]
        material = painted(file.texture(png((*RED, round(255 * alpha)))), **mode)
        file.node(mesh=file.box(material, front, TEXCOORD_0=file.array(UV)))
        back = {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}}
        file.node(mesh=file.box(back))
        return read_mesh(file.write(tmp_path / "a.glb")).surface

    np.testing.assert_allclose(seen_from_front(build(0.4)), [220 / 255, 20 / 255, 20 / 255, 1], atol=0.01)  # OPAQUE
    np.testing.assert_allclose(seen_from_front(build(0.4, alphaMode="MASK")), [0, 0, 1, 1], atol=0.01)
    opaque = seen_from_front(build(0.4, alphaMode="MASK", alphaCutoff=0.3))
    np.testing.assert_allclose(opaque, [220 / 255, 20 / 255, 20 / 255, 1], atol=0.01)
    mixed = seen_from_front(build(0.4, alphaMode="BLEND"))  # its front and its back
    np.testing.assert_allclose(mixed[[2, 3]], [0.36 + 0.64 * 20 / 255, 1], atol=0.02)


def test_invisible_helpers_and_shadows_are_left_out(tmp_path: Path) -> None:
    sheet = np.array(BOX.vertices) * [20, 1e-3, 20] - [0, 0.5, 0]
    clear = {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 0]}, "alphaMode": "BLEND"}
    shadow = {"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 0.4]}, "alphaMode": "BLEND"}
    white = {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 1]}}
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}}
    for material, more, kind in (
        (clear, {}, told.LEFT_OUT), (shadow, {}, told.LEFT_OUT), (white, hidden, told.LEFT_OUT),
        (white, {"extras": {"visible": False}}, told.LEFT_OUT), (white, {}, told.LARGE_SHEET),
    ):  # fmt: skip
        file = Gltf()
        file.node(mesh=file.box({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}))
        file.node(mesh=file.box(material, sheet), **more)
        content = read_mesh(file.write(tmp_path / "a.glb"))
        assert kinds(content) == [kind]
        assert np.ptp(content.surface.vertices[:, 2]) > 0.5 or kind == told.LARGE_SHEET
    file = Gltf()
    file.node(mesh=file.box(clear))
    with pytest.raises(MNIFError, match="fully transparent, so nothing would be seen"):
        read_mesh(file.write(tmp_path / "b.glb"))


def test_skins_stand_as_their_joints_put_them(tmp_path: Path) -> None:
    """The armature has a scale of 0.01 and a quarter turn, which the joint undoes; the node's own place counts not."""
    file = Gltf()
    armature = np.array([[0.01, 0, 0, 0], [0, 0, 0.01, 0], [0, -0.01, 0, 0], [0, 0, 0, 1]])
    inverse = np.linalg.inv(armature).T.astype(np.float32).reshape(1, 16)
    weights = file.array(np.tile(np.uint8([255, 0, 0, 0]), (36, 1)), normalized=True)
    body = file.box(None, JOINTS_0=file.array(np.zeros((36, 4), np.uint8)), WEIGHTS_0=weights)
    joint = file.node(root=False)
    skinned = file.node(
        root=False, mesh=body, skin=file.add("skins", joints=[joint], inverseBindMatrices=file.array(inverse))
    )
    file.node(rotation=[-(0.5**0.5), 0, 0, 0.5**0.5], scale=[0.01] * 3, children=[joint, skinned])
    file.node(mesh=file.box(None), translation=[0, 2, 0])
    content = read_mesh(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(content.high - content.low, [1, 3, 1], atol=1e-5)


def test_nodes_of_scale_zero_and_vertices_without_joints(tmp_path: Path) -> None:
    file = Gltf()
    weights = file.array(np.tile(np.uint8([0, 0, 0, 0]), (36, 1)), normalized=True)
    body = file.box(None, JOINTS_0=file.array(np.zeros((36, 4), np.uint8)), WEIGHTS_0=weights)
    joint = file.node(root=False)
    file.node(mesh=body, skin=file.add("skins", joints=[joint]), scale=[1, 3, 1], children=[joint])
    file.node(mesh=file.box(None), scale=[0, 0, 0], translation=[50, 0, 0])
    content = read_mesh(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(content.high - content.low, [1, 3, 1])
    assert kinds(content) == [told.LEFT_OUT]


def test_morphs_instances_strips_and_scenes(tmp_path: Path) -> None:
    file = Gltf()
    mesh = file.box(None)
    up = file.array(np.tile(np.float32([0, 1, 0]), (36, 1)))
    file.tree["meshes"][mesh]["primitives"][0]["targets"] = [{"POSITION": up}]
    file.node(mesh=mesh, weights=[3.0])
    places = file.array(np.float32([[0, 0, 0], [5, 0, 0]]))
    file.node(mesh=file.box(None), extensions={"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": places}}})
    strip = file.add(
        "meshes",
        primitives=[
            {
                "attributes": {"POSITION": file.array(np.float32([[0, 0, 9], [1, 0, 9], [0, 1, 9], [1, 1, 9]]))},
                "mode": 5,
            }
        ],
    )
    file.node(mesh=strip)
    file.tree["scenes"].append({"nodes": [file.node(root=False, mesh=mesh)], "name": "other"})
    content = read_mesh(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(content.low, [-0.5, -0.5, -0.5])
    np.testing.assert_allclose(content.high, [5.5, 3.5, 9])
    assert len(content.surface.faces) == 12 * 3 + 2
    assert kinds(content) == [told.ONE_SCENE]


def test_what_is_compressed_is_read_or_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Gltf()
    number = file.add("accessors", componentType=5126, count=36, type="VEC3")
    extension = {
        "KHR_draco_mesh_compression": {"bufferView": file.view(b"DRACO" + bytes(60)), "attributes": {"POSITION": 0}}
    }
    file.node(mesh=file.add("meshes", primitives=[{"attributes": {"POSITION": number}, "extensions": extension}]))
    path = file.write(tmp_path / "a.glb")
    with pytest.raises(MNIFError, match=r"a.glb: .*compressed with Draco"):
        read_mesh(path)
    monkeypatch.setitem(__import__("sys").modules, "DracoPy", None)
    with pytest.raises(MNIFError, match=r"compressed with Draco; pip install 'mnif_nerf\[compressed\]', or export it"):
        read_mesh(path)
    monkeypatch.undo()
    file = Gltf()
    source = file.add("images", bufferView=file.view(b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(50)), mimeType="image/ktx2")
    texture = {"index": file.add("textures", extensions={"KHR_texture_basisu": {"source": source}})}
    file.node(mesh=file.box(painted(texture), TEXCOORD_0=file.array(UV)))
    with pytest.raises(MNIFError, match="its pictures are KTX2, which is not read; export it with pictures in PNG"):
        read_mesh(file.write(tmp_path / "b.glb"))
    file = Gltf()
    file.node(mesh=file.box(None))
    file.tree["extensionsRequired"] = ["KHR_gaussian_splatting"]
    with pytest.raises(MNIFError, match="needs the extension KHR_gaussian_splatting"):
        read_mesh(file.write(tmp_path / "c.glb"))


def test_draco_and_meshopt_are_decoded(tmp_path: Path) -> None:
    draco = pytest.importorskip("DracoPy")
    packed = draco.encode(np.array(BOX.vertices, np.float32), faces=np.array(BOX.faces, np.uint32))
    file = Gltf()
    number = file.add("accessors", componentType=5126, count=36, type="VEC3")
    index = file.add("accessors", componentType=5125, count=36, type="SCALAR")
    extension = {"KHR_draco_mesh_compression": {"bufferView": file.view(packed), "attributes": {"POSITION": 0}}}
    primitive = {"attributes": {"POSITION": number}, "indices": index, "extensions": extension}
    file.node(mesh=file.add("meshes", primitives=[primitive]))
    content = read_mesh(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(content.high - content.low, [1, 1, 1], atol=1e-2)
    assert len(content.surface.faces) == 12
    codec = pytest.importorskip("meshoptimizer")
    points = np.array(BOX.vertices, np.float32)
    content_of = codec.encode_vertex_buffer(points, 36, 12)
    file = Gltf()
    mesh = file.box(None)
    view = file.view(bytes(content_of))
    entry = {**file.tree["bufferViews"][view], "byteStride": 12, "count": 36, "mode": "ATTRIBUTES"}
    file.tree["bufferViews"][0] = {"buffer": 1, "byteLength": 432, "extensions": {"EXT_meshopt_compression": entry}}
    file.node(mesh=mesh)
    content = read_mesh(file.write(tmp_path / "b.glb"))
    np.testing.assert_allclose(content.high - content.low, [1, 1, 1], atol=1e-6)


def test_files_beside_a_gltf(tmp_path: Path) -> None:
    file = Gltf()
    source = file.add("images", uri="my%20texture.png")
    file.node(mesh=file.box(painted({"index": file.add("textures", source=source)}), TEXCOORD_0=file.array(UV)))
    file.tree["buffers"] = [{"byteLength": len(file.blob), "uri": "sc%C3%A8ne%20data.bin"}]
    path = tmp_path / "a.gltf"
    path.write_text(json.dumps(file.tree))
    with pytest.raises(MNIFError, match=r"a.gltf: its file scène data.bin is missing; put it beside the file"):
        read_mesh(path)
    (tmp_path / "scène data.bin").write_bytes(file.blob)
    assert kinds(read_mesh(path)) == [told.LACKS_PICTURE]
    (tmp_path / "my texture.png").write_bytes(png(RED))
    all_of(read_mesh(path), RED)


def test_a_run_ends_with_a_table_of_what_was_not_used(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "in"
    obj(folder / "lacking.obj", "map_Kd gone.png")
    (folder / "fine.png").write_bytes(png(RED))
    obj(folder / "fine.obj", "map_Kd fine.png")
    (folder / "line.off").write_bytes(b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    for name in ("sub/car.fbx", "bike.blend", "suv.zip", "notes.txt", "spare.png", ".DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    arguments = ["mnif-data", "from-meshes", str(folder), "--output", str(tmp_path / "out"), "--resolution", "12"]
    monkeypatch.setattr("sys.argv", [*arguments, "--workers", "1", "--train-views", "3", "--heldout-views", "0"])
    for _ in range(2):  # the second time from the record
        data_command.entrypoint()
        printed = capsys.readouterr().out
        assert "skipped" in printed
        assert "line.off: no face has an area" in printed
        for line in (
            "2 of 3 meshes are used",
            "1 left out, for the reasons above: line.off",
            "1 of 2 meshes lack a picture, and have their material's colour instead: lacking.obj (gone.png: missing)",
            "2 files of kinds that are not read: bike.blend, sub/car.fbx; open them in Blender and export them as .glb",
            "1 archive not looked into: suv.zip; unpack them",
            "2 other files that no mesh names: 1 .txt, 1 .png (notes.txt, spare.png)",
            "1 hidden file, not looked at",
        ):
            assert f"  {line}\n" in printed


def test_a_small_mark_on_a_clear_picture_is_seen(tmp_path: Path) -> None:
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[101:104, 140:143] = (*RED, 255)  # smaller than the distance of any few places that one might look at
    file = Gltf()
    material = painted(file.texture(png(pixels)), alphaMode="MASK")
    file.node(mesh=file.box(material, TEXCOORD_0=file.array(UV)))
    assert len(read_mesh(file.write(tmp_path / "a.glb")).surface.faces) == 12
    file.tree["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = file.array((UV * 0.3).astype(np.float32))
    with pytest.raises(MNIFError, match="fully transparent"):
        read_mesh(file.write(tmp_path / "b.glb"))


def test_text_in_utf_16_half_coloured_vertices_and_points_alone(tmp_path: Path) -> None:
    path = obj(tmp_path / "a.obj", "")
    path.write_text(path.read_text(), encoding="utf-16")
    assert len(read_mesh(path).surface.faces) == 12
    path.write_text("v 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert read_mesh(path).surface.corner_colors[0, :2].tolist() == [[1, 0, 0], [1, 0, 0]]
    path.write_text("v 0 0 0\nv 1 0 0\nl 1 2\n")
    with pytest.raises(MNIFError, match="no triangles, only points, lines or curves"):
        read_mesh(path)
