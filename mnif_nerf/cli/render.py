"""mnif-render: videos of objects of a trained run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnif_nerf.cli.generation_common import (
    LabelOption,
    default_output,
    held_interrupts,
    label_names,
    label_wish,
    label_words,
    load_pipeline,
    prepare_output,
    stored_objects,
)
from mnif_nerf.errors import MNIFError, run_command
from mnif_nerf.limits import MOST_FRAMES, MOST_SAMPLES, require_options
from mnif_nerf.names import file_name, quoted
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from mnif_nerf.labels import Wish
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject
    from mnif_nerf.pipelines.videos import Video
    from mnif_nerf.rendering.camera_path import CameraPath

_SIZE = 256
_SECONDS = {"orbit": 4.0, "interpolate": 2.0, "walk": 2.0}  # in all, per leg, per stop
_STOPS = 4  # samples that an interpolation leads through where none are named


@dataclass
class RenderOptions:
    """Render a video: an object turning, objects that become one another, a walk through latent space, or an object
    along a camera path that nerfstudio's viewer exported.

    Writes an .mp4 or .gif, or a folder of PNG frames. A folder that was interrupted is gone on with by the same
    command; an interrupted video leaves nothing.
    """

    load_config: str
    """The run's config.yml, the run folder, a model folder, or owner/name on the Hugging Face Hub."""
    path: Literal["orbit", "interpolate", "walk", "camera-path"] = "orbit"
    """orbit: one object, the camera around it. interpolate: from each object to the next. walk: a closed walk through
    samples of the prior. camera-path: one object, the cameras of --camera-path-filename."""
    output: Path | None = None
    """A name that ends in .mp4 or .gif, or a folder for PNG frames; by default <run>/renders/<path and objects>.mp4."""
    instance: tuple[str, ...] = ()
    """Training instances, by name or number (from 0)."""
    latent_file: Path | None = None
    """Objects of a .safetensors with "latents" [n, D] (as mnif-sample writes), or of NeuralObject.save."""
    index: tuple[int, ...] = ()
    """Which samples of --seed, or which rows of --latent-file, from 0; by default the first; to interpolate,
    the first four (all of a file)."""
    seed: int = 0
    """Seed of the samples and of the walk: sample 3 here is mnif-sample's sample003."""
    sampler: str | None = None
    """As in mnif-sample."""
    steps: int | None = None
    """As in mnif-sample."""
    temperature: float = 1.0
    """As in mnif-sample."""
    label: LabelOption = ()
    """What samples shall be, as attribute=value; as in mnif-sample."""
    guidance: float | None = None
    """How strongly samples are drawn to their label; as in mnif-sample."""
    stops: int = 6
    """Samples that the walk leads through."""
    loop: bool = False
    """Lead the interpolation back to its first object (a walk always does)."""
    frames: int | None = None
    """How many; or give --seconds."""
    seconds: float | None = None
    """Length; by default 4 of an orbit, 2 for each leg of an interpolation and each stop of a walk."""
    fps: int | None = None
    """Frames per second; by default 24, or the camera path's."""
    resolution: int | None = None
    """Pixels along an edge of a square video; by default 256. An image field is evaluated at as many points; by
    default at the training pictures' resolution, enlarged."""
    width: int | None = None
    """Pixels, for videos that are not square. A camera path brings its own size."""
    height: int | None = None
    """Pixels."""
    elevation: float = 20.0
    """Degrees of the camera above the horizon."""
    azimuth: float = 45.0
    """Degrees of the first frame's camera around the vertical; 0 sees the front."""
    radius: float | None = None
    """Distance of the camera from the centre; by default the training cameras'."""
    turns: float | None = None
    """How often the camera goes round; by default 1 in an orbit, 0 elsewhere."""
    camera_path_filename: Path | None = None
    """A .json of nerfstudio's viewer (Render tab). With interpolate or walk its cameras look at what changes."""
    device: str | None = None
    """cpu or cuda; by default CUDA where there is one."""


def main(options: RenderOptions) -> Path:
    """Run the command; returns what it wrote.

    Raises:
        MNIFError: an option out of range or that does not go with the others, a damaged camera path, an unknown
            instance, a latent of another model, a model without a prior where one is needed, or an output that cannot
            be written.
    """
    from mnif_nerf.pipelines.model_folder import require_outside_models
    from mnif_nerf.rendering.camera_path import read_camera_path

    _check(options)
    wish = label_wish(options.label, options.guidance)
    path = None if options.camera_path_filename is None else read_camera_path(options.camera_path_filename)
    pipe = load_pipeline(options.load_config, options.device)
    _check_model(options, pipe)
    objects = _objects(pipe, options, wish)
    output = options.output or default_output(options.load_config, "renders", f"{_name(options, objects)}.mp4")
    prepare_output(output.parent)
    require_outside_models(output)
    video, fps = _video(pipe, objects, path, options), _fps(options, path)
    start = time.perf_counter()
    settings = _settings(pipe, objects, path, options)
    with progress_bar("rendering", video.count) as advance, held_interrupts() as checkpoint:

        def on_frame() -> None:
            advance()
            checkpoint()

        made, size = _write(video, output, fps, settings, on_frame)
    _say(options, video, path, _Written(output, fps, made, size, time.perf_counter() - start))
    return output


# --- checks -----------------------------------------------------------------------------------------------


def _check(options: RenderOptions) -> None:
    """Refuse what no model could do, before anything is loaded."""
    for name, least in {"stops": 2, "frames": 1, "fps": 1, "resolution": 1, "width": 1, "height": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise MNIFError(f"--{name} {value} leaves nothing to do; use at least {least}.")
    for name in ("seconds", "elevation", "azimuth", "radius", "turns"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise MNIFError(f"--{name} {value} is not a number that can be used; give a finite one.")
    if options.seconds is not None and options.seconds <= 0:
        raise MNIFError(f"--seconds {options.seconds:g} leaves nothing to do; use more than 0.")
    if options.frames is not None and options.seconds is not None:
        raise MNIFError("--frames and --seconds both say how long the video is; give one of them.")
    if options.resolution is not None and (options.width or options.height):
        raise MNIFError("--resolution is for square videos; give --width and --height without it.")
    _check_path(options)
    require_options(options, stops=MOST_SAMPLES, frames=MOST_FRAMES, fps=1000, index=MOST_SAMPLES)
    suffix = options.output.suffix.lower() if options.output is not None else ".mp4"
    if suffix not in ("", ".mp4", ".gif"):
        raise MNIFError(f"{options.output}: unknown video format; end it in .mp4 or .gif, or name a folder for PNGs.")
    if suffix and options.output is not None and options.output.is_dir():
        raise MNIFError(f"{options.output}: is a folder; choose another name for the video.")


def _check_path(options: RenderOptions) -> None:
    """Refuse options that do not go with the path, or with one another."""
    if options.path == "walk" and (options.instance or options.latent_file or options.index):
        raise MNIFError("--path walk draws its own samples; choose others with --seed, or use --path interpolate.")
    if options.loop and options.path != "interpolate":
        raise MNIFError(f"--loop is for --path interpolate; leave it out of --path {options.path}.")
    if options.instance and (options.latent_file is not None or options.index):
        raise MNIFError("--instance names the objects; leave --latent-file and --index out.")
    if (options.label or options.guidance is not None) and (options.instance or options.latent_file is not None):
        raise MNIFError("--label and --guidance are for samples; leave them, or --instance and --latent-file, out.")
    if any(index < 0 for index in options.index):
        raise MNIFError(f"--index {min(options.index)} is below 0; samples and rows are numbered from 0.")
    if options.path == "camera-path" and options.camera_path_filename is None:
        raise MNIFError("--path camera-path needs --camera-path-filename (a .json of the viewer's Render tab).")
    if options.camera_path_filename is not None:
        if options.path == "orbit":
            raise MNIFError("--camera-path-filename brings its own cameras; use --path camera-path in place of orbit.")
        for name in ("frames", "seconds", "turns", "radius"):
            if getattr(options, name) is not None:
                raise MNIFError(f"--{name} does not go with a camera path, which brings its own; leave it out.")


def _check_model(options: RenderOptions, pipe: MNIFPipeline) -> None:
    if options.radius is not None and options.radius <= pipe.model.half_extent:
        raise MNIFError(
            f"--radius {options.radius:g} puts the camera inside the object; use more than {pipe.model.half_extent:g}."
        )
    kind = pipe.model.kind
    if kind.has_views:
        return
    if options.path in ("orbit", "camera-path") or options.camera_path_filename is not None or options.turns:
        raise MNIFError(
            f"{options.load_config}: a model of {kind.nouns} has nothing for a camera to go round; use --path "
            "interpolate or --path walk, without turns and camera paths."
        )
    if (options.width or 0) != (options.height or 0):
        raise MNIFError(f"{kind.nouns} keep their proportions; give --resolution, the pixels of the longer edge.")


# --- objects ----------------------------------------------------------------------------------------------


def _objects(pipe: MNIFPipeline, options: RenderOptions, wish: Wish | None) -> list[NeuralObject]:
    """The one object to look at, or the stops of an interpolation or walk."""
    if options.instance:
        objects = [pipe.instance(name) for name in options.instance]
    elif options.latent_file is not None:
        objects = stored_objects(pipe, options.latent_file)
        rows = options.index or ((0,) if options.path in ("orbit", "camera-path") else range(len(objects)))
        objects = [_row(objects, index, options.latent_file) for index in rows]
    else:
        objects = _samples(pipe, options, wish)
    if options.path in ("orbit", "camera-path") and len(objects) > 1:
        raise MNIFError(
            f"--path {options.path} shows one object and {len(objects)} are named; choose one"
            f"{' with --index' if options.latent_file is not None else ''}, or use --path interpolate."
        )
    if options.path == "interpolate" and len(objects) < 2:
        raise MNIFError("--path interpolate needs at least 2 objects; name them with --instance or --index.")
    return objects


def _samples(pipe: MNIFPipeline, options: RenderOptions, wish: Wish | None) -> list[NeuralObject]:
    from mnif_nerf.pipelines.integrity import Draw

    usual = {"walk": options.stops, "interpolate": _STOPS}.get(options.path, 1)
    wanted = options.index or tuple(range(usual))
    draw = Draw(options.seed, options.sampler, options.steps, options.temperature, wish=wish)
    latents = draw.latents(pipe, max(wanted) + 1, options.seed)
    return [draw.object(pipe, latents[index], index) for index in wanted]


def _row(objects: list[NeuralObject], index: int, path: Path) -> NeuralObject:
    if index >= len(objects):
        raise MNIFError(f"--index {index}: {path} holds {len(objects)} latents, numbered from 0.")
    return objects[index]


# --- the video ---------------------------------------------------------------------------------------------


def _video(pipe: MNIFPipeline, objects: list[NeuralObject], path: CameraPath | None, options: RenderOptions) -> Video:
    import torch

    from mnif_nerf.pipelines import videos

    count = _count(options, path, len(objects))
    if options.path == "walk":
        shown = videos.walk(pipe, torch.stack([item.latent for item in objects]), count)
    elif options.path == "interpolate":
        shown = videos.interpolation(pipe, objects, count, options.loop)
    else:
        shown = videos.standing(objects[0])
    if not pipe.model.kind.has_views:
        own = options.resolution or options.width
        return videos.Video(count, shown, None, own, 1 if own else _SIZE)
    width, height = _size(options, path)
    if path is not None:
        return videos.Video(count, shown, videos.along(path, width, height))
    turns = options.turns if options.turns is not None else float(options.path == "orbit")
    camera = pipe.model.camera
    intrinsics = videos.whole_view(width, height, camera["focal_over_width"])
    radius = camera["radius"] if options.radius is None else options.radius
    cameras = videos.turning(count, intrinsics, radius, options.elevation, options.azimuth, turns)
    return videos.Video(count, shown, cameras)


def _count(options: RenderOptions, path: CameraPath | None, stops: int) -> int:
    if path is not None:
        return len(path)
    if options.frames is not None:
        return options.frames
    parts = {"orbit": 1, "interpolate": stops - 1 + options.loop, "walk": stops}[options.path]
    seconds = _SECONDS[options.path] * parts if options.seconds is None else options.seconds
    count = max(1, round(seconds * _fps(options, path)))
    if count > MOST_FRAMES:
        raise MNIFError(
            f"{seconds:,.0f} seconds of {_fps(options, path)} frames are {count:,}; use at most {MOST_FRAMES:,}, "
            "by `seconds`, `frames` or `fps`."
        )
    return count


def _fps(options: RenderOptions, path: CameraPath | None) -> int:
    return options.fps or (24 if path is None else path.fps)


def _size(options: RenderOptions, path: CameraPath | None) -> tuple[int, int]:
    """Width and height in pixels; where one is given alone, a camera path's proportions stay."""
    own = (_SIZE, _SIZE) if path is None else (path.width, path.height)
    if options.resolution is not None:
        return options.resolution, options.resolution
    if path is not None and (options.width is None) != (options.height is None):
        if options.width is not None:
            return options.width, max(1, round(options.width * own[1] / own[0]))
        return max(1, round((options.height or 1) * own[0] / own[1])), options.height or 1
    return options.width or own[0], options.height or own[1]


def _write(
    video: Video, output: Path, fps: int, settings: dict[str, Any], on_frame: Callable[[], None]
) -> tuple[int, tuple[int, int]]:
    """Render and write; how many frames were made now, and their size in pixels."""
    from PIL import Image

    from mnif_nerf.export.frames import write_frames
    from mnif_nerf.export.video import write_video

    if not output.suffix:
        made = write_frames(output, video.count, video.frame, settings, on_frame)
        with Image.open(output / "frame_00000.png") as picture:
            return made, picture.size
    sizes = []

    def pictures() -> Iterator[Image.Image]:
        for index in range(video.count):
            picture = video.frame(index)
            sizes.append(picture.size)
            yield picture
            on_frame()

    write_video(pictures(), output, fps)
    return video.count, sizes[0]


def _settings(
    pipe: MNIFPipeline, objects: list[NeuralObject], path: CameraPath | None, options: RenderOptions
) -> dict[str, Any]:
    """Everything that the frames depend on, JSON-ready."""
    from mnif_nerf.pipelines.videos import fingerprint

    settings = {
        k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v
        for k, v in dataclasses.asdict(options).items()
        if k not in ("output", "device", "load_config")
    }
    return {**settings, "objects": [item.name for item in objects], "digest": fingerprint(pipe, objects, path)}


# --- telling ----------------------------------------------------------------------------------------------


def _name(options: RenderOptions, objects: list[NeuralObject]) -> str:
    asked = label_names(options.label, options.guidance)
    if options.path == "walk":
        return "-".join([f"walk-seed{options.seed}-{options.stops}", *asked])
    drawn = not options.instance and options.latent_file is None
    names = [file_name(item.name)[:24] for item in objects]
    parts = [options.path, *([f"seed{options.seed}"] if drawn else []), *asked, *names[:4]]
    if options.camera_path_filename is not None:
        parts.append(file_name(options.camera_path_filename.stem))
    return "-".join([*parts, *([f"and-{len(names) - 4}-more"] if len(names) > 4 else []), *(["loop"] * options.loop)])


@dataclass(frozen=True)
class _Written:
    """What was written where; `made` frames now, of `size` pixels."""

    output: Path
    fps: int
    made: int
    size: tuple[int, int]
    seconds: float


def _say(options: RenderOptions, video: Video, path: CameraPath | None, written: _Written) -> None:
    output, fps, made, size = written.output, written.fps, written.made, written.size
    if path is not None and path.cropped:
        print(f"note: the crop of {options.camera_path_filename} is left out; objects are shown whole, on white.")
    kept = f", {video.count - made} of them kept from before" if made < video.count else ""
    speed = f"; {1000 * written.seconds / made:.0f} ms a frame" if made else ""
    length = f", {video.count / fps:.1f} s at {fps} frames a second" if output.suffix else ""
    print(f"wrote {output}: {video.count} frames of {size[0]} x {size[1]} pixels{kept}{length}{speed}")
    command = f"mnif-render --load-config {quoted(options.load_config)}{label_words(options.label, options.guidance)}"
    if not output.suffix:
        print(f"next: the same as a video, with --output {output}.mp4")
    elif options.path == "walk":
        print(f"next: another walk, {command} --path walk --seed {options.seed + 1}")
    else:
        print(f"next: {command} --path {'walk' if options.path == 'interpolate' else 'interpolate --loop'}")


def entrypoint() -> None:
    """The console script."""
    import tyro

    run_command(lambda: main(tyro.cli(RenderOptions)), [RenderOptions])


if __name__ == "__main__":
    entrypoint()
