"""Damaged mesh files of every kind: one sentence, or a mesh that is finite and of unit diagonal; nothing else."""

from __future__ import annotations

import copy
import json
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from tiny_gltf import RED, UV, Gltf, png

pytest.importorskip("hypothesis")

from fuzzing import explore, reads_or_tells
from hypothesis import strategies as st

from mnif_nerf.data.readers.mesh_files import read_mesh

ODD: list[Any] = [
    0,
    -1,
    3,
    1e308,
    float("nan"),
    2**40,
    "",
    None,
    True,
    [],
    {},
    [0],
    "../../x",
    5126,
    5121,
    "VEC2",
    [1e300] * 16,
]
NUMBERS = [b"0", b"-1", b"1e308", b"nan", b"inf", b"99999999999", b"2147483648", b"", b"x", b"null"]


def painted_box(path: Path) -> bytes:
    file = Gltf()
    texture = file.texture(png((*RED, 200)), extensions={"KHR_texture_transform": {"rotation": 1.0}})
    weights = file.array(np.tile(np.uint8([255, 0, 0, 0]), (36, 1)), normalized=True)
    joints = file.array(np.zeros((36, 4), np.uint8))
    material = {"pbrMetallicRoughness": {"baseColorTexture": texture}, "alphaMode": "BLEND"}
    body = file.box(material, TEXCOORD_0=file.array(UV), JOINTS_0=joints, WEIGHTS_0=weights)
    joint = file.node(root=False)
    file.node(mesh=body, skin=file.add("skins", joints=[joint]))
    file.node(mesh=file.box(None), children=[joint])
    return file.write(path).read_bytes()


def sound(kind: str, folder: Path) -> bytes:
    if kind == "glb":
        return painted_box(folder / "sound.glb")
    box = trimesh.creation.box()
    box.visual.vertex_colors = (250, 3, 4, 255)
    if kind == "mtl":
        return (
            b"newmtl m\nKd 0.5 0.5 0.5\nKe 1 1 1\nmap_Kd -s 1 1 1 -o 0 0 -clamp on a.png\nd 0.5\nTr 0.5\nmap_d a.png\n"
        )
    content = box.export(file_type=kind)
    return content.encode() if isinstance(content, str) else content


def with_odd_values(data: bytes, draw: Any) -> bytes:
    """A .glb whose JSON has other values here and there."""
    (length,) = struct.unpack_from("<I", data, 12)
    tree, rest = json.loads(data[20 : 20 + length]), data[20 + length :]
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        for _ in range(draw(st.integers(1, 6))):
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if not isinstance(node[key], (dict, list)) or not node[key]:
                break
            node, last = node[key], (node, key)
        else:
            node, key = last
        node[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    text = json.dumps(tree).encode()
    head = data[:8] + struct.pack("<I", 20 + len(text) + len(rest))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + rest


@st.composite
def damaged(draw: Any, data: bytes, kind: str) -> bytes:
    if kind == "glb" and draw(st.booleans()):
        return with_odd_values(data, draw)
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        how = draw(st.integers(0, 3))
        spots = [match.span() for match in re.finditer(rb"-?\d+(?:\.\d+)?", bytes(found[:4000]))]
        if how == 0 and spots:
            first, last = draw(st.sampled_from(spots))
            found[first:last] = draw(st.sampled_from(NUMBERS))
        elif how == 1:
            del found[place:]
        elif how == 2:
            found[place : place + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"]))
        else:
            found[place:place] = draw(st.binary(max_size=6))
    return bytes(found)


def read_whole(path: Path) -> None:
    surface = read_mesh(path).surface
    used = surface.vertices[np.unique(surface.faces)]
    assert np.linalg.norm(np.ptp(used, axis=0)) == pytest.approx(1.0)
    assert np.isfinite(surface.corner_colors).all()
    faces = np.arange(len(surface.faces))
    assert np.isfinite(surface.alpha(faces, np.full((len(faces), 3), 1 / 3))).all()


@pytest.mark.parametrize("kind", ["glb", "obj", "mtl", "ply", "off", "stl"])
def test_damage_is_told_in_a_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{'obj' if kind == 'mtl' else kind}"
    if kind == "mtl":
        path.write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n")
        (tmp_path / "a.png").write_bytes(png(RED))
    damaged_file = tmp_path / "a.mtl" if kind == "mtl" else path

    def attempt(content: bytes) -> str:
        return reads_or_tells(damaged_file, content, lambda _: read_whole(path))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explore(f"{kind} meshes", damaged(sound(kind, tmp_path), kind), attempt, 80)
