"""Files from strangers, damaged in every way: readers answer with data or one sentence, within bounds of memory.

The suite tries a few of each; `MNIF_FUZZ_SECONDS=60 pytest tests/test_hostile_files.py` goes on for so many CPU seconds
with each reader.
"""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import explore, reads_or_tells
from hypothesis import strategies as st
from PIL import Image, features
from safetensors.torch import save
from tiny_srn import look_at_origin, write_tiny_scene

from mnif_nerf.data.observations.files import detect_kind, read_views
from mnif_nerf.data.readers.cloud_files import read_cloud
from mnif_nerf.data.readers.imnet import Hdf5Reader, hdf5_sources
from mnif_nerf.data.readers.labels import read_labels
from mnif_nerf.data.readers.picture_files import films, read_picture
from mnif_nerf.data.readers.signals import read_signal
from mnif_nerf.data.readers.splits import own_splits
from mnif_nerf.data.readers.srn import parse_intrinsics, read_matrix, read_scene
from mnif_nerf.data.readers.transforms_json import read_transforms
from mnif_nerf.data.readers.voxel_files import read_voxels
from mnif_nerf.errors import MNIFError
from mnif_nerf.export.voxels import binvox_bytes
from mnif_nerf.tensor_files import read_tensors, require_real, write_tensors

SOLID = np.zeros((6, 6, 6), bool)
SOLID[1:4, 2:4, 1:5] = True
POINTS = np.random.default_rng(0).normal(size=(12, 3)).round(3)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def wav(kind: type) -> bytes:
    from scipy.io import wavfile

    out = io.BytesIO()
    wavfile.write(out, 8000, np.arange(64).astype(kind))
    return out.getvalue()


def hdf5(**tables: np.ndarray) -> bytes:
    h5py = pytest.importorskip("h5py")
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, table in tables.items():
            file.create_dataset(name, data=table, chunks=True, compression="gzip")
    return out.getvalue()


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 40)).save(out, kind)
    return out.getvalue()


def transforms() -> bytes:
    poses = [look_at_origin(np.array(place)) @ np.diag([1.0, -1, -1, 1]) for place in ([1.3, 0, 0], [0, 1.3, 0.1])]
    frames = [{"file_path": f"{k}.png", "transform_matrix": pose.round(4).tolist()} for k, pose in enumerate(poses)]
    return json.dumps({"fl_x": 8.2, "cx": 4, "cy": 4, "w": 8, "h": 8, "frames": frames}).encode()


def tensors(digest: bool) -> bytes:
    """A safetensors file, with the digest of this project's or without one, as other programs write it."""
    content = {"latents": torch.arange(12.0).reshape(3, 4), "cells": torch.ones(2, 5, dtype=torch.uint8)}
    if not digest:
        return save(content, {"names": '["a", "b"]'})
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "a.safetensors", content, {"names": '["a", "b"]'})
        return (Path(folder) / "a.safetensors").read_bytes()


def read_latents(path: Path) -> None:
    found, _ = read_tensors(path)
    require_real({"latents": found["latents"]} if "latents" in found else {}, path, "write it again")


def read_listing(path: Path) -> None:
    """Splits by the list at `path` and another, of files beside them."""
    files = [path.parent / f"{name}.npy" for name in "abcd"]
    (path.parent / "test.txt").write_text("c\nd\n")
    own_splits(files, path.parent)


def read_hdf5(path: Path) -> None:
    reader = Hdf5Reader()
    try:
        for source in next(iter(hdf5_sources([path]).values()))[:2]:
            reader.read(source)
    finally:
        reader.close()


def read_cloud_or_voxels(path: Path) -> None:
    detect_kind(path)
    read_cloud(path)


@dataclass(frozen=True)
class Target:
    """A reader, the name of its file, and whole files of its kind."""

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]


TEXT = "\n".join(" ".join(map(str, row)) for row in POINTS)
TARGETS = {
    "binvox": Target("a.binvox", lambda: [binvox_bytes(SOLID), binvox_bytes(~SOLID)], read_voxels),
    "npy voxels": Target("a.npy", lambda: [npy(SOLID), npy(SOLID.astype(np.float32))], read_voxels),
    "npz voxels": Target(
        "a.npz",
        lambda: [
            npz(a=SOLID),
            npz(True, a=SOLID.astype(np.uint8), scale=np.float32(2)),
            npz(
                True, packed=np.packbits(SOLID, bitorder="little"), resolution=np.int64(6), half_extent=np.float64(0.5)
            ),
        ],
        read_voxels,
    ),
    "npy signals": Target("a.npy", lambda: [npy(POINTS), npy(POINTS.astype(">f4"))], read_signal),
    "wav": Target("a.wav", lambda: [wav(np.int16), wav(np.float32)], read_signal),
    "hdf5": Target(
        "a_train.h5",
        lambda: [
            hdf5(voxels=np.stack([SOLID] * 2).astype(np.uint8)),
            hdf5(points_64=np.zeros((2, 9, 3), np.uint8), values_64=np.ones((2, 9, 1), np.uint8)),
        ],
        read_hdf5,
    ),
    "intrinsics": Target(
        "intrinsics.txt",
        lambda: [b"131.25 64. 64. 0.\n0. 0. 0.\n1.\n128 128\n", b"9 0 4\n0 9 4\n0 0 1\n", b"9,0 9,0 4,0 4,0\n"],
        parse_intrinsics,
    ),
    "poses": Target(
        "0.txt",
        lambda: [" ".join(map(str, look_at_origin(np.array([1.3, 0.1, 0])).ravel())).encode()],
        lambda path: read_matrix(path, 16),
    ),
    "scenes": Target("scene/intrinsics.txt", lambda: [b"8.2 4 4 0.\n8 8\n"], lambda path: read_scene(path.parent)),
    "scene poses": Target(
        "scene/pose/000001.txt",
        lambda: [" ".join(map(str, look_at_origin(np.array([1.3, 0.1, 0])).ravel())).encode()],
        lambda path: read_views(path.parent.parent),
    ),
    "safetensors": Target("a.safetensors", lambda: [tensors(False), tensors(True)], read_latents),
    "labels": Target(
        "labels.csv",
        lambda: [
            b"name,species,height:number\na,oak,3\nb,oak,4.5\nc,fir,1e1\nd,fir,\n",
            b'name;species\r\na;"oak; old"\r\nb;fir\r\n',
        ],
        read_labels,
    ),
    "splits": Target("shapes/train.lst", lambda: [b"a\nb\n", b"shapes/a.npy\r\nb.npy\r\n"], read_listing),
    "transforms.json": Target("views/transforms.json", lambda: [transforms()], read_transforms),
    "text clouds": Target(
        "a.csv",
        lambda: [TEXT.encode(), ("x,y,z\n" + TEXT.replace(" ", ",")).encode(), TEXT.replace(".", ",").encode("utf-16")],
        read_cloud_or_voxels,
    ),
    "npz clouds": Target(
        "a.npz",
        lambda: [npz(points=POINTS, normals=POINTS), npz(True, xyz=POINTS, colors=np.abs(POINTS))],
        read_cloud_or_voxels,
    ),
    "ply clouds": Target(
        "a.ply",
        lambda: [
            b"ply\nformat ascii 1.0\nelement vertex 12\nproperty float x\nproperty float y\nproperty float z\n"
            b"end_header\n" + TEXT.encode()
        ],
        read_cloud_or_voxels,
    ),
    "pictures": Target(
        "a.png",
        lambda: [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")],
        lambda path: read_picture(path, 4, 3),
    ),
}
if features.check("avif"):
    TARGETS["avif"] = Target("a.avif", lambda: [picture("AVIF")], lambda path: read_picture(path, 4, 3))
TARGETS["films"] = Target("a.tif", lambda: [picture("TIFF"), picture("GIF")], lambda path: films([path]))
_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"99999999999",
    b"nan",
    b"inf",
    b"1e309",
    b"(",
    b"[[",
    b"{",
    b'"',
    b"\xff",
)
_EDIT = st.tuples(
    st.sampled_from(["set", "cut", "drop", "insert", "number", "swap"]), st.floats(0, 1), st.integers(0, 255)
)


def damaged(content: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    """A file after some edits, each at a share of its length."""
    data = bytearray(content)
    for kind, share, value in edits:
        place = int(share * len(data))
        if kind == "set" and place < len(data):
            data[place] = value
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + value % 16 + 1]
        elif kind == "insert":
            data[place:place] = bytes([value]) * (value % 9 + 1)
        elif kind == "number":
            word = _NUMBERS[value % len(_NUMBERS)]
            data[place : place + len(word)] = word
        elif kind == "swap":
            other = value * len(data) // 256
            data[place : place + 4], data[other : other + 4] = data[other : other + 4], data[place : place + 4]
    return bytes(data)


def prepare(folder: Path) -> None:
    """What lies beside the files: pictures, and a scene."""
    rng = np.random.default_rng(0)
    poses = np.stack([look_at_origin(1.3 * d / np.linalg.norm(d)) for d in rng.normal(size=(3, 3))])
    write_tiny_scene(folder / "scene", [], poses, 8)
    (folder / "views").mkdir()
    (folder / "shapes").mkdir()
    for k in range(2):
        Image.new("RGB", (8, 8), "white").save(folder / "views" / f"{k}.png")


@pytest.mark.parametrize("name", list(TARGETS))
def test_damaged_files(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    prepare(tmp_path)
    seeds, path = target.seeds(), tmp_path / target.file
    for seed in seeds:
        reads_or_tells(path, seed, target.read)
    contents = st.builds(damaged, st.sampled_from(seeds), st.lists(_EDIT, min_size=1, max_size=6))
    explore(name, contents, lambda content: reads_or_tells(path, content, target.read), 15)


_ODD: list[Any] = [
    *(
        0,
        -1,
        1e308,
        float("nan"),
        2**40,
        10**400,
        "",
        None,
        True,
        [],
        {},
        [[]],
        "x" * 5000,
        "a\0b",
        "\ud800",
        "..",
        "nan",
    ),
    *([1e300] * 16, [[1, 2], [3]], [[1] * 4] * 4, {"a": 1}),
]


@st.composite
def odd_trees(draw: Any) -> bytes:
    """A transforms.json with odd values here and there."""
    tree = json.loads(transforms())
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        for _ in range(draw(st.integers(0, 4))):
            inner = [value for value in (node.values() if isinstance(node, dict) else node) if value]
            inner = [value for value in inner if isinstance(value, (dict, list))]
            node = draw(st.sampled_from(inner)) if inner else node
        keys = [*node, "w", "k1", "fl_y", "camera_angle_x"] if isinstance(node, dict) else range(len(node))
        node[draw(st.sampled_from(keys))] = copy.deepcopy(draw(st.sampled_from(_ODD)))
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def test_odd_values_in_transforms_json(tmp_path: Path) -> None:
    prepare(tmp_path)
    path = tmp_path / "views" / "transforms.json"

    def attempt(content: bytes) -> str:
        return reads_or_tells(path, content, lambda path: read_views(path.parent))

    explore("odd values in transforms.json", odd_trees(), attempt, 80)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"fl_x": 8.2', b'"fl_x": 1' + b"0" * 400), (b'"fl_x"', b'"fl_y": 1' + b"0" * 320 + b', "fl_x"'),
     (b"1.3", b"1" + b"0" * 310), (b"1.3", b"1e300"), (b"0.png", b"x" * 5000), (b"0.png", b"\\ud800.png")],
)  # fmt: skip
def test_numbers_and_names_beyond_measure(tmp_path: Path, old: bytes, new: bytes) -> None:
    prepare(tmp_path)
    (tmp_path / "views" / "transforms.json").write_bytes(transforms().replace(old, new, 1))
    with pytest.raises(MNIFError, match=r"transforms.json: .*\.$") as told:
        read_views(tmp_path / "views")
    str(told.value).encode()
