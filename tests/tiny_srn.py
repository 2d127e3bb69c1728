"""A tiny data set in the SRN layout, drawn analytically: coloured boxes and spheres of a different size per
scene.

Not a test file: the tests of every room import it. Objects fit the cube [-0.5, 0.5]^3, cameras sit at radius
1.3, poses are camera-to-world in the OpenCV convention, PNGs are RGBA with true alpha (or RGB on white).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

RADIUS = 1.3
FOCAL_OVER_WIDTH = 131.25 / 128


@dataclass(frozen=True)
class Shape:
    """A sphere (`half` is its radius, three times) or an axis-aligned box (`half` are its half sizes)."""

    kind: str
    centre: np.ndarray
    half: np.ndarray
    colour: np.ndarray

    def contains(self, points: np.ndarray) -> np.ndarray:
        """bool [...] for points [..., 3]."""
        scaled = (points - self.centre) / self.half
        if self.kind == "sphere":
            return (scaled**2).sum(-1) <= 1
        return np.abs(scaled).max(-1) <= 1

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First hit distance [R] (inf where missed) and outward normal [R, 3] of unit rays."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.kind == "sphere":
                offset = origins - self.centre
                b = (offset * directions).sum(-1)
                root = b**2 - (offset**2).sum(-1) + self.half[0] ** 2
                distance = np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf)
                normal = (offset + np.where(np.isfinite(distance), distance, 0)[:, None] * directions) / self.half[0]
                return distance, normal
            first = (self.centre - self.half - origins) / directions
            second = (self.centre + self.half - origins) / directions
            near = np.minimum(first, second)
            enter, leave = near.max(-1), np.maximum(first, second).min(-1)
            normal = -np.sign(directions) * (near == enter[:, None])
            return np.where((enter <= leave) & (enter > 0), enter, np.inf), normal


def make_shapes(seed: int) -> list[Shape]:
    """A box with a smaller box or sphere on top, sizes and colours drawn from `seed`."""
    rng = np.random.default_rng(seed)
    body = np.array([rng.uniform(0.26, 0.38), rng.uniform(0.12, 0.18), rng.uniform(0.07, 0.11)])
    base = np.array([0.0, 0.0, -0.06])
    paint, roof = rng.uniform(0.05, 0.8, 3), rng.uniform(0.05, 0.8, 3)
    shapes = [Shape("box", base, body, paint)]
    top = base[2] + body[2]
    if rng.random() < 0.5:
        radius = rng.uniform(0.08, 0.12)
        shapes.append(Shape("sphere", np.array([rng.uniform(-0.1, 0.1), 0, top]), np.full(3, radius), roof))
    else:
        half = np.array([rng.uniform(0.1, 0.18), 0.9 * body[1], rng.uniform(0.04, 0.07)])
        shapes.append(Shape("box", np.array([rng.uniform(-0.1, 0.1), 0, top + half[2]]), half, roof))
    return shapes


def look_at_origin(position: np.ndarray) -> np.ndarray:
    """Camera-to-world [4, 4] float64, OpenCV axes (x right, y down, z forward), world z up."""
    forward = -position / np.linalg.norm(position)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([1.0, 0.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def random_poses(count: int, rng: np.random.Generator) -> np.ndarray:
    """[V, 4, 4] cameras spread over the sphere."""
    directions = rng.normal(size=(count, 3))
    return np.stack([look_at_origin(RADIUS * d / np.linalg.norm(d)) for d in directions])


def spiral_poses(count: int) -> np.ndarray:
    """[V, 4, 4] cameras on a spiral above the object."""
    steps = (np.arange(count) + 0.5) / count
    height, turn = np.sin(np.radians(10 + 50 * steps)), 4 * np.pi * steps
    flat = np.sqrt(1 - height**2)
    return np.stack(
        [look_at_origin(RADIUS * np.array(p)) for p in zip(flat * np.cos(turn), flat * np.sin(turn), height)]
    )


def render(shapes: list[Shape], pose: np.ndarray, resolution: int, supersample: int = 3) -> np.ndarray:
    """uint8 [H, W, 4], straight colour and coverage as alpha."""
    size = resolution * supersample
    focal = FOCAL_OVER_WIDTH * size
    grid = (np.arange(size) + 0.5 - size / 2) / focal
    x, y = np.meshgrid(grid, grid)
    directions = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ pose[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = np.broadcast_to(pose[:3, 3], directions.shape)
    nearest = np.full(len(directions), np.inf)
    colour = np.zeros_like(directions)
    light = np.array([0.4, 0.3, 0.87])
    for shape in shapes:
        distance, normal = shape.hit(origins, directions)
        front = distance < nearest
        shade = 0.7 + 0.3 * np.clip(normal @ light, -1, 1)
        colour[front] = (shape.colour * shade[:, None])[front]
        nearest = np.where(front, distance, nearest)
    blocks = (resolution, supersample, resolution, supersample)
    alpha = np.isfinite(nearest).astype(float).reshape(blocks).mean((1, 3))
    premultiplied = colour.reshape(*blocks, 3).mean((1, 3))
    straight = premultiplied / np.maximum(alpha, 1e-6)[..., None]
    return np.round(255 * np.concatenate([straight, alpha[..., None]], -1)).astype(np.uint8)


def write_tiny_scene(folder: Path, shapes: list[Shape], poses: np.ndarray, resolution: int, rgba: bool = True) -> None:
    """Write one scene folder: rgb/*.png, pose/*.txt, intrinsics.txt."""
    (folder / "rgb").mkdir(parents=True)
    (folder / "pose").mkdir()
    for view, pose in enumerate(poses):
        picture = render(shapes, pose, resolution)
        if not rgba:
            alpha = picture[..., 3:].astype(float) / 255
            picture = np.round(picture[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "rgb" / f"{view:06d}.png")
        (folder / "pose" / f"{view:06d}.txt").write_text(" ".join(f"{v:.9f}" for v in pose.ravel()) + "\n")
    focal, centre = FOCAL_OVER_WIDTH * resolution, resolution / 2
    lines = [f"{focal:.6f} {centre:.6f} {centre:.6f} 0.", "0. 0. 0.", "1.", f"{resolution} {resolution}"]
    (folder / "intrinsics.txt").write_text("\n".join(lines) + "\n")


def write_tiny_srn(
    root: Path | str,
    scenes: int = 4,
    views: int = 8,
    heldout_views: int = 3,
    test_scenes: int = 2,
    resolution: int = 24,
    seed: int = 0,
    category: str = "cars",
    rgba: bool = True,
) -> Path:
    """Write `<category>_train`, `_train_val` (new views of the same scenes), `_val` and `_test` (new scenes).

    Args:
        root: the folder to fill.
        scenes, views: training scenes and views of each.
        heldout_views: spiral views per training scene in `_train_val`.
        test_scenes: scenes in `_val` and in `_test`, with `views` views each.
        rgba: PNGs with true alpha; otherwise RGB on white.
    Returns: root as a Path.
    """
    root = Path(root)
    rng = np.random.default_rng(seed)
    for scene in range(scenes):
        shapes, name = make_shapes(1000 * seed + scene), f"scene{scene:03d}"
        write_tiny_scene(root / f"{category}_train" / name, shapes, random_poses(views, rng), resolution, rgba)
        heldout = root / f"{category}_train_val" / name
        write_tiny_scene(heldout, shapes, spiral_poses(heldout_views), resolution, rgba)
    for offset, split in ((500, "val"), (700, "test")):
        for scene in range(test_scenes):
            folder = root / f"{category}_{split}" / f"{split}{scene:03d}"
            write_tiny_scene(
                folder, make_shapes(1000 * seed + offset + scene), random_poses(views, rng), resolution, rgba
            )
    return root
