"""The modality "radiance": objects as radiance fields, learned from pictures with cameras."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.modalities.base import Modality
from mnif_nerf.modalities.traits import Card, Demo, DemoData, Fitting
from mnif_nerf.objects.radiance import NeuralRadiance
from mnif_nerf.objects.solid import require_solid

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mnif_nerf.export.web import Drawing
    from mnif_nerf.latents.evidence import PointEvidence
    from mnif_nerf.modalities.radiance_training import RadianceTraining
    from mnif_nerf.objects.base import NeuralObject

_ANGLES = (25.0, 40.0)  # elevation and azimuth of a portrait, degrees
_DEMO_CARS = 128


class Radiance(Modality):
    """See the module."""

    name, noun, nouns, method = "radiance", "object", "objects", "mnif"
    dims, channels, heads = 3, (4,), ("radiance", "radiance-authors")
    object_class = NeuralRadiance
    is_grid = False
    has_surface = has_views = has_pictures = True
    solids = "voxel"
    view_count = 4
    no_repainting = ""
    fitting = Fitting(
        kinds=("views", "photo", "mesh", "voxels", "cloud"), picture="photo", surface_only=True, agreement=25.0
    )
    card = Card(("3d", "nerf"), "radiance fields", 'mesh(resolution=128).export("object.glb")')

    @cached_property
    def training(self) -> RadianceTraining:
        """See `Modality`."""
        from mnif_nerf.modalities.radiance_training import RadianceTraining

        return RadianceTraining()

    def seen_values(self, raw: Tensor, head: str, thickness: float) -> Tensor:
        """Colours times opacity, and the opacity 1 - exp(-density * thickness)."""
        from mnif_nerf.fields.heads import color_from_raw, density_from_raw

        opacity = 1.0 - torch.exp(-thickness * density_from_raw(raw[:, 3:], head))
        return torch.cat([color_from_raw(raw[:, :3], head) * opacity, opacity], dim=1)

    def portrait(self, item: NeuralObject, pixels: int) -> Image.Image:
        """From the front-left and above, at the training cameras' distance."""
        return require_solid(item).render(*_ANGLES, pixels)

    @property
    def demo(self) -> Demo:
        """Generated cars."""
        title = "Cars that never existed"
        return Demo("mnif-lite", "procedural_cars", "demo", title, "cars", _make_cars, trainer="ns-train")

    @property
    def drawing(self) -> Drawing:
        """Volume rendering."""
        from mnif_nerf.export.web import RADIANCE

        return RADIANCE

    def check_level(self, level: float | None) -> None:
        """A density, from 0 on."""
        from mnif_nerf.export.mesh import check_level

        check_level(level)

    def locate_data(self, root: Path) -> None:
        """Pictures with cameras in the SRN layout."""
        from mnif_nerf.data.readers.srn_layout import locate

        locate(root)

    def splits(self, root: Path | str) -> tuple[str, ...]:
        """Those of the SRN layout."""
        from mnif_nerf.data.readers.srn_layout import list_splits

        return tuple(list_splits(root))

    def check_data(
        self, root: Path, progress: bool = True, reading: SceneReading = USUAL
    ) -> tuple[list[str], list[str]]:
        """Scenes, pictures, cameras, and whether the objects fit the scene box."""
        from mnif_nerf.data.check.scenes import check_scenes

        return check_scenes(root, progress, reading)

    def protocol_changes(self, protocol: str) -> dict[str, Any]:
        """As many samples as the authors compare."""
        return {"num_samples": 704} if protocol == "paper" else {}

    @property
    def point_evidence(self) -> type[PointEvidence]:
        """Opacity: what a point is inside of has to stop the light."""
        from mnif_nerf.latents.evidence import OpacityEvidence

        return OpacityEvidence


def _make_cars(options: DemoData) -> None:
    from mnif_nerf.data.generate.procedural import CAR_VIEWS, make_procedural_cars
    from mnif_nerf.data.generate.settings import CarCounts

    make_procedural_cars(
        options.folder,
        CarCounts(num_train=options.num_cars or _DEMO_CARS, seed=options.seed),
        dataclasses.replace(CAR_VIEWS, train_views=options.train_views, resolution=options.resolution),
    )
