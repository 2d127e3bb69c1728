"""mnif-sample: new objects from a trained run, as pictures, a turntable and latents."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.cli.generation_common import (
    LabelOption,
    default_output,
    judging_yardstick,
    label_names,
    label_wish,
    load_pipeline,
    prepare_output,
    require_sheet,
)
from mnif_nerf.cli.processes import speaks, start_processes, working_ranks
from mnif_nerf.cli.sample_pictures import is_broken, write_images, write_pictures, write_turntable
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.latents.rarity import TRIES, TYPICAL
from mnif_nerf.limits import MOST_SAMPLES, require_options
from mnif_nerf.names import file_name, quoted, shown
from mnif_nerf.progress import plain_console, progress_bar

if TYPE_CHECKING:
    from mnif_nerf.labels import Wish
    from mnif_nerf.latents.ranks import Ranks
    from mnif_nerf.latents.rarity import Rarity
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject


@dataclass
class SampleOptions:
    """Draw new objects from the latent prior of a trained run, or walk between two training instances.

    Writes contact_sheet.png, views/*.png, turntable.mp4, latents.safetensors and samples.json; of a model of
    images or signals images/*.png in place of views and turntable, and of signals values/*.npy (sounds also as .wav).
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    num_samples: int = 16
    """How many objects to draw (with --interpolate: how many steps, both ends included)."""
    seed: int = 0
    """Same seed, same objects."""
    sampler: str | None = None
    """dpm-solver++ (the default), ddim, ddpm; of a prior trained with the prediction flow, flow-heun (its default and
    only one); or gaussian, interpolation (baselines without a denoiser)."""
    steps: int | None = None
    """Denoising steps; by default 30 for dpm-solver++ and flow-heun, 100 for ddim, 1000 for ddpm."""
    temperature: float = 1.0
    """Below 1: nearer to the typical object and less varied."""
    typical: float = TYPICAL
    """Draw again what lies in sparser regions of latent space than this share of the training latents do: less gives up
    rare kinds for whole ones; 1 takes the prior as it is."""
    integrity: bool = True
    """Judge every object by the range of the model's own training instances, and mark the broken ones on the sheet. The
    first time, that range is measured (0.3 s for each of up to 128 instances) and kept in the model folder."""
    redraw: int | None = None
    """Draw a sample that falls outside that range again, at most so many times; by default 3, and 0 draws none
    again. Sample i of a seed is the same whatever the number of samples."""
    label: LabelOption = ()
    """What the objects shall be, as attribute=value; several times for several attributes: --label species=oak --label
    season=autumn. The prior must have been trained with labels; asking for one that is not there lists those that
    are."""
    guidance: float | None = None
    """How strongly samples are drawn to their label: 0 leaves the label out, 1, the default, is the prior itself, more
    makes them more like their class and less varied."""
    interpolate: tuple[str, str] | None = None
    """Two training instances (names or numbers from 0): walk from one to the other instead of sampling."""
    views: int | None = None
    """Pictures per object; by default 4, of voxels and signed distances 2 (from the front-left and the rear-right). Not
    for images."""
    resolution: int | None = None
    """Pixels along an edge of a picture; by default 128, of images as many as the training data had."""
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
    num_devices: int = 1
    """Processes that judge and render together on this machine, one per CUDA device (on a CPU as many as asked for)."""


def main(options: SampleOptions) -> Path:
    """Run the command; returns the output folder.

    Raises:
        MNIFError: no prior yet, an option out of range, an unknown instance, or a folder that cannot be
            written.
    """
    _check(options)
    wish = label_wish(options.label, options.guidance)
    with working_ranks(options.device, "run the same command again") as (ranks, device):
        return sample_together(options, wish, ranks, device)


def sample_together(options: SampleOptions, wish: Wish | None, ranks: Ranks, device: str | None) -> Path:
    """The command as one of the processes that share its work, on the device of this one."""
    from mnif_nerf.pipelines.integrity import REDRAWS

    with ranks.one_first():  # which downloads what is on the hub
        pipe = load_pipeline(options.load_config, device)
    options = _complete(options, pipe)
    require_sheet(options.num_samples, options.views or 1, options.resolution or 1)
    objects, integrity = _objects(pipe, options, wish, ranks)
    if options.redraw is None and integrity and options.interpolate is None:
        options = dataclasses.replace(options, redraw=REDRAWS)
    output = options.output or default_output(options.load_config, "samples", _run_name(options))
    if ranks.is_first:
        prepare_output(output)
    rarity = pipe.rarity_among(wish) if pipe.names else None
    entries = [_entry(pipe, item, options, rarity) for item in objects]
    for entry, found in zip(entries, integrity):
        entry["integrity"] = found
    if not pipe.model.kind.has_views:
        write_images(objects, entries, output, options, ranks)
    else:
        write_pictures(pipe, objects, entries, output, options, ranks)
    if options.turntable:
        write_turntable(objects, output / "turntable.mp4", options, ranks)
    if not ranks.is_first:
        return output
    _write_latents(objects, output / "latents.safetensors")
    _write_facts(entries, output / "samples.json", options)
    _say(pipe, entries, output, options)
    return output


def _check(options: SampleOptions) -> None:
    least = {"num_samples": 1, "views": 1, "resolution": 1, "frames": 1, "turntable_resolution": 1}
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            flag = "--" + name.replace("_", "-")
            raise MNIFError(f"{flag} {value} leaves nothing to do; use at least {minimum}.")
    if (options.redraw or 0) < 0:
        raise MNIFError(f"--redraw {options.redraw} is negative; use 0 to draw nothing again.")
    if options.redraw and not options.integrity:
        raise MNIFError("--redraw draws again what is judged as broken; leave out --no-integrity.")
    if options.redraw and options.interpolate is not None:
        raise MNIFError("--redraw is for samples, and a walk between instances has none; leave one of the two out.")
    if options.typical != TYPICAL and options.interpolate is not None:
        raise MNIFError("--typical is for samples, and a walk between instances has none; leave one of the two out.")
    if options.interpolate is not None and options.num_samples < 2:
        raise MNIFError("--interpolate needs both ends; use --num-samples 2 or more.")
    if options.label and options.interpolate is not None:
        raise MNIFError("--label is for samples, and a walk between instances has none; leave one of the two out.")
    require_options(options, num_samples=MOST_SAMPLES, views=360, frames=3600, redraw=1000)


def _complete(options: SampleOptions, pipe: MNIFPipeline) -> SampleOptions:
    """The options with what the model decides filled in."""
    if options.sampler is None and pipe.prior is not None:
        options = dataclasses.replace(options, sampler=pipe.prior.default_sampler)
    kind = pipe.model.kind
    resolution = kind.sample_pixels(pipe.model.grid) if options.resolution is None else options.resolution
    if kind.has_views:
        views = kind.view_count if options.views is None else options.views
        return dataclasses.replace(options, views=views, resolution=resolution)
    if options.views is not None:
        raise MNIFError(f"--views is for objects seen from several sides; leave it out for a model of {kind.nouns}.")
    return dataclasses.replace(options, resolution=resolution, turntable=False)


def _objects(
    pipe: MNIFPipeline, options: SampleOptions, wish: Wish | None, ranks: Ranks
) -> tuple[list[NeuralObject], list[dict[str, Any]]]:
    """The objects, and what is said of the integrity of each; nothing where they are not judged."""
    from mnif_nerf.pipelines.integrity import REDRAWS, Draw, draw_whole, integrity_of

    draw = Draw(options.seed, options.sampler, options.steps, options.temperature, options.typical, wish)
    sampled = options.interpolate is None
    yardstick = None
    if options.integrity and not (sampled and pipe.prior is None):
        with ranks.one_first():  # which keeps it in the model folder
            yardstick = judging_yardstick(pipe, options.redraw)
    if options.interpolate is not None:
        objects = pipe.interpolate(*options.interpolate, num=options.num_samples)
        if yardstick is None:
            return objects, []
        with progress_bar("integrity", len(objects)) as advance:
            return objects, [found.facts() for found in integrity_of(objects, yardstick, advance)]
    if yardstick is None:
        return draw.objects(pipe, options.num_samples), []
    redraw = REDRAWS if options.redraw is None else options.redraw
    drawn = draw_whole(pipe, options.num_samples, draw, redraw, yardstick, progress_bar, ranks)
    facts = [
        {**judgement.facts(), "redrawn": times} for judgement, times in zip(drawn.judgements, drawn.attempts)
    ]  # fmt: skip
    return drawn.objects, facts


def _run_name(options: SampleOptions) -> str:
    from mnif_nerf.pipelines.integrity import REDRAWS

    if options.interpolate is not None:
        start, end = (file_name(name)[:24] for name in options.interpolate)
        return f"interpolate-{start}-{end}-{options.num_samples}"
    parts = [f"seed{options.seed}", str(options.num_samples)]
    if options.sampler not in (None, "dpm-solver++"):
        parts.append(file_name(options.sampler))
    if options.steps is not None:
        parts.append(f"{options.steps}steps")
    if options.temperature != 1.0:
        parts.append(f"t{options.temperature:g}")
    if options.typical != TYPICAL:
        parts.append(f"typical{options.typical:g}")
    if options.redraw not in (None, REDRAWS):
        parts.append(f"redraw{options.redraw}")
    return "-".join([*parts, *label_names(options.label, options.guidance)])


def _entry(pipe: MNIFPipeline, item: NeuralObject, options: SampleOptions, rarity: Rarity | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": item.name}
    if item.label:
        entry["label"] = item.label
    if pipe.names:
        name, distance = pipe.nearest(item)
        entry.update({"nearest_training_instance": name, "distance": round(distance, 4)})
    if rarity is not None:
        entry["rarity"] = round(float(rarity(item.latent[None])[0]), 4)
    if not pipe.model.kind.has_views:
        return {**entry, "image": f"images/{item.name}.png"}
    return {**entry, "views": [f"views/{item.name}_{view}.png" for view in range(options.views or 0)]}


def _write_latents(objects: list[NeuralObject], path: Path) -> None:
    import torch

    from mnif_nerf.tensor_files import write_tensors

    names = json.dumps([item.name for item in objects])
    write_tensors(path, {"latents": torch.stack([item.latent.float() for item in objects])}, {"names": names})


def _write_facts(entries: list[dict[str, Any]], path: Path, options: SampleOptions) -> None:
    from mnif_nerf.files import write_json

    settings = dataclasses.asdict(options)
    for where in ("output", "device", "num_devices"):
        settings.pop(where)
    write_json(path, {**settings, "samples": entries})


def _say(pipe: MNIFPipeline, entries: list[dict[str, Any]], output: Path, options: SampleOptions) -> None:
    from rich.table import Table

    if pipe.names:
        judged = ["integrity", "broken"] if "integrity" in entries[0] else []
        table = Table("object", "nearest training instance", "distance", *judged)
        for entry in entries:
            cells = [entry["name"], shown(entry["nearest_training_instance"], 60), f"{entry['distance']:.2f}"]
            if judged:
                found = entry["integrity"]
                cells += [f"{found['score']:.2f}", found["reason"] if found["broken"] else ""]
            table.add_row(*cells)
        plain_console().print(table)
        if judged:
            print(_integrity_sentence(entries, options))
    if pipe.names and options.interpolate is None and options.typical < 1:
        rare = [entry["name"] for entry in entries if entry["rarity"] > options.typical]
        left = f"; {', '.join(rare)}: rarer still after {TRIES} further draws" if rare else ""
        print(
            f"samples rarer than {options.typical:.0%} of the training instances were drawn again (--typical 1 takes "
            f"all){left}"
        )
    if pipe.names and pipe.prior is not None:
        print(
            f"(training instances are {pipe.prior.spacing():.2f} from their own nearest one; "
            "a sample far below that is nearly a copy)"
        )
    kind = pipe.model.kind
    pictures = "views/" if kind.has_views else "images/"
    if "values" in entries[0]:
        pictures += ", values/"
    print(
        f"wrote {output}/contact_sheet.png{', turntable.mp4' if options.turntable else ''}, {pictures}, "
        "latents.safetensors, samples.json"
    )
    if not kind.has_surface:
        if "values" not in entries[0]:
            print(f"next: the same at four times the resolution, with --resolution {4 * (options.resolution or 64)}")
        return
    print(
        f"next: mnif-export-mesh --load-config {quoted(options.load_config)} --source latent "
        f"--latent-file {quoted(output / 'latents.safetensors')} --format {kind.mesh_formats}"
    )


def _integrity_sentence(entries: list[dict[str, Any]], options: SampleOptions) -> str:
    broken = [entry["name"] for entry in entries if is_broken(entry)]
    again = [entry["integrity"] for entry in entries if entry["integrity"].get("redrawn")]
    named = ", ".join(broken[:8]) + (", ..." if len(broken) > 8 else "")
    words = f"{len(broken)} of {len(entries)} lie outside the range of the training instances" + (
        f": {named}" if broken else ""
    )
    if options.redraw:
        return (
            f"{len(again)} of {len(entries)} were drawn again, {sum(f['redrawn'] for f in again)} times in all; {words}"
        )
    if broken and options.interpolate is None:
        return f"{words}; draw them again with --redraw 3"
    return words


def entrypoint() -> None:
    """The console script."""
    import tyro

    def run() -> None:
        options = tyro.cli(SampleOptions, console_outputs=speaks())
        start_processes(options.num_devices, "mnif_nerf.cli.sample")
        main(options)

    run_command(run, [SampleOptions])


if __name__ == "__main__":
    entrypoint()
