"""What a latent is fitted to: rays of posed pictures, and points with what the field should say there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields.heads import density_from_raw
from mnif_nerf.fields.modulations import ModulatedField
from mnif_nerf.latents.meta import PointObjective
from mnif_nerf.random import stream
from mnif_nerf.rendering.batch import PointBatch, RayBatch
from mnif_nerf.rendering.cameras import pixel_directions
from mnif_nerf.rendering.intervals import box_interval, cell_index, occupied_span, step_positions
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses
from mnif_nerf.scene_box import HALF_EXTENT

_MARCH_STEPS = 48
_MARCHED = 1 << 15  # rays marched together, which bounds the memory
_SCORED = 2048  # rays or points that starts and results are compared on
_FIXED = 10_000_019  # a step no search reaches: the draw that scores use
# World units of travel over which an observed surface has to be opaque, and free space transparent.
_OPAQUE_WITHIN = 0.03


def view_rays(
    images: Tensor,
    silhouettes: Tensor | None,
    poses: Tensor,
    intrinsics: Tensor,
    cells: Tensor | None = None,
) -> RayBatch:
    """Every ray of V posed pictures that meets the scene box (and, given `cells`, one of them), as one instance.

    Args:
        images: uint8 `[V, H, W, 3]` on white.
        silhouettes: bool `[V, H, W]`, or None where the background is not known.
        poses: `[V, 4, 4]` camera-to-world, OpenCV axes.
        intrinsics: `[V, 3]` focal, cx, cy in pixels.
        cells: bool `[G, G, G]` where the object can be; rays are cut to the span inside.

    Returns:
        a batch of one instance, R rays, without carve points.
    """
    count, height, width = images.shape[:3]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).view(1, -1, 2).to(poses.device)
    focal, cx, cy = intrinsics.T.unsqueeze(-1)
    directions = pixel_directions(pixels.expand(count, -1, -1), poses[:, None, :3, :3], focal, cx, cy).reshape(-1, 3)
    origins = poses[:, None, :3, 3].expand(-1, height * width, -1).reshape(-1, 3)
    near, far = box_interval(origins, directions, HALF_EXTENT)
    if cells is not None:
        near, far = _spans(origins, directions, near, far, cells)
    mask = torch.ones_like(near) if silhouettes is None else silhouettes.reshape(-1).to(near)
    kept = (far > near).nonzero().flatten()
    return RayBatch(
        torch.zeros(1, dtype=torch.long, device=poses.device),
        origins[kept].unsqueeze(0),
        directions[kept].unsqueeze(0),
        near[kept].unsqueeze(0),
        far[kept].unsqueeze(0),
        (images.reshape(-1, 3)[kept.to(images.device)].to(near) / 255.0).unsqueeze(0),
        mask[kept].unsqueeze(0),
        torch.zeros(1, 0, 3, device=poses.device),
    )


def _spans(origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The stretch of each ray from its first to its last cell; near = far where it meets none."""
    flat, size = cells.flatten().to(origins.device), len(cells)
    far = torch.maximum(far, near)
    starts, ends = [], []
    for part in torch.arange(len(origins), device=origins.device).split(_MARCHED):
        t, width = step_positions(near[part], far[part], _MARCH_STEPS)
        points = origins[part, None] + directions[part, None] * t.unsqueeze(-1)
        start, end, hit = occupied_span(flat[cell_index(points, size, HALF_EXTENT)], near[part], width)
        margin = 0.5 * width.squeeze(-1)  # the march can step over a grazed cell
        starts.append(torch.where(hit, torch.maximum(start - margin, near[part]), near[part]))
        ends.append(torch.where(hit, torch.minimum(end + margin, far[part]), near[part]))
    return torch.cat(starts), torch.cat(ends)


def take_rays(rays: RayBatch, chosen: Tensor, count: int) -> RayBatch:
    """Rays `chosen` `[R]` of a batch of one instance, the same for `count` instances."""

    def pick(values: Tensor) -> Tensor:
        return values[:, chosen].expand(count, *[-1] * (values.dim() - 1))

    return RayBatch(
        torch.arange(count, device=chosen.device),
        pick(rays.origins),
        pick(rays.directions),
        pick(rays.near),
        pick(rays.far),
        pick(rays.rgb),
        pick(rays.mask),
        rays.carve_points.expand(count, -1, -1),
    )


class ViewLosses(Protocol):
    """How badly B instances explain rays: `radiance_view_losses`, or what another modality has for it."""

    def __call__(
        self,
        evaluate: Callable[[Tensor], Tensor],
        batch: RayBatch,
        config: LossConfig,
        generator: torch.Generator | None = None,
        *,
        head: str,
    ) -> Tensor:
        """Losses `[B]`; the arguments are those of `radiance_losses`."""
        ...


def radiance_view_losses(
    evaluate: Callable[[Tensor], Tensor],
    batch: RayBatch,
    config: LossConfig,
    generator: torch.Generator | None = None,
    *,
    head: str,
) -> Tensor:
    """`ViewLosses` of radiance fields."""
    terms = radiance_losses(evaluate, batch, config, generator, reduce=False, head=head)
    return torch.stack(list(terms.values())).sum(dim=0)


class ViewEvidence:
    """Evidence of posed pictures.

    Args:
        field: the trained mixture.
        rays: rays from `view_rays`.
        losses: weights and samples per ray.
        compare: how rays are compared with the field.
        rays_per_step: R.
        outside: `[C, 3]` points that the silhouettes rule out; they have to be empty.
        seed: random seed of the draws.

    Raises:
        MNIFError: no ray meets the scene box.
    """

    def __init__(
        self,
        field: ModulatedField,
        rays: RayBatch,
        losses: LossConfig,
        compare: ViewLosses = radiance_view_losses,
        rays_per_step: int = 256,
        outside: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if rays.near.shape[1] == 0:
            raise MNIFError(
                "no pixel of the pictures looks into the scene box (the cube of half extent 0.5 around the origin); "
                "move or scale the cameras with `centre` and `scale`, or use `normalise` yes."
            )
        self.field, self.rays, self.config, self.compare = field, rays, losses, compare
        self.rays_per_step, self.seed = rays_per_step, seed
        self.outside = rays.rgb.new_zeros(0, 3) if outside is None else outside

    def losses(self, latents: Tensor, step: int, rays: int | None = None) -> Tensor:
        """See `Evidence`."""
        generator = torch.Generator().manual_seed(stream(self.seed, "fit rays", step))
        total = self.rays.near.shape[1]
        chosen = torch.randint(total, (rays or self.rays_per_step,), generator=generator).to(latents.device)
        batch = take_rays(self.rays, chosen, len(latents))
        if len(self.outside):
            some = torch.randint(len(self.outside), (64,), generator=generator).to(latents.device)
            batch.carve_points = self.outside[some].expand(len(latents), -1, -1)
        return self.compare(self.field.networks(latents), batch, self.config, generator, head=self.field.spec.head)

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """See `Evidence`."""
        return self.losses(latents, _FIXED, _SCORED)


@dataclass(frozen=True)
class PointPool:
    """Points to draw from.

    Attributes:
        points: `[N, 3]` world units, or `[N, 2]` field coordinates of a picture (row, column).
        targets: `[N, C]` in [-1, 1]; of solids -1 outside, +1 inside, 0 on the surface; or distances, as in
            `PointBatch`.
        share: share of a step's points.
    """

    points: Tensor
    targets: Tensor
    share: float


class PointEvidence:
    """Evidence of points: cells of a solid, a scan of its surface, or pixels.

    Args:
        field: the trained mixture.
        pools: where the points are drawn from.
        points_per_step: N; a step's draw.
        seed: random seed of the draws.
        cut: see `PointBatch`.

    Raises:
        MNIFError: no points at all.

    Attributes:
        in_training: whether training descends on such points too, so that an inner loop can.
    """

    in_training: ClassVar[bool] = True

    def __init__(
        self,
        field: ModulatedField,
        pools: Sequence[PointPool],
        points_per_step: int = 2048,
        seed: int = 0,
        cut: float = 1.0,
    ) -> None:
        self.cut = cut
        self.pools = [pool for pool in pools if len(pool.points)]
        if not self.pools:
            raise MNIFError("nothing was observed: no cell, point or pixel is known; widen the observed region.")
        self.field, self.points_per_step, self.seed = field, points_per_step, seed
        self.scale = HALF_EXTENT if field.spec.in_features == 3 else 1.0

    def draw(self, count: int, step: int, points: int | None = None) -> PointBatch:
        """Points of step `step`, the same for `count` instances."""
        generator = torch.Generator().manual_seed(stream(self.seed, "fit points", step))
        wanted, total = points or self.points_per_step, sum(pool.share for pool in self.pools)
        where, targets = [], []
        for pool in self.pools:
            number = max(1, round(wanted * pool.share / total))
            if number >= len(pool.points):
                rows = torch.arange(len(pool.points))
                rows = rows.repeat(-(-number // len(rows)))[:number]
            else:
                rows = torch.randint(len(pool.points), (number,), generator=generator)
            rows = rows.to(pool.points.device)
            where.append(pool.points[rows])
            targets.append(pool.targets[rows])
        coordinates = torch.cat(where).T / self.scale
        return PointBatch(
            torch.arange(count, device=coordinates.device),
            coordinates.unsqueeze(0).expand(count, -1, -1),
            torch.cat(targets).T.unsqueeze(0).expand(count, -1, -1).contiguous(),
            cut=self.cut,
        )

    def losses(self, latents: Tensor, step: int, points: int | None = None) -> Tensor:
        """See `Evidence`."""
        return PointObjective(self.field, self.draw(len(latents), step, points)).losses(latents)

    @torch.no_grad()
    def score(self, latents: Tensor) -> Tensor:
        """See `Evidence`."""
        return self.losses(latents, _FIXED, 2 * _SCORED)


class OpacityEvidence(PointEvidence):
    """Evidence of points for a radiance field: targets are opacities.

    The field has to stop the light where a point is inside and let it pass where it is outside. It never learned what
    is deep inside; give points near the surface only.
    """

    in_training = False

    def losses(self, latents: Tensor, step: int, points: int | None = None) -> Tensor:
        """See `Evidence`."""
        batch = self.draw(len(latents), step, points)
        raw = self.field.evaluate(latents, batch.points * self.scale)
        density = density_from_raw(raw[:, 3], self.field.spec.head)
        opacity = 1.0 - torch.exp(-_OPAQUE_WITHIN * density)
        return (opacity - 0.5 * (batch.targets[:, 0] + 1.0)).square().mean(dim=1)
