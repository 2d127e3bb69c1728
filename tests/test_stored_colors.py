"""Colours of .ply, .off and .stl files in every way that programs store them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from tiny_gltf import RED, png

from mnif_nerf.data.readers import mesh_notes as told
from mnif_nerf.data.readers.mesh_files import UNCOLOURED, read_mesh
from mnif_nerf.errors import MNIFError

BOX = trimesh.creation.box()
PLACES = ["{} {} {}".format(*vertex) for vertex in BOX.vertices]
TRIANGLES = ["3 {} {} {}".format(*face) for face in BOX.faces]


def is_red(path: Path, atol: float = 0.03) -> None:
    colors = read_mesh(path).surface.corner_colors
    np.testing.assert_allclose(colors, np.broadcast_to(np.float64(RED) / 255, colors.shape), atol=atol)


@pytest.mark.parametrize(
    ("kind", "names", "words"),
    [("uchar", "red green blue", "220 20 20"), ("ushort", "red green blue", "56540 5140 5140"),
     ("int", "red green blue", "220 20 20"), ("float", "red green blue", "0.8627 0.0784 0.0784"),
     ("float", "red green blue", "220 20 20"), ("double", "r g b", "0.8627 0.0784 0.0784"),
     ("uchar", "diffuse_red diffuse_green diffuse_blue", "220 20 20")],
)  # fmt: skip
def test_ply(kind: str, names: str, words: str, tmp_path: Path) -> None:
    own = [f"property {kind} {name}" for name in names.split()]
    places = [f"property float {axis}" for axis in "xyz"]
    faces = ["element face 12", "property list uchar int vertex_indices"]
    for at_vertices in (True, False):
        head = ["ply", "format ascii 1.0", "element vertex 8", *places, *(own if at_vertices else []), *faces]
        head += [*([] if at_vertices else own), "end_header"]
        rows = [f"{row} {words}" if at_vertices else row for row in PLACES]
        rows += [row if at_vertices else f"{row} {words}" for row in TRIANGLES]
        (tmp_path / "a.ply").write_text("\n".join(head + rows) + "\n")
        is_red(tmp_path / "a.ply")


def test_ply_with_a_picture_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "images" / "Red.png").write_bytes(png(RED))
    named = [f"property float {name}" for name in ("x", "y", "z", "s", "t")]
    head = ["ply", "format ascii 1.0", "comment TextureFile ..\\images\\red.PNG", "element vertex 8", *named]
    head += ["element face 12", "property list uchar int vertex_indices", "end_header"]
    path = tmp_path / "models" / "a.ply"
    path.write_text("\n".join(head + [f"{row} 0.5 0.5" for row in PLACES] + TRIANGLES) + "\n")
    surface = read_mesh(path, root=tmp_path).surface
    assert tuple(surface.textures[0][0, 0]) == RED
    (tmp_path / "images" / "Red.png").unlink()
    assert [note.kind for note in read_mesh(path, root=tmp_path).notes] == [told.LACKS_PICTURE]


@pytest.mark.parametrize(
    ("head", "vertex", "face"),
    [("COFF", "220 20 20 255", ""), ("COFF", "0.8627 0.0784 0.0784 1", ""), ("CNOFF", "0 0 1 220 20 20 255", ""),
     ("OFF", "220 20 20", ""), ("OFF", "0.8627 0.0784 0.0784 1", ""),
     ("OFF", "", "220 20 20"), ("# made by hand\nOFF", "", "0.8627 0.0784 0.0784 1"),
     ("STCOFF", "220 20 20 255 0 0", "")],
)  # fmt: skip
def test_off(head: str, vertex: str, face: str, tmp_path: Path) -> None:
    rows = [f"{row} {vertex}" for row in PLACES] + ["", "# faces"] + [f"{row} {face}" for row in TRIANGLES]
    (tmp_path / "a.off").write_text("\n".join([head, "8 12 0", *rows]))
    is_red(tmp_path / "a.off")


def test_off_of_modelnet_polygons_and_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text("\ufeffOFF8 12 0\n" + "\n".join(PLACES + TRIANGLES))
    assert (read_mesh(path).surface.corner_colors == UNCOLOURED).all()
    path.write_text("OFF\n5 1 0\n0 0 0\n1 0 0\n1 1 0\n0.5 1.5 0\n0 1 0\n5 0 1 2 3 4\n")
    assert len(read_mesh(path).surface.faces) == 3
    for text, said in (
        ("OFF\n99999999999 1 0\n0 0 0\n", "cut off"),
        ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "no triangles, only points"),
        ("OFF BINARY\n\0\0", "no OFF file in text"),
    ):
        path.write_text(text)
        with pytest.raises(MNIFError, match=said):
            read_mesh(path)


@pytest.mark.parametrize("magics", [True, False])
def test_stl(magics: bool, tmp_path: Path) -> None:
    record = np.zeros(12, np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")]))
    record["v"] = BOX.vertices[BOX.faces]
    record["a"] = 2 << 10 | 2 << 5 | 27 if magics else 0x8000 | 27 << 10 | 2 << 5 | 2
    head = b"COLOR=" + bytes([0, 0, 255, 255]) if magics else b"VisCAM"
    path = tmp_path / "a.stl"
    content = head.ljust(80, b" ") + struct.pack("<I", 12) + record.tobytes()
    for after in (b"", b"\0" * 7):
        path.write_bytes(content + after)
        is_red(path)
    record["a"] = 0x8000 if magics else 0
    path.write_bytes(head.ljust(80, b" ") + struct.pack("<I", 12) + record.tobytes())
    found = read_mesh(path).surface.corner_colors[0, 0]
    np.testing.assert_allclose(found, [0, 0, 1] if magics else [UNCOLOURED] * 3)
