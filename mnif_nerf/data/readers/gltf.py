"""Reading glTF 2.0 (.glb, .gltf) into coloured triangles: the tree of nodes, skins, morphs, and primitives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.surface_colors import srgb_from_linear
from mnif_nerf.data.readers.gltf_file import DRACO, GltfFile
from mnif_nerf.data.readers.gltf_materials import GltfMaterial, read_material
from mnif_nerf.data.readers.mesh_notes import LEFT_OUT, NOT_DRAWN, NOT_USED, ONE_SCENE
from mnif_nerf.data.readers.mesh_pieces import UNCOLOURED, with_corners
from mnif_nerf.data.readers.mesh_surroundings import Surroundings

_INSTANCING = "EXT_mesh_gpu_instancing"
_DEEPEST = 500  # nodes below one another
_MOST_TRIANGLES = 50_000_000


@dataclass(frozen=True)
class _Placed:
    """A mesh of the scene: its number, its node's, and where the node is [4, 4]."""

    mesh: Any
    node: int
    place: np.ndarray


class _Scene:
    def __init__(self, file: GltfFile) -> None:
        self.file = file
        self.places: dict[int, np.ndarray] = {}
        self.shown: list[_Placed] = []
        self._triangles = 0
        self._materials: dict[Any, GltfMaterial] = {}
        roots, others = self._roots()
        for root in roots:
            self._walk(root)
        for root in others:  # joints may stand anywhere
            self._walk(root, shown=False)

    def _roots(self) -> tuple[list[Any], list[int]]:
        """Root nodes of the scene that is read, and of all else."""
        tree = self.file.tree
        nodes = tree.get("nodes", [])
        children = {child for node in nodes for child in node.get("children", ())}
        roots = [index for index in range(len(nodes)) if index not in children]
        scenes = tree.get("scenes", [])
        if not scenes:
            return roots, []
        chosen = self.file.entry("scenes", tree.get("scene", 0))
        if sum(bool(scene.get("nodes")) for scene in scenes) > 1:
            self.file.beside.note(ONE_SCENE, str(chosen.get("name") or f"scene {tree.get('scene', 0)}"))
        own = list(chosen.get("nodes", ()))
        return own, [root for root in roots if root not in own]

    def _walk(self, root: Any, shown: bool = True) -> None:
        """Place a node and all below it."""
        waiting = [(root, np.eye(4), shown, 0)]
        while waiting:
            index, above, shown, depth = waiting.pop()
            node = self.file.entry("nodes", index)
            if index in self.places:  # named twice, which the format forbids
                continue
            if depth > _DEEPEST:
                raise ValueError("nodes too deep below one another")
            place = above @ _transform(node)
            self.places[index] = place
            if shown and _is_hidden(node):
                if _holds_mesh(self.file, index):
                    self.file.beside.note(LEFT_OUT, f"{node.get('name', 'a node')}: invisible")
                shown = False
            if shown and "mesh" in node:
                self.shown.append(_Placed(node["mesh"], index, place))
            waiting += [(child, place, shown, depth + 1) for child in reversed(node.get("children", ()))]

    def pieces(self) -> Iterator[Surface]:
        for one in self.shown:
            mesh, node = self.file.entry("meshes", one.mesh), self.file.entry("nodes", one.node)
            weights = node.get("weights", mesh.get("weights"))
            for primitive in mesh["primitives"]:
                if primitive.get("mode", 4) not in (4, 5, 6):
                    self.file.beside.note(NOT_DRAWN)
                    continue
                piece = self._piece(primitive, weights, one, node)
                if piece is not None:
                    yield piece

    def _piece(self, primitive: dict[str, Any], weights: Any, one: _Placed, node: dict[str, Any]) -> Surface | None:
        found = self.file.attributes(primitive)
        if "POSITION" not in found:
            return None
        vertices = found["POSITION"].astype(np.float64)
        if vertices.shape[1] != 3:
            raise ValueError("positions that are not three numbers")
        if weights is not None:
            vertices = self._morphed(vertices, primitive, weights)
        mode = 4 if DRACO in primitive.get("extensions", {}) else primitive.get("mode", 4)
        faces = _triangles(found.get("indices"), len(vertices), mode)
        if not len(faces):
            return None
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError("a face names a vertex that is not there")
        if "skin" in node and "JOINTS_0" in found and "WEIGHTS_0" in found:
            places = [np.eye(4)]
            vertices = self._skinned(vertices, found, node["skin"], one.place)
        else:
            places = self._instances(node, one.place)
        self._triangles += len(faces) * len(places)
        if self._triangles > _MOST_TRIANGLES:
            raise ValueError(f"more than {_MOST_TRIANGLES:,} triangles")
        corners = np.concatenate([vertices @ place[:3, :3].T + place[:3, 3] for place in places])
        steps = np.arange(len(places))[:, None, None] * len(vertices)
        surface = self._colored(faces, found, primitive.get("material"))
        return replace(_times(surface, len(places)), vertices=corners, faces=(faces[None] + steps).reshape(-1, 3))

    def _morphed(self, vertices: np.ndarray, primitive: dict[str, Any], weights: Any) -> np.ndarray:
        for weight, target in zip(weights, primitive.get("targets", ())):
            if weight and "POSITION" in target:
                vertices = vertices + float(weight) * self.file.accessor(target["POSITION"])
        return vertices

    def _skinned(self, vertices: np.ndarray, found: dict[str, np.ndarray], skin: Any, place: np.ndarray) -> np.ndarray:
        """Vertices as the joints put them; by the format, the node's own place counts nothing, but for vertices that no
        joint holds."""
        entry = self.file.entry("skins", skin)
        joints = entry["joints"]
        places = np.stack([self._place(joint) for joint in joints])
        if "inverseBindMatrices" in entry:
            inverse = self.file.accessor(entry["inverseBindMatrices"])[: len(joints)]
            places = places @ inverse.reshape(-1, 4, 4).transpose(0, 2, 1)
        moved, total = np.zeros_like(vertices), np.zeros((len(vertices), 1))
        for number in range(8):
            which, weight = found.get(f"JOINTS_{number}"), found.get(f"WEIGHTS_{number}")
            if which is None or weight is None:
                break
            for k in range(which.shape[1]):
                own, share = places[which[:, k].astype(np.int64)], weight[:, k : k + 1]
                moved += share * (np.einsum("vij,vj->vi", own[:, :3, :3], vertices) + own[:, :3, 3])
                total += share
        free = total[:, 0] <= 1e-6
        moved[free], total[free] = vertices[free] @ place[:3, :3].T + place[:3, 3], 1.0
        return moved / total

    def _place(self, node: Any) -> np.ndarray:
        if not isinstance(node, int) or node not in self.places:
            raise ValueError("a joint that is not there")
        return self.places[node]

    def _instances(self, node: dict[str, Any], place: np.ndarray) -> list[np.ndarray]:
        """Where a node's mesh stands: once, or at the places of EXT_mesh_gpu_instancing."""
        extension = node.get("extensions", {}).get(_INSTANCING)
        if extension is None:
            return [place]
        values = {name: self.file.accessor(index) for name, index in extension["attributes"].items()}
        count = max((len(value) for value in values.values()), default=0)
        parts = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}
        return [
            place @ _transform({word: values[name][k] for name, word in parts.items() if name in values})
            for k in range(count)
        ]

    def _colored(self, faces: np.ndarray, found: dict[str, np.ndarray], number: Any) -> Surface:
        """Colours of a primitive's faces; its vertices are filled in later."""
        if number is not None and number not in self._materials:
            self._materials[number] = read_material(self.file, number)
        material = self._materials[number] if number is not None else GltfMaterial(np.ones(4))
        tint, uv = found.get("COLOR_0"), found.get(f"TEXCOORD_{material.coordinates}")
        picture = material.picture
        if picture is not None and (uv is None or uv.shape[1] != 2):
            self.file.beside.note(NOT_USED, f"a picture for which it has no texture coordinates {material.coordinates}")
            picture = None
        if tint is not None:
            values = np.ones((len(tint), 4))
            values[:, : tint.shape[1]] = np.clip(tint[:, :4], 0, 1)
            colors = material.factor * values[faces]
        else:
            colors = np.broadcast_to(material.factor, (*faces.shape, 4))
        straight = srgb_from_linear(colors[..., :3])
        if tint is None and picture is None and _says_nothing(self.file, number, material):
            straight = np.full_like(straight, UNCOLOURED)
        surface = Surface(np.zeros((0, 3)), faces, straight)
        if material.cutoff >= 0:
            surface.corner_alpha, surface.cutoff = colors[..., 3], np.full(len(faces), material.cutoff)
        if picture is None or uv is None:
            return surface
        uv = uv.astype(np.float64)
        if material.transform is not None:
            uv = uv @ material.transform[:, :2].T + material.transform[:, 2]
        uv = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)
        return with_corners(surface, uv[faces], picture, material.wrap)


def read_gltf(path: Path, beside: Surroundings) -> list[Surface]:
    """The pieces of a file, in its own axes; what could not be used is noted in `beside`.

    Raises:
        MNIFError: what the file needs is not read (a compression without its library, KTX2, another version), or a file
            of it is missing. All else that is wrong raises other errors.
    """
    return list(_Scene(GltfFile(path, beside)).pieces())


def _says_nothing(file: GltfFile, number: Any, material: GltfMaterial) -> bool:
    """Whether a primitive has no colour: no material, or a white one whose picture is missing."""
    if number is None:
        return True
    entry = file.entry("materials", number)
    pictured = any("Texture" in str(key) for part in _parts(entry) for key in part)
    return pictured and bool((material.factor[:3] == 1).all())


def _parts(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield entry.get("pbrMetallicRoughness", {})
    yield entry.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})


def _transform(node: dict[str, Any]) -> np.ndarray:
    """A node's own matrix [4, 4]."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    place = np.eye(4)
    if "rotation" in node:
        x, y, z, w = np.array(node["rotation"], np.float64) / max(np.linalg.norm(node["rotation"]), 1e-12)
        place[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    if "scale" in node:
        place[:3, :3] = place[:3, :3] * np.array(node["scale"], np.float64).reshape(3)
    if "translation" in node:
        place[:3, 3] = np.array(node["translation"], np.float64).reshape(3)
    return place


def _is_hidden(node: dict[str, Any]) -> bool:
    extension = node.get("extensions", {}).get("KHR_node_visibility", {})
    extras = node.get("extras")
    told = extras.get("visible", True) if isinstance(extras, dict) else True
    return extension.get("visible", True) is False or told in (False, 0, "false", "False")


def _holds_mesh(file: GltfFile, index: int) -> bool:
    waiting, seen = [index], set()
    while waiting:
        node = file.entry("nodes", waiting.pop())
        if "mesh" in node:
            return True
        new = [child for child in node.get("children", ()) if child not in seen]
        seen.update(new)
        waiting += new
    return False


def _triangles(indices: np.ndarray | None, count: int, mode: int) -> np.ndarray:
    """Faces int64 [F, 3] of a list, a strip (5) or a fan (6) of triangles."""
    order = np.arange(count) if indices is None else indices.reshape(-1).astype(np.int64)
    if mode == 4:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == 6:
        return np.stack([np.full(len(order) - 2, order[0]), order[1:-1], order[2:]], axis=1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
    faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces


def _times(surface: Surface, count: int) -> Surface:
    """The colours of so many copies."""
    if count == 1:
        return surface

    def tiled(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.concatenate([values] * count)

    return replace(
        surface,
        corner_colors=np.concatenate([surface.corner_colors] * count),
        corner_alpha=tiled(surface.corner_alpha),
        cutoff=tiled(surface.cutoff),
        uv=tiled(surface.uv),
        texture=tiled(surface.texture),
    )
