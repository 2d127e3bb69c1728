"""mnif-sample: new objects from a trained run, as pictures, a turntable and latents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.cli.generation_common import (
    default_output,
    file_name,
    load_pipeline,
    prepare_output,
    progress_bar,
)
from mnif_nerf.errors import MNIFError, run_command

if TYPE_CHECKING:
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject

_MOST_IN_TURNTABLE = 16


@dataclass
class SampleOptions:
    """Draw new objects from the latent prior of a trained run, or walk between two training instances.

    Writes contact_sheet.png, views/*.png, turntable.mp4, latents.safetensors and samples.json.
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    num_samples: int = 16
    """How many objects to draw (with --interpolate: how many steps, both ends included)."""
    seed: int = 0
    """Same seed, same objects."""
    sampler: str = "dpm-solver++"
    """dpm-solver++, ddim, ddpm; or gaussian, interpolation (baselines without diffusion)."""
    steps: int | None = None
    """Denoising steps; by default 30 for dpm-solver++, 100 for ddim, 1000 for ddpm."""
    temperature: float = 1.0
    """Below 1: nearer to the typical object and less varied."""
    interpolate: tuple[str, str] | None = None
    """Two training instances (names or numbers from 0): walk from one to the other instead of sampling."""
    views: int = 4
    """Pictures per object."""
    resolution: int = 128
    """Pixels along an edge of a picture."""
    elevation: float = 20.0
    """Degrees of the camera above the horizon."""
    turntable: bool = True
    """Write turntable.mp4, a grid of the (first 16) objects turning."""
    turntable_resolution: int = 96
    """Pixels along an edge of one object in the turntable."""
    frames: int = 36
    """Frames of the turntable, one full turn."""
    output: Path | None = None
    """Folder to write to; by default <run>/samples/<seed and number>."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: SampleOptions) -> Path:
    """Run the command; returns the output folder.

    Raises:
        MNIFError: no prior yet, an option out of range, an unknown instance, or a folder that cannot be
            written.
    """
    _check(options)
    pipe = load_pipeline(options.load_config, options.device)
    objects = _objects(pipe, options)
    output = options.output or default_output(options.load_config, "samples", _run_name(options))
    prepare_output(output)
    entries = [_entry(pipe, item, options) for item in objects]
    _write_pictures(objects, entries, output, options)
    if options.turntable:
        _write_turntable(objects, output / "turntable.mp4", options)
    _write_latents(objects, output / "latents.safetensors")
    _write_facts(entries, output / "samples.json", options)
    _say(pipe, entries, output, options)
    return output


def _check(options: SampleOptions) -> None:
    least = {"num_samples": 1, "views": 1, "resolution": 1, "frames": 1, "turntable_resolution": 1}
    for name, minimum in least.items():
        if getattr(options, name) < minimum:
            flag = "--" + name.replace("_", "-")
            raise MNIFError(f"{flag} {getattr(options, name)} leaves nothing to do; use at least {minimum}.")
    if options.interpolate is not None and options.num_samples < 2:
        raise MNIFError("--interpolate needs both ends; use --num-samples 2 or more.")


def _objects(pipe: MNIFPipeline, options: SampleOptions) -> list[NeuralObject]:
    if options.interpolate is not None:
        return pipe.interpolate(*options.interpolate, num=options.num_samples)
    return pipe(options.num_samples, options.seed, options.sampler, options.steps, options.temperature)


def _run_name(options: SampleOptions) -> str:
    if options.interpolate is not None:
        start, end = (file_name(name)[:24] for name in options.interpolate)
        return f"interpolate-{start}-{end}-{options.num_samples}"
    parts = [f"seed{options.seed}", str(options.num_samples)]
    if options.sampler != "dpm-solver++":
        parts.append(file_name(options.sampler))
    if options.steps is not None:
        parts.append(f"{options.steps}steps")
    if options.temperature != 1.0:
        parts.append(f"t{options.temperature:g}")
    return "-".join(parts)


def _entry(pipe: MNIFPipeline, item: NeuralObject, options: SampleOptions) -> dict[str, Any]:
    name, distance = pipe.nearest(item)
    entry = {"name": item.name, "nearest_training_instance": name, "distance": round(distance, 4)}
    return {**entry, "views": [f"views/{item.name}_{view}.png" for view in range(options.views)]}


def _write_pictures(
    objects: list[NeuralObject], entries: list[dict[str, Any]], output: Path, options: SampleOptions
) -> None:
    from mnif_nerf.export.pictures import contact_sheet, image_grid, save_png

    rows = []
    with progress_bar("rendering views", len(objects)) as advance:
        for item, entry in zip(objects, entries):
            pictures = item.views(options.views, options.resolution, options.elevation)
            for picture, name in zip(pictures, entry["views"]):
                save_png(picture, output / name)
            rows.append(pictures)
            advance()
    labels = [f"{e['name']}: nearest {e['nearest_training_instance']} at {e['distance']:.2f}" for e in entries]
    strips = [image_grid(row, columns=len(row)) for row in rows]
    # Up to four objects stand below each other; more share a row, or the sheet gets too tall for a screen.
    across = 1 if len(strips) <= 4 else 2
    firsts = range(0, len(strips), across)
    sheet = contact_sheet(
        [strips[k : k + across] for k in firsts],
        captions=[labels[k : k + across] for k in firsts],
        title=_title(options),
    )
    save_png(sheet, output / "contact_sheet.png")


def _title(options: SampleOptions) -> str:
    if options.interpolate is not None:
        return f"from {options.interpolate[0]} to {options.interpolate[1]}"
    return f"{options.num_samples} samples, seed {options.seed}, {options.sampler}"


def _write_turntable(objects: list[NeuralObject], path: Path, options: SampleOptions) -> None:
    from mnif_nerf.export.pictures import image_grid
    from mnif_nerf.export.video import write_video

    shown = objects[:_MOST_IN_TURNTABLE]
    with progress_bar("turntable", options.frames) as advance:

        def frames() -> Any:
            orbits = [item.orbit(options.frames, options.turntable_resolution, options.elevation) for item in shown]
            for pictures in zip(*orbits):
                yield image_grid(pictures)
                advance()

        write_video(frames(), path, fps=18)


def _write_latents(objects: list[NeuralObject], path: Path) -> None:
    import torch

    from mnif_nerf.files import write_tensors

    write_tensors(path, {"latents": torch.stack([item.latent.float() for item in objects])})


def _write_facts(entries: list[dict[str, Any]], path: Path, options: SampleOptions) -> None:
    from mnif_nerf.files import write_json

    settings = dataclasses.asdict(options)
    settings.pop("output")
    settings.pop("device")
    write_json(path, {**settings, "samples": entries})


def _say(pipe: MNIFPipeline, entries: list[dict[str, Any]], output: Path, options: SampleOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("object", "nearest training instance", "distance")
    for entry in entries:
        table.add_row(entry["name"], entry["nearest_training_instance"], f"{entry['distance']:.2f}")
    Console().print(table)
    if pipe.prior is not None:
        print(
            f"(training instances are {pipe.prior.spacing():.2f} from their own nearest one; "
            "a sample far below that is nearly a copy)"
        )
    print(
        f"wrote {output}/contact_sheet.png{', turntable.mp4' if options.turntable else ''}, views/, "
        "latents.safetensors, samples.json"
    )
    print(
        f"next: mnif-export-mesh --load-config {options.load_config} --source latent "
        f"--latent-file {output / 'latents.safetensors'} --format glb"
    )


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(SampleOptions)))


if __name__ == "__main__":
    entrypoint()
