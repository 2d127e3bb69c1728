"""A single picture whose camera is not known: pose and latent are searched together.

Many cameras around the object, each with a latent of its own, take a few gradient steps; the better ones go on with
more steps and may then move (successive halving). Cameras look near the origin, so that a pose is six numbers:
azimuth, elevation, roll, distance, and where in the picture the origin lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.evidence import ViewLosses, radiance_view_losses
from mnif_nerf.latents.search import LatentSpace, SearchConfig
from mnif_nerf.random import stream
from mnif_nerf.rendering.batch import RayBatch
from mnif_nerf.rendering.cameras import Intrinsics
from mnif_nerf.rendering.intervals import box_interval
from mnif_nerf.rendering.radiance_losses import LossConfig
from mnif_nerf.scene_box import HALF_EXTENT

# What one unit of a pose coordinate is, so that Adam's one rate suits all: radians (azimuth, elevation, roll),
# logarithm of the distance, and shares of the distance for the two shifts.
_UNITS = (1.0, 1.0, 0.3, 0.3, 0.2, 0.2)
# Roll, distance and shift of a camera that looks at the origin from the usual distance; they cost a little to move.
_HELD = (0.0, 0.0, 3e-3, 3e-3, 3e-3, 3e-3)
_SCORED = 1024


@dataclass(frozen=True)
class Round:
    """One round of the search: how many hypotheses take how many steps, and whether their cameras move."""

    hypotheses: int
    steps: int
    rays: int
    samples: int
    moving: bool


@dataclass(frozen=True)
class PoseSearchConfig:
    """Settings of the search over cameras.

    Attributes:
        azimuths: number of azimuths that the search starts from, evenly spaced.
        elevations: elevations that it starts from, degrees; every pair is tried.
        moved: learning rate of the cameras, radians a step.
        mask_weight: weight of the silhouette's squared error; outlines tell poses apart better than colours do.
        schedule: rounds after the first; the first tries all cameras.
    """

    azimuths: int = 24
    elevations: tuple[float, ...] = (-25.0, 5.0, 30.0, 55.0)
    moved: float = 0.02
    mask_weight: float = 0.2
    schedule: tuple[Round, ...] = (
        Round(96, 20, 128, 12, moving=False),
        Round(24, 30, 128, 16, moving=True),
        Round(8, 60, 160, 20, moving=True),
    )
    last: Round = Round(3, 150, 256, 32, moving=True)

    def cameras(self) -> Tensor:
        """Pose coordinates `[P, 6]` of the first round."""
        pairs = [
            (math.radians(360.0 * (k + 0.5 * (row % 2)) / self.azimuths), math.radians(elevation))
            for row, elevation in enumerate(self.elevations)
            for k in range(self.azimuths)
        ]
        return F.pad(torch.tensor(pairs), (0, 4))

    def total_steps(self) -> int:
        """Gradient steps of a whole search."""
        return sum(item.steps for item in (*self.schedule, self.last))


@dataclass(frozen=True)
class Hypotheses:
    """Latents and cameras that explain a picture, the best first.

    Attributes:
        latents: `[K, D]`.
        poses: `[K, 4, 4]` camera-to-world, OpenCV axes.
        losses: `[K]`, of colours and silhouette, without the prior.
    """

    latents: Tensor
    poses: Tensor
    losses: Tensor


def camera_poses(coordinates: Tensor, radius: float) -> Tensor:
    """Camera-to-world `[P, 4, 4]` of pose coordinates `[P, 6]`, differentiable; see the module's text."""
    azimuth, elevation, roll, distance, across, down = (coordinates * coordinates.new_tensor(_UNITS)).unbind(dim=1)
    zero = torch.zeros_like(azimuth)
    backward = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=1)
    right = torch.stack([-azimuth.sin(), azimuth.cos(), zero], dim=1)
    lower = torch.linalg.cross(-backward, right)
    turned_right = roll.cos()[:, None] * right + roll.sin()[:, None] * lower
    turned_down = roll.cos()[:, None] * lower - roll.sin()[:, None] * right
    reach = radius * distance.exp()[:, None]
    position = reach * (backward - across[:, None] * turned_right - down[:, None] * turned_down)
    pose = torch.stack([turned_right, turned_down, -backward, position], dim=2)
    last = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(pose), 1, 4)
    return torch.cat([pose, last], dim=1)


@dataclass(frozen=True)
class PhotoEvidence:
    """A picture and what is known of its camera.

    Attributes:
        image: `[H, W, 3]` in [0, 1], on white.
        silhouette: bool `[H, W]`, or None where the object was not cut out.
        intrinsics: intrinsics of the picture's camera.
        radius: the camera's usual distance from the origin, world units.
        compare: how its rays are compared with the field.
    """

    image: Tensor
    silhouette: Tensor | None
    intrinsics: Intrinsics
    radius: float
    compare: ViewLosses = radiance_view_losses


class PhotoSearch:
    """The search for one picture.

    Args:
        field: the trained mixture; its parameters take no gradient meanwhile (`fitting.frozen`).
        photo: the picture.
        space: coordinates of the latents.
        config: learning rate of the latents and weight of their prior.
        poses: settings of the search over cameras.
        seed: seed of the draws.
    """

    def __init__(
        self,
        field: ModulatedField,
        photo: PhotoEvidence,
        space: LatentSpace,
        config: SearchConfig,
        poses: PoseSearchConfig,
        seed: int = 0,
    ) -> None:
        self.field, self.space, self.config, self.poses = field, space, config, poses
        self.radius, self.seed, self.compare = photo.radius, seed, photo.compare
        image, silhouette, intrinsics = photo.image, photo.silhouette, photo.intrinsics
        self.rgb = image.reshape(-1, 3)
        self.mask = torch.ones(len(self.rgb), device=image.device)
        if silhouette is not None:
            self.mask = silhouette.reshape(-1).to(self.rgb)
        rows, columns = torch.meshgrid(torch.arange(intrinsics.height), torch.arange(intrinsics.width), indexing="ij")
        x = (columns + 0.5 - intrinsics.cx) / intrinsics.focal
        y = (rows + 0.5 - intrinsics.cy) / intrinsics.focal
        looked = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3).to(image.device)
        self.looked = looked / looked.norm(dim=-1, keepdim=True)
        self.mask_weight = poses.mask_weight if silhouette is not None else 0.0
        self._draws = 0

    def run(self, starts: Tensor, keep: int, on_step: Callable[[], None] | None = None) -> Hypotheses:
        """Search from every camera.

        Args:
            starts: latents `[S, D]`; the cameras take them in turn.
            keep: K, hypotheses that reach the last round.
            on_step: called after every step.
        """
        cameras = self.poses.cameras().to(starts.device)
        codes = self.space.coordinates(starts)[torch.arange(len(cameras)) % len(starts)]
        for item in self.poses.schedule:
            codes, cameras = self._best(codes, cameras, item.hypotheses, apart=not item.moving)
            codes, cameras = self._descend(codes, cameras, item, on_step)
        codes, cameras = self._best(codes, cameras, keep, apart=True)
        codes, cameras = self._descend(codes, cameras, self.poses.last, on_step)
        losses = self._score(codes, cameras)
        order = losses.argsort()
        poses = camera_poses(cameras[order], self.radius)
        return Hypotheses(self.space.latents(codes[order]), poses, losses[order])

    def _best(self, codes: Tensor, cameras: Tensor, count: int, apart: bool) -> tuple[Tensor, Tensor]:
        """The `count` hypotheses of least loss; `apart` skips cameras within 20 degrees of a better one first."""
        if len(codes) <= count and not apart:
            return codes, cameras
        if len(codes) == count:
            return codes, cameras
        order = self._score(codes, cameras).argsort().tolist()
        if apart:
            backward = F.normalize(camera_poses(cameras, 1.0)[:, :3, 3], dim=1)
            first: list[int] = []
            for row in order:
                if all(float(backward[row] @ backward[other]) < math.cos(math.radians(20)) for other in first):
                    first.append(row)
            order = first + [row for row in order if row not in first]
        chosen = torch.tensor(order[:count], device=codes.device)
        return codes[chosen], cameras[chosen]

    def _descend(
        self, codes: Tensor, cameras: Tensor, item: Round, on_step: Callable[[], None] | None
    ) -> tuple[Tensor, Tensor]:
        codes, cameras = torch.nn.Parameter(codes.clone()), torch.nn.Parameter(cameras.clone(), item.moving)
        groups = [{"params": [codes], "lr": self.config.lr}]
        if item.moving:
            groups.append({"params": [cameras], "lr": self.poses.moved})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, item.steps)
        held = cameras.new_tensor(_HELD)
        with torch.enable_grad():
            for _ in range(item.steps):
                self._draws += 1
                generator = torch.Generator().manual_seed(stream(self.seed, "pose search", self._draws))
                loss = self._losses(codes, cameras, item.rays, item.samples, generator)
                loss = loss + self.config.penalty * codes.square().mean(dim=1) + (held * cameras.square()).sum(dim=1)
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
                schedule.step()
                if on_step is not None:
                    on_step()
        return codes.detach(), cameras.detach()

    def _losses(self, codes: Tensor, cameras: Tensor, rays: int, samples: int, generator: torch.Generator) -> Tensor:
        """`[P]`, each hypothesis on the same pixels."""
        pixels = torch.randint(len(self.rgb), (rays,), generator=generator).to(codes.device)
        pose = camera_poses(cameras, self.radius)
        count = len(codes)
        directions = torch.einsum("pij,rj->pri", pose[:, :3, :3], self.looked[pixels])
        origins = pose[:, None, :3, 3].expand_as(directions)
        near, far = box_interval(origins, directions, HALF_EXTENT)
        batch = RayBatch(
            torch.arange(count, device=codes.device), origins, directions, near, torch.maximum(far, near),
            self.rgb[pixels].expand(count, -1, -1), self.mask[pixels].expand(count, -1), codes.new_zeros(count, 0, 3),
        )  # fmt: skip
        config = LossConfig(samples_per_ray=samples, mask_weight=self.mask_weight)
        evaluate = partial(self.field.evaluate, self.space.latents(codes))
        return self.compare(evaluate, batch, config, generator, head=self.field.spec.head)

    @torch.no_grad()
    def _score(self, codes: Tensor, cameras: Tensor) -> Tensor:
        parts = []
        for some in torch.arange(len(codes)).split(16):
            generator = torch.Generator().manual_seed(stream(self.seed, "pose score"))
            parts.append(self._losses(codes[some], cameras[some], _SCORED, 24, generator))
        return torch.cat(parts)
