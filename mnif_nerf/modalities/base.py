"""The base of all modalities: what the rest of the package may ask of a kind of signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mnif_nerf.data.grid_facts import GridFacts
from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.errors import MNIFError
from mnif_nerf.modalities.traits import OBSERVATION_WORDS, Card, Demo, Fitting, SweepScores
from mnif_nerf.names import quoted

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from mnif_nerf.data.geometry.surface_points import SurfacePoints
    from mnif_nerf.data.observations.observations import Kind
    from mnif_nerf.export.web import Drawing
    from mnif_nerf.fields.spec import FieldSpec
    from mnif_nerf.latents.evidence import PointEvidence, ViewLosses
    from mnif_nerf.metrics.images import Lpips
    from mnif_nerf.metrics.integrity import Feature, Features
    from mnif_nerf.modalities.sweeping import SweepSplit
    from mnif_nerf.modalities.training import ModalityTraining
    from mnif_nerf.objects.base import NeuralObject


class Modality(ABC):
    """One kind of signal: its words, its field's ends, its objects, and what can be done with them.

    Attributes:
        name: as in model folders, object files and methods.
        noun, nouns: what a message calls one instance and several.
        method: prefix of the names of its training methods.
        dims: coordinates of a point; None for any number.
        channels: that its fields may have; None for any number.
        heads: output heads (`mnif_nerf.fields.heads`) that its fields may have.
        is_grid: whether its data are values on a regular grid, that the model knows the shape of.
        has_points: whether its data are points with signed distances (`SurfaceStore`).
        has_surface: whether its objects have `mesh` and `occupancy`.
        has_views: whether its objects look different from other sides (`view`, `views`, `orbit`).
        has_page: whether a web page can draw its objects (`drawing`).
        has_pictures: whether generated sets are compared as pictures.
        solids: the modality whose grids say which cells its instances fill; None where they fill none.
        view_count: pictures of each object that `mnif-sample` writes.
        white_margins: whether pictures are exactly white around the object, so that they can be cropped.
        rays_per_pixel: that a picture takes.
        mesh_formats: what the next commands name for `mnif-export-mesh --format`.
        fitting: what a model can be fitted to.
        scored: over what `reconstruction_scores` compares, in words.
        no_repainting: why shape and colour cannot be mixed; empty where they can.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    nouns: ClassVar[str]
    method: ClassVar[str]
    dims: ClassVar[int | None] = None
    channels: ClassVar[tuple[int, ...] | None] = None
    heads: ClassVar[tuple[str, ...]]
    is_grid: ClassVar[bool] = True
    has_points: ClassVar[bool] = False
    has_surface: ClassVar[bool] = False
    has_views: ClassVar[bool] = False
    has_page: ClassVar[bool] = True
    has_pictures: ClassVar[bool] = False
    solids: ClassVar[str | None] = None
    view_count: ClassVar[int] = 1
    white_margins: ClassVar[bool] = False
    rays_per_pixel: ClassVar[int] = 1
    mesh_formats: ClassVar[str] = "glb"
    fitting: ClassVar[Fitting] = Fitting()
    scored: ClassVar[str] = "over the whole grid"
    no_repainting: ClassVar[str] = "it has none"

    @property
    def by_instance(self) -> bool:
        """Whether its data are whole instances, grids or points of meshes, and not pictures of them."""
        return self.is_grid or self.has_points

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # --- objects and the field behind them ------------------------------------------------------------------------

    @property
    @abstractmethod
    def object_class(self) -> type[NeuralObject]:
        """The class of its objects."""

    @property
    @abstractmethod
    def training(self) -> ModalityTraining:
        """Its side of stage 1."""

    def check_field(self, spec: FieldSpec, grid: Any, place: Path | str) -> None:
        """Refuse a field, or facts of a grid, that no model of this modality has.

        Raises:
            MNIFError: the sentence begins with `place`.
        """
        fits = self.dims in (None, spec.in_features) and spec.head in self.heads
        if not fits or (self.channels is not None and spec.out_features not in self.channels):
            raise MNIFError(
                f"{place}: a field of {spec.in_features} coordinates, {spec.out_features} channels and head "
                f"{spec.head!r} does not fit the modality {self.name!r}; train the model again."
            )
        if grid is not None:
            facts = None
            if isinstance(grid, dict):
                facts = GridFacts.from_dict(grid, spec.in_features, place)
            if facts is None or facts.channels != spec.out_features:
                raise MNIFError(
                    f"{place}: grid {grid!r} does not fit the field; expected a resolution and "
                    f"{spec.out_features} as channels."
                )

    @abstractmethod
    def seen_values(self, raw: Tensor, head: str, thickness: float) -> Tensor:
        """What one sees or measures of a field: `[B, C', N]` of its raw outputs `[B, C, N]`, differentiable.

        Args:
            raw: outputs of the field.
            head: what they mean.
            thickness: thickness of a surface, world units: the way over which radiance is taken to become opaque.
        """

    # --- pictures -------------------------------------------------------------------------------------------------

    @abstractmethod
    def portrait(self, item: NeuralObject, pixels: int) -> Image.Image:
        """An object in small, `pixels` along an edge, for sheets."""

    def beside_data(self, item: NeuralObject, pixels: int) -> Image.Image:
        """The portrait that goes beside `picture_of_data`; what has a resolution of its own keeps that."""
        return self.portrait(item, pixels)

    def sample_pixels(self, grid: dict[str, Any] | None) -> int:
        """Pixels along an edge of the pictures that `mnif-sample` writes, for a model whose data has this grid."""
        return 128

    # --- commands -------------------------------------------------------------------------------------------------

    def next_commands(self, config: Path | str) -> tuple[str, ...]:
        """What to run after training; `config` is the run's config.yml."""
        sample = f"mnif-sample --load-config {quoted(config)} --num-samples 16 --seed 0"
        if not self.has_surface:
            return (sample,)
        export = f"mnif-export-mesh --load-config {quoted(config)} --num-samples 8 --format {self.mesh_formats}"
        return (sample, export)

    @property
    @abstractmethod
    def card(self) -> Card:
        """What the card of a published model says."""

    @property
    def demo(self) -> Demo:
        """The demo.

        Raises:
            MNIFError: there is none.
        """
        raise MNIFError(f"there is no demo of {self.nouns}.")

    @property
    def drawing(self) -> Drawing:
        """How a web page draws the objects.

        Raises:
            MNIFError: it cannot.
        """
        raise MNIFError(f"a web page cannot show {self.nouns}; write them with mnif-sample.")

    def check_level(self, level: float | None) -> None:
        """Refuse what can be no level of a surface.

        Raises:
            MNIFError: with the range, or because there is no surface.
        """
        raise MNIFError(f"{self.nouns} have no surface, and so no level of one.")

    @abstractmethod
    def locate_data(self, root: Path) -> None:
        """Refuse a folder that holds no data of this modality.

        Raises:
            MNIFError: with what is missing.
        """

    @abstractmethod
    def splits(self, root: Path | str) -> tuple[str, ...]:
        """Splits of a data set, in the order train, val, test.

        Raises:
            MNIFError: there is no data of this modality.
        """

    @abstractmethod
    def check_data(
        self, root: Path, progress: bool = True, reading: SceneReading = USUAL
    ) -> tuple[list[str], list[str]]:
        """Read a whole data set: lines that describe it, and the problems found.

        Args:
            root: the data.
            progress: whether to show a bar.
            reading: how the files of cameras are read, where there are cameras.

        Raises:
            MNIFError: nothing readable.
        """

    # --- evaluation -----------------------------------------------------------------------------------------------

    def protocol_changes(self, protocol: str) -> dict[str, Any]:
        """Settings of an evaluation protocol that this modality takes otherwise, by name."""
        return {}

    def reconstruction_scores(self, item: NeuralObject, truth: Any, lpips: Lpips | None) -> dict[str, float]:
        """Scores of an object against the values of one instance of a grid, over the whole grid, or against the points
        of a mesh."""
        raise NotImplementedError

    def as_stored(self, values: np.ndarray) -> np.ndarray:
        """One instance of a grid that a user gave, as a store has it."""
        return values

    def picture_of_data(self, values: Any, pixels: int) -> Any:
        """A picture of one instance of a grid, or of the points of a mesh."""
        raise NotImplementedError

    def surface_of(self, item: NeuralObject, count: int, generator: np.random.Generator) -> SurfacePoints | None:
        """Some points spread evenly over an object's surface, as data of points has them; None where it is empty.

        Modalities whose data are points (`has_points`) have it.
        """
        raise NotImplementedError

    @property
    def sweep(self) -> SweepScores:
        """How a sweep over model sizes is judged.

        Raises:
            MNIFError: there is no sweep of this modality.
        """
        raise MNIFError(f"there is no sweep over models of {self.nouns}; use voxels, pictures or points of meshes.")

    def open_sweep(self, root: Path | str, split: str, resolution: int | None = None) -> SweepSplit:
        """A split of data for a sweep.

        Args:
            root: the data folder.
            split: name of the split.
            resolution: cells or pixels along an edge; that of `sweep` when None.

        Raises:
            MNIFError: there is no sweep of this modality, or no such data.
        """
        raise MNIFError(f"there is no sweep over models of {self.nouns}; use voxels, pictures or points of meshes.")

    def unit_values(self, raw: Tensor, head: str) -> Tensor:
        """Values in [0, 1] of the cells of a grid, from the field's raw outputs there `[B, C, cells]`."""
        raise NotImplementedError

    def unit_scores(self, made: Tensor, truth: Tensor) -> dict[str, float]:
        """Mean scores of instances `[B, C, cells]` in [0, 1] against the data's."""
        from mnif_nerf.metrics.images import psnr

        return {"psnr": float(np.mean([float(psnr(one, other)) for one, other in zip(made, truth)]))}

    def set_scores(self, made: Tensor, real: Tensor, shape: tuple[int, ...]) -> dict[str, float]:
        """Scores of two sets of one size, `[S, C, cells]` in [0, 1] each; `shape` is that of an instance, `[C, ...]`.

        "kd_random-conv" is the kernel distance between features of a network that was never trained (not KID).
        """
        from mnif_nerf.metrics.distributions import kernel_distance
        from mnif_nerf.metrics.features import random_conv

        network = random_conv()
        features = [network((255 * part).round().byte().reshape(-1, *shape)) for part in (real, made)]
        return {"kd_random-conv": kernel_distance(*features)[0]}

    # --- integrity ------------------------------------------------------------------------------------------------

    @property
    def integrity_features(self) -> tuple[Feature, ...]:
        """What is measured of an object to tell a broken one: see `mnif_nerf.metrics.integrity`."""
        from mnif_nerf.metrics.solid_integrity import SOLID_FEATURES
        from mnif_nerf.metrics.wave_integrity import WAVE_FEATURES

        return SOLID_FEATURES if self.has_surface else WAVE_FEATURES

    def measure(self, item: NeuralObject) -> Features:
        """Those features of an object; none of an empty one. Here they are those of a solid."""
        from mnif_nerf.metrics.solid_integrity import solid_features
        from mnif_nerf.objects.solid import require_solid

        distance = require_solid(item).signed_distances()
        return solid_features(distance, 2 * item.half_extent / max(distance.shape))

    def measure_data(self, values: Any, facts: GridFacts | None) -> Features | None:
        """Those features of one instance of the data, comparable with an object's; None where the data cannot say.

        Args:
            values: the instance, as the data's store has it.
            facts: of the data's grid, where it is one.
        """
        return None

    # --- fitting to observations ----------------------------------------------------------------------------------

    def check_observation(self, kind: Kind) -> None:
        """Refuse a kind of observation that such a model cannot be fitted to.

        Raises:
            MNIFError: with the kinds that fit.
        """
        if kind in self.fitting.kinds:
            return
        allowed = " or ".join(OBSERVATION_WORDS[each] for each in self.fitting.kinds)
        raise MNIFError(
            f"{OBSERVATION_WORDS[kind]} cannot be fitted with this model of modality {self.name!r}"
            + (f", which knows nothing of it; give {allowed}." if allowed else "; none of its kind can.")
        )

    @property
    def point_evidence(self) -> type[PointEvidence]:
        """What a search descends on where points of an object are known."""
        from mnif_nerf.latents.evidence import PointEvidence

        return PointEvidence

    @property
    def view_losses(self) -> ViewLosses:
        """How rays of pictures are compared with the field, where it can be fitted to pictures."""
        from mnif_nerf.latents.evidence import radiance_view_losses

        return radiance_view_losses

    def likeness(self, item: NeuralObject, other: NeuralObject) -> float:
        """How like two objects look: mean PSNR over their pictures in dB, at most 60 each."""
        from mnif_nerf.metrics.images import psnr

        pairs = zip(self.looks(item), self.looks(other))
        return float(np.mean([min(60.0, float(psnr(_tensor(a), _tensor(b)))) for a, b in pairs]))

    def looks(self, item: NeuralObject) -> list[Image.Image]:
        """The pictures that two objects are compared by."""
        from mnif_nerf.objects.solid import SolidObject

        return item.views(4, 48) if isinstance(item, SolidObject) else [item.picture()]


def _tensor(picture: Image.Image) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.asarray(picture).copy()).float() / 255
