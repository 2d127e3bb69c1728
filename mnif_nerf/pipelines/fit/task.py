"""What a fit works on: the observation as it is looked at, and what it is scored against."""

from __future__ import annotations

from dataclasses import dataclass, field

from mnif_nerf.data.geometry.raytrace import Surface
from mnif_nerf.data.geometry.surface_points import SurfacePoints
from mnif_nerf.data.observations.observations import Cells, Photo, Picture, PosedViews, Scan
from mnif_nerf.latents.search import Evidence


@dataclass(frozen=True)
class SeenMesh(Cells):
    """A mesh that is fitted to by points: its cells, for IoU, and what they leave out.

    Attributes:
        surface: the faces that were seen.
        points: of the surface that was seen, with their colours.
    """

    surface: Surface = field(kw_only=True)
    points: SurfacePoints = field(kw_only=True)


@dataclass(frozen=True)
class FitTask:
    """An observation that is ready to be fitted to.

    Attributes:
        seen: what the search looks at: cut to the region, a mesh turned into pictures, voxels or points.
        evidence: None of a `Photo`, which has a search of its own.
        truth: all that is known, to score against; None where nothing beyond `seen` is.
        complete: whether all of the object was observed.
        weight: weight of the prior.
        notes: sentences for the report.
        far_weight: weight of the prior for what lies far beyond all training latents; 0 where that makes no difference.
    """

    seen: PosedViews | Photo | Cells | Scan | Picture
    evidence: Evidence | None
    truth: PosedViews | Cells | Picture | None
    complete: bool
    weight: float
    notes: tuple[str, ...] = ()
    far_weight: float = 0.0
