"""Ray batches grouped by instance, drawn from a packed store where the objects are.

A pixel is drawn only if its ray meets the instance's visual hull, and its samples lie in the stretch of the ray
inside the hull. On SRN-like images two thirds of all pixels and most of each ray are empty; leaving them out bought
more than any other single change (docs/method.md). What lies outside the hull is taught by *carve points* instead.

Every draw depends on (seed, step) alone, so a resumed run sees the batches an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.data.sampling import draw_kernel
from mnif_nerf.data.sampling.epochs import InstanceShuffle
from mnif_nerf.data.sampling.prefetch import Prefetcher
from mnif_nerf.data.sampling.residence import HostRows, expect_single_rows, fits, host_rows
from mnif_nerf.errors import MNIFError
from mnif_nerf.random import WHOLE, Share, stream
from mnif_nerf.rendering.batch import DeviceDraw, RayBatch, joined, of_share
from mnif_nerf.rendering.cameras import pixel_directions
from mnif_nerf.rendering.intervals import box_interval, cell_index, occupied_span, step_positions
from mnif_nerf.scene_box import HALF_EXTENT

if TYPE_CHECKING:
    from mnif_nerf.data.stores.scene_store import PackedStore

_MARCH_STEPS = 48  # over at most sqrt(3) units: a step is about one cell of the 32^3 hull
_POOL_STEPS = 4  # batches drawn together, which shares the fixed cost of small tensor operations


_STORED = ("images", "poses", "intrinsics", "hulls", "touching", "silhouettes")
Draw = Callable[..., Tensor]  # of a function of torch's such as `rand`, and the shape of an instance's numbers


class RayBatchSampler:
    """Draws `RayBatch`es from a store.

    Args:
        store: the packed images of one split.
        scenes_per_step: B; at most the number of instances is used.
        rays_per_scene: R.
        carve_points: C per instance; ignored where the store has no hulls.
        device: where batches end up. The store itself stays in (memory-mapped) host memory until `reside`.
        seed: draws with the same seed and step are equal.
        views: optional `[V]` bool, which views of the store may be drawn (the others are held out).

    Raises:
        MNIFError: an instance has no view left to draw from, or a count is below 1.
    """

    def __init__(
        self,
        store: PackedStore,
        scenes_per_step: int,
        rays_per_scene: int,
        carve_points: int = 0,
        device: torch.device | str = "cpu",
        seed: int = 0,
        views: Tensor | None = None,
    ) -> None:
        if scenes_per_step < 1 or rays_per_scene < 1 or carve_points < 0:
            raise MNIFError("scenes per step and rays per scene must be at least 1, carve points at least 0.")
        self.device = torch.device(device)
        self.seed = seed
        self.num_scenes = store.num_scenes
        self.scenes_per_step = min(scenes_per_step, store.num_scenes)
        self.rays_per_scene = rays_per_scene
        self.height, self.width = store.height, store.width
        self._stored = [getattr(store, name) for name in _STORED]
        self.images = host_rows(store.images)
        self.poses = torch.from_numpy(store.poses)
        self.intrinsics = torch.from_numpy(store.intrinsics)
        self.hulls = None if store.hulls is None else host_rows(store.hulls)
        self.touching = None if store.touching is None else host_rows(store.touching)
        self.silhouettes = None if store.silhouettes is None else host_rows(store.silhouettes)
        self.hull_resolution = store.hull_resolution
        self.carve_points = carve_points if self.hulls is not None else 0
        self._index_views(torch.from_numpy(store.view_offsets).long(), views, store.names)
        self._oversample = 1 if self.touching is None else math.ceil(2.0 / max(self._touching_share(), 0.05))
        self.resident, self._home = False, torch.device("cpu")
        self._pool: tuple[tuple[int, Share], RayBatch] | None = None
        self._shuffle = InstanceShuffle(self.num_scenes, seed)
        self._ahead: Prefetcher[RayBatch] | None = None

    def _index_views(self, offsets: Tensor, views: Tensor | None, names: tuple[str, ...]) -> None:
        """Flat list of drawable views, scene by scene, with where each scene's part starts and how long it is."""
        owner = torch.repeat_interleave(torch.arange(self.num_scenes), offsets.diff())
        allowed = torch.ones(len(owner), dtype=torch.bool) if views is None else views.cpu()
        self.view_list = allowed.nonzero().flatten()
        self.view_counts = torch.bincount(owner[allowed], minlength=self.num_scenes)
        if (self.view_counts == 0).any():
            scene = names[int((self.view_counts == 0).nonzero()[0])]
            raise MNIFError(f"instance {scene}: no view is left to train on; hold out fewer views.")
        self.view_starts = self.view_counts.cumsum(0) - self.view_counts

    def _touching_share(self) -> float:
        """Share of pixels that meet a hull, estimated on up to 256 views."""
        assert self.touching is not None
        rows = self.touching[torch.linspace(0, len(self.touching) - 1, min(256, len(self.touching))).long()]
        bits = (rows.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
        return float(bits.float().sum() / (len(rows) * self.height * self.width))

    def reside(self, resident: bool | None = None, beside: RayBatchSampler | None = None) -> RayBatchSampler:
        """Move the store to the device, where all is drawn from now on, and nothing makes the device wait.

        The random numbers are the device's then: of a CPU the same as before, of a GPU others.

        Args:
            resident: whether to; None asks if it fits.
            beside: a sampler of the same store, whose tensors are shared, and which decides.

        Returns:
            this sampler.
        """
        stored = {name: getattr(beside or self, name) for name in _STORED}
        if beside is not None:
            resident = beside.resident
        if fits(self.device, stored.values()) if resident is None else resident:
            self.resident, self._home, self._pool = True, self.device, None
            self._shuffle = InstanceShuffle(self.num_scenes, self.seed, self.device)
            stored.update({name: getattr(self, name) for name in ("view_list", "view_counts", "view_starts")})
            for name, value in stored.items():
                setattr(self, name, None if value is None else value.to(self.device))
            return self
        expect_single_rows(self._stored)
        return self.draw_ahead() if self.device.type == "cuda" and beside is None else self

    def draw_ahead(self) -> RayBatchSampler:
        """Draw the same batches in background threads from now on, before they are asked for (`Prefetcher`)."""
        self._ahead, self._pool = Prefetcher(self._draw_pool, self.device), None
        return self

    def draw(self, step: int, share: Share = WHOLE) -> RayBatch:
        """The batch of training step `step` (0, 1, 2, ...); of a share, its own B instances of a batch of `share.of`
        times as many."""
        pool = (step // _POOL_STEPS, share)
        if self._pool is None or self._pool[0] != pool:
            drawn = self._draw_pool(*pool).to(self.device) if self._ahead is None else self._ahead(*pool)
            self._pool = (pool, drawn)
        row = (step % _POOL_STEPS) * self.scenes_per_step
        return self._pool[1][row : row + self.scenes_per_step]

    def fixed(self, scenes: Tensor) -> RayBatch:
        """Rays of these instances `[B]`, each instance's own: they depend on it and on the seed alone."""
        batches = []
        for scene in scenes.tolist():
            generator = torch.Generator(self._home).manual_seed(stream(self.seed, "fixed rays", scene))
            batches.append(self._draw_rays(torch.tensor([[scene]], device=self._home), generator, WHOLE))
        return joined(batches).to(self.device)

    def device_draw(self, share: Share = WHOLE) -> DeviceDraw | None:
        """How `draw` does it on the device; None where the store lives elsewhere."""
        return self._draws(share) if self.resident else None

    def _draw_pool(self, pool: int, share: Share) -> RayBatch:
        batch: RayBatch = self._draws(share).draw(pool)
        return batch

    def _draws(self, share: Share) -> DeviceDraw:
        whole = (_POOL_STEPS, share.of * self.scenes_per_step)

        def instances(pool: int) -> Tensor:
            scenes = self._shuffle.take(pool * math.prod(whole), math.prod(whole)).view(whole)
            own: Tensor = share.draw(lambda _: scenes, (_POOL_STEPS, self.scenes_per_step), axis=1)
            return own

        return DeviceDraw(
            self,
            _POOL_STEPS,
            instances,
            lambda pool: stream(self.seed, "rays", pool),
            lambda steps, generator: self._draw_rays(steps, generator, share),
        )

    def _draw_rays(self, steps: Tensor, generator: torch.Generator, share: Share) -> RayBatch:
        """Rays of instances `[T, B]`, for T steps that follow each other; all that is random is drawn here."""
        scenes = steps.reshape(-1)

        def draw(of: Callable[..., Tensor], *shape: int) -> Tensor:
            """Random numbers [T * B, ...], of each step's own instances."""
            of = partial(of, generator=generator, device=generator.device)
            drawn: Tensor = share.draw(of, (*steps.shape, *shape), axis=1)
            return drawn.reshape(-1, *shape)

        view, pixel, rgb, mask = self._draw_pixels(scenes, draw)
        column, row = pixel % self.width, pixel // self.width
        pose, (focal, cx, cy) = self.poses[view], self.intrinsics[view].unbind(-1)
        directions = pixel_directions(torch.stack([column, row], -1), pose[..., :3, :3], focal, cx, cy)
        origins = pose[..., :3, 3].contiguous()
        near, far = self._hull_span(scenes, origins, directions)
        carve = self._draw_carve_points(scenes, draw)
        return of_share(RayBatch(scenes, origins, directions, near, far, rgb, mask, carve), share)

    def _draw_pixels(self, scenes: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """View and flat pixel index `[B, R]`, uniform over the pixels that meet the hull (rejection sampling), and the
        colours `[B, R, 3]` and silhouettes `[B, R]` there."""
        candidates = self.rays_per_scene * self._oversample
        places = draw(torch.rand, candidates)
        pixels = draw(partial(torch.randint, self.height * self.width), candidates)
        if not self.resident and draw_kernel.takes(self.images, self.touching, self.silhouettes):
            views, packed = (self.view_list, self.view_starts, self.view_counts), (self.touching, self.silhouettes)
            return draw_kernel.pixels((places, pixels), self.rays_per_scene, scenes, views, packed, self.images)
        views = self.view_list[self.view_starts[scenes, None] + (places * self.view_counts[scenes, None]).long()]
        view, pixel = self._touching_first(views, pixels)
        rgb = self.images[view, pixel // self.width, pixel % self.width].float() / 255.0
        if self.silhouettes is None:
            return view, pixel, rgb, torch.ones_like(rgb[..., 0])
        return view, pixel, rgb, self._bit(self.silhouettes, view, pixel).float()

    def _touching_first(self, view: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
        if self.touching is None:
            return view, pixel
        touches = self._bit(self.touching, view, pixel)
        # Stable sort: accepted candidates first, in the order drawn, hence still uniform.
        order = (~touches).to(torch.uint8).argsort(dim=1, stable=True)
        wanted = torch.arange(self.rays_per_scene, device=view.device).unsqueeze(0)
        accepted = touches.sum(dim=1, keepdim=True).clamp(min=1)
        chosen = order.gather(1, wanted % accepted)
        return view.gather(1, chosen), pixel.gather(1, chosen)

    @staticmethod
    def _bit(packed: Tensor | HostRows, row: Tensor, position: Tensor) -> Tensor:
        return (packed[row, position >> 3] >> (position & 7).to(torch.uint8)) & 1 == 1

    def _hull_span(self, scenes: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        if self.hulls is not None and not self.resident and draw_kernel.takes(self.hulls):
            return draw_kernel.spans(scenes, self.hulls, self.hull_resolution, origins, directions, _MARCH_STEPS)
        near, far = box_interval(origins, directions, HALF_EXTENT)
        far = torch.maximum(far, near)
        if self.hulls is None:
            return near, far
        t, width = step_positions(near, far, _MARCH_STEPS)
        inside = self._march(scenes, origins, directions, t)
        start, end, hit = occupied_span(inside, near, width)
        # The march can step over a grazed cell; half a step of margin, and the whole box where it found nothing.
        margin = 0.5 * width.squeeze(-1)
        start = torch.where(hit, torch.maximum(start - margin, near), near)
        return start, torch.where(hit, torch.minimum(end + margin, far), far)

    def _march(self, scenes: Tensor, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
        """Whether points at `t` `[B, R, S]` lie in a hull cell: `cell_index`, one axis at a time in half the memory."""
        assert self.hulls is not None
        size = self.hull_resolution
        scale = size / (2 * HALF_EXTENT)
        flat = torch.zeros(t.shape, dtype=torch.int32, device=t.device)
        for axis in range(3):
            start = (origins[..., axis, None] + HALF_EXTENT) * scale
            cell = torch.addcmul(start, t, directions[..., axis, None], value=scale).clamp_(0, size - 1)
            flat = flat.mul_(size).add_(cell.int())
        rows = torch.arange(len(scenes), dtype=torch.int32, device=t.device)[:, None, None] * size**3
        # The few hulls of this draw, unpacked: a byte per cell is found faster than a bit.
        if self.resident:
            cells = (self.hulls[scenes].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=t.device)) & 1
        else:
            cells = torch.from_numpy(np.unpackbits(self.hulls[scenes].numpy(), axis=1, bitorder="little"))
        return cells.view(-1).index_select(0, flat.add_(rows).view(-1)).view(t.shape) > 0

    def _draw_carve_points(self, scenes: Tensor, draw: Draw) -> Tensor:
        """`[B, C, 3]` uniform points of the box outside the hull (a point inside is pushed to the box's corner)."""
        if self.hulls is None or self.carve_points == 0:
            return torch.zeros(len(scenes), 0, 3, device=scenes.device)
        numbers = draw(torch.rand, 2 * self.carve_points, 3)
        if not self.resident and draw_kernel.takes(self.hulls):
            return draw_kernel.carve_points(scenes, self.hulls, self.hull_resolution, numbers, self.carve_points)
        points = (2 * numbers - 1) * HALF_EXTENT
        inside = self._bit(self.hulls, scenes[:, None], cell_index(points, self.hull_resolution, HALF_EXTENT))
        order = inside.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.carve_points]
        outside = (~inside).gather(1, order)
        points = points.gather(1, order.unsqueeze(-1).expand(-1, -1, 3))
        return torch.where(outside.unsqueeze(-1), points, torch.full_like(points, HALF_EXTENT))
