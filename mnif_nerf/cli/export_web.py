"""mnif-export-web: objects of a trained run in one HTML file that draws them live in any browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnif_nerf.cli.generation_common import (
    LabelOption,
    check_choice,
    choice_name,
    chosen_objects,
    count_stored,
    default_output,
    load_pipeline,
    prepare_output,
)
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.latents.rarity import TYPICAL
from mnif_nerf.machine import in_threads
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.export.web import WebObject
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject

_ELEVATION, _FIRST_AZIMUTH = 20.0, 45.0
_AUTO_MB = 4.0  # that drawing new objects may add without being asked for
_CLOSER = 0.88  # of the training cameras' distance: an object of one unit still fits the picture from all sides


@dataclass
class WebOptions:
    """Write one HTML file to share: chosen objects as live neural fields, drawn by the browser's WebGL2.

    It needs no server, no network and nothing installed. Objects can be turned, picked and blended. Browsers without
    WebGL2 show prerendered pictures.
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    num_samples: int = 8
    """How many objects (of --source samples, or the first of --source training without --instance)."""
    source: Literal["samples", "training", "latent"] = "samples"
    """New samples, training instances, or latents from --latent-file."""
    instance: tuple[str, ...] = ()
    """With --source training: names or numbers (from 0) of the instances."""
    latent_file: Path | None = None
    """With --source latent: a .safetensors with "latents" [n, D] or "latent" [D], as mnif-sample writes."""
    seed: int = 0
    """Seed of the samples."""
    sampler: str | None = None
    """As in mnif-sample."""
    steps: int | None = None
    """As in mnif-sample."""
    temperature: float = 1.0
    """As in mnif-sample."""
    typical: float = TYPICAL
    """Draw again what is rarer than this share of the training instances, as in mnif-sample; 1 takes all."""
    label: LabelOption = ()
    """What samples shall be, as attribute=value, as in mnif-sample; several times for several attributes."""
    guidance: float | None = None
    """How strongly they are drawn to their label, as in mnif-sample."""
    redraw: int | None = None
    """Draw a sample that looks broken again, at most so many times, as in mnif-sample."""
    title: str | None = None
    """Heading of the page; by default the data's name and how many objects there are."""
    precision: Literal["float16", "float32"] = "float16"
    """Number format of the weights in the file. float32 takes twice the room and looks the same (see docs/web.md)."""
    draw: Literal["auto", "yes", "no"] = "auto"
    """Whether the page can draw new objects by itself; auto: where what it needs for that takes no more than 4 MB."""
    turntable: bool = True
    """Put pictures all around each object into the file, for browsers without WebGL2; else one for its thumbnail."""
    frames: int = 16
    """Pictures of one turn; of a model of images there is always one."""
    max_size_mb: float = 20.0
    """Refuse to write a larger file; raise it to go on."""
    output: Path | None = None
    """File to write; by default <run>/web/<source>-<number>.html."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: WebOptions) -> Path:
    """Run the command; returns the file.

    Raises:
        MNIFError: an option out of range, an unknown instance, a model without a prior, a file that would be larger
            than --max-size-mb (said before any object is made), or a folder that cannot be written.
    """
    from mnif_nerf.export.web import WebScene, WebText, estimate_bytes, write_web_page
    from mnif_nerf.export.web_prior import DrawSettings, drawing_kit

    _check(options)
    pipe = load_pipeline(options.load_config, options.device)
    model = pipe.model
    frames = options.frames if options.turntable and model.kind.has_views else 1
    drawing = model.kind.drawing
    count = _count(pipe, options)
    plain_mb = estimate_bytes(model.field.spec.parameters_per_instance, count, frames, options.precision) / 1e6
    drawing_mb = _drawing_megabytes(pipe, options, options.max_size_mb - plain_mb)
    _announce(pipe, options, count, frames, (plain_mb, drawing_mb))
    output = options.output or default_output(options.load_config, "web", f"{choice_name(options)}-{count}.html")
    prepare_output(output.parent)
    objects = chosen_objects(pipe, options)
    shown: list[WebObject] = []
    camera = {**model.camera, "radius": _CLOSER * model.camera["radius"]}
    with progress_bar("pictures", len(objects)) as advance:
        for each in in_threads(_web_object, objects, repeat(frames), repeat(camera["radius"])):
            shown.append(each)
            advance()
    scene = WebScene(drawing, camera, model.half_extent, model.cells, _FIRST_AZIMUTH, _proportions(model.grid))
    data = model.data_name
    text = WebText(
        options.title or _title(data, drawing.nouns, len(shown)),
        f"The model was trained on {data}. {_origin(options)}",
        _generator(),
    )
    settings = DrawSettings(options.seed + 1, options.sampler, options.steps, options.temperature, options.typical)
    kit = drawing_kit(model, settings, options.precision) if drawing_mb else None
    write_web_page(output, shown, scene, text, options.precision, kit)
    print(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB, {len(shown)} objects)")
    print("next: open it in a browser (a double click will do), or send it to somebody: it is all in that one file")
    return output


def _check(options: WebOptions) -> None:
    check_choice(options)
    if options.frames < 2:
        raise MNIFError(f"--frames {options.frames} is no turn; use at least 2, or --no-turntable.")
    if options.frames > 72:
        raise MNIFError(f"--frames {options.frames} is more than a turntable needs; use at most 72.")
    if not options.max_size_mb > 0:
        raise MNIFError(f"--max-size-mb {options.max_size_mb:g} allows no file at all; use a positive number.")
    if options.output is not None and options.output.suffix.lower() not in (".html", ".htm"):
        raise MNIFError(f"--output {options.output}: a web page is written as HTML; use the suffix .html.")


def _count(pipe: MNIFPipeline, options: WebOptions) -> int:
    """How many objects the options ask for."""
    if options.source == "samples":
        return options.num_samples
    if options.source == "latent":
        assert options.latent_file is not None
        return count_stored(options.latent_file)
    return len(options.instance) or max(1, min(options.num_samples, len(pipe.names)))


def _drawing_megabytes(pipe: MNIFPipeline, options: WebOptions, room: float) -> float:
    """What it adds to the page that it can draw new objects; 0 where it shall not or cannot. `room`: megabytes that
    --max-size-mb leaves."""
    from mnif_nerf.export.web_prior import estimate_drawing_bytes

    if options.draw == "no":
        return 0.0
    try:
        megabytes = estimate_drawing_bytes(pipe.model, options.precision) / 1e6
    except MNIFError as reason:
        if options.draw == "yes":
            raise
        print(f"the page will not draw new objects: {reason}")
        return 0.0
    if options.draw == "auto" and megabytes > min(_AUTO_MB, room):
        print(f"the page will not draw new objects, which would take {megabytes:,.1f} MB more; --draw yes does it")
        return 0.0
    return megabytes


def _announce(pipe: MNIFPipeline, options: WebOptions, count: int, frames: int, parts: tuple[float, float]) -> None:
    """Say how large the file will be (`parts`: MB without and for drawing new objects), and refuse one that is too
    large, before any work is done."""
    parameters = pipe.model.field.spec.parameters_per_instance
    drawing_mb, megabytes = parts[1], sum(parts)
    said = f"{count:,} {'objects' if count > 1 else 'object'} of {parameters:,} numbers: about {megabytes:,.1f} MB"
    said += f", {drawing_mb:,.1f} of them to draw new ones" if drawing_mb else ""
    if megabytes > options.max_size_mb:
        fewer = f"; --no-turntable makes {_share(parameters, frames, options)} of it" if frames > 1 else ""
        fewer += f"; --draw no takes off {drawing_mb:,.1f}" if drawing_mb else ""
        raise MNIFError(
            f"{said}, more than --max-size-mb {options.max_size_mb:g}; ask for fewer with --num-samples, or go on "
            f"with --max-size-mb {_round_up(megabytes)}{fewer}."
        )
    print(said)


def _share(parameters: int, frames: int, options: WebOptions) -> str:
    from mnif_nerf.export.web import estimate_bytes

    small, large = (estimate_bytes(parameters, 1000, number, options.precision) for number in (1, frames))
    return f"{100 * small / large:.0f} %"


def _round_up(megabytes: float) -> int:
    """A round number that surely holds it: estimates are off by some percent."""
    step = 10 ** max(0, len(str(int(megabytes))) - 2)
    return int(1.2 * megabytes // step + 1) * step


def _web_object(item: NeuralObject, frames: int, radius: float) -> WebObject:
    from mnif_nerf.export.web import FRAME_EDGE, WebObject
    from mnif_nerf.objects.solid import SolidObject

    turns = (_FIRST_AZIMUTH + 360.0 * k / frames for k in range(frames))
    if not isinstance(item, SolidObject):
        still = [_on_square(item.picture(FRAME_EDGE), FRAME_EDGE)] * frames
        return WebObject(item.name, item.field, still, item.label)
    pictures = [item.render(_ELEVATION, turn, FRAME_EDGE, radius) for turn in turns]
    return WebObject(item.name, item.field, pictures, item.label)


def _proportions(grid: dict[str, Any] | None) -> Sequence[int]:
    """(H, W) of pictures; a square where the model is of something else."""
    shape = (grid or {}).get("shape", (1, 1))
    return shape if len(shape) == 2 else (1, 1)


def _on_square(picture: Image.Image, edge: int) -> Image.Image:
    """A picture in the middle of a white square."""
    from PIL import Image

    square = Image.new("RGB", (edge, edge), "white")
    square.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
    return square


def _title(data: str, nouns: str, count: int) -> str:
    return f"{data}: {count} {nouns if count > 1 else nouns[:-1]}"


def _origin(options: WebOptions) -> str:
    if options.source == "samples":
        cooler = "" if options.temperature == 1.0 else f", temperature {options.temperature:g}"
        cooler += f", asked to be {' and '.join(options.label)}" if options.label else ""
        return f"Objects were drawn from its latent prior with seed {options.seed}{cooler}, not chosen."
    if options.source == "latent":
        assert options.latent_file is not None
        return f"Objects were decoded from the latent codes in {options.latent_file.name}."
    return "What it shows are reconstructions of training instances."


def _generator() -> str:
    import mnif_nerf

    return f"mnif_nerf {mnif_nerf.__version__}"


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(WebOptions)), [WebOptions])


if __name__ == "__main__":
    entrypoint()
