"""Shape of one object with the colour of another: what each way of mixing keeps and reaches, and a video's frame times.

Random pairs of a radiance model's training instances, A for the shape and B for the colours. The baselines stand in the
same table: A itself, B itself, and the exact composite (density of A and colour of B at the same points).
Run: `python benchmarks/edit.py outputs/demo/mnif-lite/run`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import report
import torch
import tyro
from torch import Tensor

from mnif_nerf import MNIFPipeline
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.priors.walks import closed_walk


@dataclass(frozen=True)
class Config:
    """Measure editing.

    Attributes:
        model: a trained radiance model (folder, run or config.yml).
        pairs: random pairs of training instances.
        voxels: cells along an edge of the grids that shapes are compared on.
        resolution: pixels along an edge of the pictures.
        seed: of the pairs.
        output: JSON file for the numbers.
    """

    model: Annotated[Path, tyro.conf.Positional]
    pairs: int = 40
    voxels: int = 48
    resolution: int = 64
    seed: int = 0
    output: Path | None = None


class Composite(torch.nn.Module):
    """Density of one field with the colour of another at the same points."""

    def __init__(self, shape: CompactField, color: CompactField) -> None:
        super().__init__()
        self.shape, self.color = shape, color

    def radiance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Colours `[N, 3]` and densities `[N]`."""
        return self.color.radiance(points)[0], self.shape.density(points)

    def density(self, points: Tensor) -> Tensor:
        """Densities `[N]`."""
        return self.shape.density(points)


def ways(pipe: MNIFPipeline, a: NeuralObject, b: NeuralObject) -> Iterator[tuple[str, NeuralObject]]:
    """Everything that is compared, by name."""
    yield "A itself", a
    yield "B itself", b
    layers = len(pipe.model.field.spec.shapes)
    for last in range(1, layers):
        yield f"last {last} of {layers} layers from B", pipe.mix_shape_and_color(a, b, last)
    default = pipe.mix_shape_and_color(a, b)
    yield "the default, as its nearest latent", pipe.decode(pipe.project(default)[0])
    rows = CompactField(list(a.field.weights), list(a.field.biases), a.field.final_sine, a.field.head)
    rows.weights[-1][:3], rows.biases[-1][:3] = b.field.weights[-1][:3], b.field.biases[-1][:3]
    yield "colour rows of the last layer from B", pipe.wrap(None, rows, "rows")
    yield "composite", pipe.wrap(None, Composite(a.field, b.field), "composite")  # type: ignore[arg-type]


def paint(item: NeuralObject, resolution: int) -> np.ndarray:
    """Median colour `[3]` in [0, 1] of what is not background in one picture."""
    pixels = np.asarray(item.picture(resolution)).reshape(-1, 3) / 255
    seen = pixels[pixels.min(axis=1) < 0.9]
    return np.median(seen if len(seen) else pixels, axis=0)


def compare(pipe: MNIFPipeline, config: Config) -> dict[str, dict[str, float]]:
    """Means over pairs, by way."""
    generator = torch.Generator().manual_seed(config.seed)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(config.pairs):
        first, second = torch.randperm(len(pipe.names), generator=generator)[:2].tolist()
        a, b = pipe.instance(first), pipe.instance(second)
        solids = [item.occupancy(config.voxels) for item in (a, b)]
        color = paint(b, config.resolution)
        for name, item in ways(pipe, a, b):
            cells = item.occupancy(config.voxels)
            overlaps = [float((cells & solid).sum() / max((cells | solid).sum(), 1)) for solid in solids]
            error = float(np.abs(paint(item, config.resolution) - color).mean())
            found.setdefault(name, []).append((*overlaps, error))
    keys = ("iou_with_a", "iou_with_b", "paint_error_to_b")
    return {name: {key: fmean(row[k] for row in rows) for k, key in enumerate(keys)} for name, rows in found.items()}


def frame_times(pipe: MNIFPipeline, resolution: int = 256, repeats: int = 9) -> dict[str, float]:
    """Median seconds of the parts of a frame whose object is new."""
    times: dict[str, list[float]] = {"mixing": [], "grid": [], "picture": []}
    for k in range(repeats + 1):
        marks = [time.perf_counter()]
        item = pipe.instance(k % len(pipe.names))
        marks.append(time.perf_counter())
        _ = item.grid
        marks.append(time.perf_counter())
        item.picture(resolution)
        marks.append(time.perf_counter())
        for name, start, end in zip(times, marks, marks[1:]):
            times[name] += [end - start] * (k > 0)  # the first is a warm-up
    return {name: median(values) for name, values in times.items()}


def walk_lengths(pipe: MNIFPipeline, seeds: int = 8, stops: int = 6, frames: int = 96) -> dict[str, list[float]]:
    """Distances from the mean in whitened coordinates, 5, 50 and 95 %, of samples and along two ways between them."""
    if pipe.prior is None:
        return {}
    whitening, found = pipe.prior.whitening, {}
    drawn = [pipe.sample_latents(stops, seed) for seed in range(seeds)]
    shares = torch.arange(frames // stops).div(frames // stops).view(-1, 1, 1)
    ways = {
        "samples": pipe.sample_latents(200, seeds),
        "the walk": torch.cat([closed_walk(whitening, keys, frames) for keys in drawn]),
        "straight legs": torch.cat([torch.lerp(keys, keys.roll(-1, 0), shares).flatten(0, 1) for keys in drawn]),
    }
    for name, latents in ways.items():
        lengths = whitening.whiten(latents).norm(dim=1)
        found[name] = [float(value) for value in lengths.quantile(torch.tensor([0.05, 0.5, 0.95]))]
    return found


def main(config: Config) -> dict[str, Any]:
    """Measure and print.

    Raises:
        MNIFError: a model that is not of radiance fields.
    """
    info = report.machine(config.seed)
    pipe = MNIFPipeline.from_pretrained(config.model)
    if pipe.modality != "radiance":
        raise MNIFError(f"{config.model}: a model of {pipe.modality}s has no shape and colour to mix.")
    rows, times = compare(pipe, config), frame_times(pipe)
    table = report.markdown_table(
        ["network", "IoU with A", "IoU with B", "paint error to B"],
        [[name, *(f"{value:.3f}" for value in row.values())] for name, row in rows.items()],
    )
    notes = (
        f"Means over {config.pairs} pairs of {len(pipe.names)} training instances of {config.model}; solids at "
        f"{config.voxels} cells, paint is the median colour of the object in one picture (0 to 1, mean of channels)."
    )
    video = (
        "A frame of 256 x 256 with a new object: " + ", ".join(f"{k} {1000 * v:.1f} ms" for k, v in times.items()) + "."
    )
    lengths = walk_lengths(pipe)
    video += " Distance from the mean (5, 50 and 95 %): " if lengths else ""
    video += "; ".join(f"{name} {' '.join(f'{x:.2f}' for x in row)}" for name, row in lengths.items())
    results = {"mixing": rows, "frame_seconds": times, "walk_lengths": lengths}
    report.finish("Editing", [table, notes, video], info, results, config.output)
    return results


def entrypoint() -> None:
    """The script."""
    main(tyro.cli(Config))


if __name__ == "__main__":
    run_command(entrypoint)
