"""The modality "image": pictures, grey, in colour, or in colour with alpha."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnif_nerf.modalities.grids import GridModality
from mnif_nerf.modalities.traits import Card, Demo, DemoData, Fitting, SweepScores
from mnif_nerf.names import quoted
from mnif_nerf.objects.image import NeuralImage

if TYPE_CHECKING:
    from PIL import Image as Picture
    from torch import Tensor

    from mnif_nerf.data.grid_facts import GridFacts
    from mnif_nerf.export.web import Drawing
    from mnif_nerf.metrics.images import Lpips
    from mnif_nerf.metrics.integrity import Features
    from mnif_nerf.modalities.image_training import ImageTraining
    from mnif_nerf.objects.base import NeuralObject

_USUAL_PIXELS = 64  # where nothing says how many the data had


class Image(GridModality):
    """See the module."""

    name, noun, nouns, method = "image", "picture", "pictures", "mnif-image"
    dims, channels, heads = 2, (1, 3, 4), ("signed",)
    object_class = NeuralImage
    has_pictures = True
    no_repainting = "a picture is all colour"
    fitting = Fitting(kinds=("image",))
    card = Card((), "pictures", 'image().save("image.png")')
    sweep = SweepScores(
        (
            ("train_psnr", "PSNR, training instances (dB)", 1),
            ("unseen_psnr", "PSNR, unseen instances (dB)", 1),
            ("sample_kd_random-conv", "kernel distance of samples (random-conv features)", 4),
        ),
        "unseen_psnr",
        "sample_kd_random-conv",
    )

    @cached_property
    def training(self) -> ImageTraining:
        """See `Modality`."""
        from mnif_nerf.modalities.image_training import ImageTraining

        return ImageTraining()

    def beside_data(self, item: NeuralObject, pixels: int) -> Picture.Image:
        """The picture at the data's own resolution."""
        return item.picture(item.resolution or _USUAL_PIXELS)

    def as_stored(self, values: np.ndarray) -> np.ndarray:
        """Users have straight colours, stores premultiplied ones."""
        from mnif_nerf.rendering.alpha import premultiplied

        return premultiplied(values)

    def picture_of_data(self, values: np.ndarray, pixels: int) -> Any:
        """The picture itself, on white."""
        from mnif_nerf.export.pictures import to_image
        from mnif_nerf.rendering.alpha import over_white

        return to_image(over_white(values))

    def sample_pixels(self, grid: dict[str, Any] | None) -> int:
        """As many as the training data had."""
        return int((grid or {"resolution": _USUAL_PIXELS})["resolution"])

    def next_commands(self, config: Path | str) -> tuple[str, ...]:
        """More samples than of objects: they are small."""
        return (f"mnif-sample --load-config {quoted(config)} --num-samples 64 --seed 0",)

    @property
    def demo(self) -> Demo:
        """Handwritten digits."""
        return Demo(
            "mnif-image-lite", "digits", "demo-image", "Digits that nobody wrote", "digits", _make_digits,
            num_samples=64, pixels=64, num_scored=64, across=2, steps=3000,
        )  # fmt: skip

    @property
    def drawing(self) -> Drawing:
        """The values on a plane."""
        from mnif_nerf.export.web import PICTURE

        return PICTURE

    def protocol_changes(self, protocol: str) -> dict[str, Any]:
        """The authors compare 50,000 pictures with the training split; small ones are quick to compare."""
        if protocol == "paper":
            return {"num_samples": 50_000, "references": ("train",)}
        sizes = ("num_samples", "training_instances", "unseen_instances")
        return dict.fromkeys(sizes, 200) if protocol == "small" else {}

    def reconstruction_scores(self, item: NeuralObject, truth: np.ndarray, lpips: Lpips | None) -> dict[str, float]:
        """PSNR and SSIM over all channels, and LPIPS, on white, where it is asked for."""
        import torch

        from mnif_nerf.metrics.images import psnr, ssim
        from mnif_nerf.rendering.alpha import over_white
        from mnif_nerf.rendering.plane import render_image

        rendered = render_image(item.field, truth.shape[:2]).cpu()
        picture = torch.from_numpy(truth).float() / 255
        scores = {"psnr": float(psnr(rendered, picture))}
        if min(truth.shape[:2]) >= 3:
            scores["ssim"] = float(ssim(rendered, picture))
        if lpips is not None:
            scores["lpips"] = lpips(*(over_white(each).expand(-1, -1, 3) for each in (rendered, picture)))
        return scores

    def set_scores(self, made: Tensor, real: Tensor, shape: tuple[int, ...]) -> dict[str, float]:
        """See `Modality`; of pictures on white."""
        from mnif_nerf.rendering.alpha import over_white

        made, real = (over_white(part.transpose(1, 2)).transpose(1, 2) for part in (made, real))
        return super().set_scores(made, real, (made.shape[1], *shape[1:]))

    def measure(self, item: NeuralObject) -> Features:
        """See `Modality`: of the picture at the data's resolution."""
        assert isinstance(item, NeuralImage)
        return self.measure_data(item.pixels(), item.facts.grid)

    def measure_data(self, values: np.ndarray, facts: GridFacts | None) -> Features:
        """See `Modality`."""
        from mnif_nerf.metrics.wave_integrity import wave_features

        return wave_features(np.asarray(values) / 255.0, 2)


def _make_digits(options: DemoData) -> None:
    from mnif_nerf.data.generate.digits import make_digits

    make_digits(options.folder, seed=options.seed)
