"""The pictures that mnif-sample writes: of every object, all of them on one sheet, and a film of them turning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnif_nerf.cli.generation_common import held_interrupts
from mnif_nerf.labels import label_text
from mnif_nerf.machine import in_threads
from mnif_nerf.names import shown
from mnif_nerf.progress import progress_bar

if TYPE_CHECKING:
    from mnif_nerf.cli.sample import SampleOptions
    from mnif_nerf.latents.ranks import Ranks
    from mnif_nerf.pipelines.generation import MNIFPipeline, NeuralObject

_MOST_IN_TURNTABLE = 16
_WIDE = 400  # pixels: a strip of views on the contact sheet that has room for a whole sentence under it


def write_pictures(
    pipe: MNIFPipeline,
    objects: list[NeuralObject],
    entries: list[dict[str, Any]],
    output: Path,
    options: SampleOptions,
    ranks: Ranks,
) -> None:
    """Every object from several sides, and all of them on one sheet: all ranks render, the first writes."""
    from mnif_nerf.export.pictures import contact_sheet, image_grid, save_png
    from mnif_nerf.objects.solid import azimuths_around, require_solid
    from mnif_nerf.objects.stored_views import orbit_images, takes_several

    assert options.views is not None
    assert options.resolution is not None
    size: tuple[int, int, float] = (options.views, options.resolution, options.elevation)
    sides = (options.elevation, azimuths_around(options.views), options.resolution)

    def rendered(own: Sequence[NeuralObject]) -> Iterator[list[Any]]:
        solids: list[Any] = [require_solid(item) for item in own]
        if solids and takes_several(solids[0]):
            every = orbit_images(solids, *sides)
        else:
            every = in_threads(lambda item: item.views(*size), solids)
        with progress_bar("rendering views", len(own)) as advance:
            for pictures in every:
                yield pictures
                advance()

    rows = ranks.spread(objects, rendered)
    if not ranks.is_first:
        return
    for entry, pictures in zip(entries, rows):
        for picture, name in zip(pictures, entry["views"]):
            save_png(picture, output / name)
    labels = [_label(entry, wide=options.views * options.resolution >= _WIDE) for entry in entries]
    strips = [image_grid(row, columns=len(row)) for row in rows]
    if pipe.model.kind.white_margins:
        strips = _without_margins(strips)
    strips = _marked(strips, entries)
    # Up to four objects stand below each other; more share a row, or the sheet gets too tall for a screen.
    across = 1 if len(strips) <= 4 else max(2, 8 // options.views)
    firsts = range(0, len(strips), across)
    sheet = contact_sheet(
        [strips[k : k + across] for k in firsts],
        captions=[labels[k : k + across] for k in firsts],
        title=_title(options, entries),
    )
    save_png(sheet, output / "contact_sheet.png")


def _without_margins(strips: list[Any], margin: int = 8) -> list[Any]:
    """Strips of one size without the rows above and below that are white in all of them, but for `margin` pixels."""
    import numpy as np

    used = np.any([np.asarray(strip).min(axis=(1, 2)) < 255 for strip in strips], axis=0).nonzero()[0]
    if len(used) == 0:
        return strips
    top, bottom = max(0, int(used[0]) - margin), min(strips[0].height, int(used[-1]) + 1 + margin)
    return [strip.crop((0, top, strip.width, bottom)) for strip in strips]


def _label(entry: dict[str, Any], wide: bool) -> str:
    if entry.get("label") and not wide:
        return f"{entry['name']}: {label_text(entry['label'])}"
    said = f" ({label_text(entry['label'])})" if entry.get("label") else ""
    if "distance" not in entry:
        return f"{entry['name']}{said}"
    if wide:
        return (
            f"{entry['name']}{said}: nearest {shown(entry['nearest_training_instance'], 40)} at {entry['distance']:.2f}"
        )
    return f"{entry['name']}: {entry['distance']:.2f} from {shown(entry['nearest_training_instance'], 40)}"


def write_images(
    objects: list[NeuralObject], entries: list[dict[str, Any]], output: Path, options: SampleOptions, ranks: Ranks
) -> None:
    """The pictures as they are, and all on one sheet, small ones enlarged: all ranks render, the first writes."""
    from mnif_nerf.export.pictures import contact_sheet, enlarge, grid_columns, save_png

    def rendered(own: Sequence[NeuralObject]) -> Iterator[Any]:
        with progress_bar("sampling pictures", len(own)) as advance:
            for item in own:
                yield item.own_picture(options.resolution)
                advance()

    pictures = ranks.spread(objects, rendered)
    if not ranks.is_first:
        return
    for item, entry, picture in zip(objects, entries, pictures):
        save_png(picture, output / entry["image"])
        written = item.save_values(output / "values" / item.name)
        if written:
            entry["values"] = [path.relative_to(output).as_posix() for path in written]
    shown, columns = _marked([enlarge(picture) for picture in pictures], entries), grid_columns(len(pictures))
    rows = [shown[k : k + columns] for k in range(0, len(shown), columns)]
    save_png(contact_sheet(rows, title=_title(options, entries)), output / "contact_sheet.png")


def _marked(pictures: list[Any], entries: list[dict[str, Any]]) -> list[Any]:
    """Pictures of a sheet, those of broken objects with a marked corner."""
    from mnif_nerf.export.pictures import with_corner

    return [with_corner(picture) if is_broken(entry) else picture for picture, entry in zip(pictures, entries)]


def is_broken(entry: dict[str, Any]) -> bool:
    """Whether an entry of samples.json tells of a broken object."""
    return bool(entry.get("integrity", {}).get("broken", False))


def _title(options: SampleOptions, entries: list[dict[str, Any]]) -> str:
    broken = sum(map(is_broken, entries))
    marked = f"; marked corner: broken ({broken})" if broken else ""
    if options.interpolate is not None:
        return f"from {options.interpolate[0]} to {options.interpolate[1]}{marked}"
    wanted = f", {', '.join(options.label)}" if options.label else ""
    guided = f", guidance {options.guidance:g}" if options.guidance is not None else ""
    return f"{options.num_samples} samples{wanted}{guided}, seed {options.seed}, {options.sampler}{marked}"


def write_turntable(objects: list[NeuralObject], path: Path, options: SampleOptions, ranks: Ranks) -> None:
    """The first objects, turning side by side: all ranks render, the first writes."""
    from mnif_nerf.export.pictures import image_grid
    from mnif_nerf.export.video import write_video
    from mnif_nerf.objects.solid import require_solid

    def turning(some: Sequence[NeuralObject]) -> list[Iterator[Any]]:
        solids = [require_solid(item) for item in some]
        return [item.orbit(options.frames, options.turntable_resolution, options.elevation) for item in solids]

    shown = objects[:_MOST_IN_TURNTABLE]
    if ranks.size == 1:
        orbits = turning(shown)
    else:  # whole turns, as it is not frames that are shared
        orbits = [iter(turn) for turn in ranks.spread(shown, lambda own: [list(turn) for turn in turning(own)])]
        if not ranks.is_first:
            return
    with progress_bar("turntable", options.frames) as advance, held_interrupts() as checkpoint:

        def frames() -> Any:
            for _ in range(options.frames):
                yield image_grid(list(in_threads(next, orbits)))
                advance()
                checkpoint()

        write_video(frames(), path, fps=18)
