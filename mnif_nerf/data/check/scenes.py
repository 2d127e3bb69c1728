"""`mnif-data check`: what a data set holds, and everything that is wrong with it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.hull import carve_scene
from mnif_nerf.data.readers.images import Background, inspect_background, read_image, silhouette
from mnif_nerf.data.readers.srn import SplitIndex, make_index, read_scene
from mnif_nerf.data.readers.srn_layout import Layout, locate, scene_folders
from mnif_nerf.data.stores.packing import ordered_results
from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import tracked
from mnif_nerf.scene_box import HALF_EXTENT


@dataclass
class SplitSummary:
    """What `check` found in one split; `index` is None where nothing of it can be read."""

    split: str
    folder: Path
    index: SplitIndex | None = None
    background: Background | None = None
    outside: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_scenes(root: Path | str, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read every picture of a data set in the SRN layout.

    Returns:
        lines naming splits, scenes, views per scene, picture size, background, camera distances, a near and far plane
        and whether the objects fit the unit cube; and the problems found, each by its path.

    Raises:
        MNIFError: the folder is missing or of another layout, or no split of it holds anything readable.
    """
    layout = locate(root)
    summaries = [summarise(layout, split, progress) for split in layout.splits]
    problems = [problem for summary in summaries for problem in summary.problems]
    if all(summary.index is None for summary in summaries):
        raise MNIFError(problems[0])
    lines = [f"{layout.root}: {layout.category}, {len(summaries)} split(s)"]
    for summary in summaries:
        lines += _describe(summary)
    return lines, problems


def summarise(layout: Layout, split: str, progress: bool = False) -> SplitSummary:
    """Read one split without stopping at faults."""
    summary = SplitSummary(split, layout.splits[split])
    try:
        folders = scene_folders(summary.folder)
    except MNIFError as error:
        summary.problems.append(str(error))
        return summary
    found = [scene for folder in folders if (scene := read_scene(folder, summary.problems)) is not None]
    if not found:
        return summary
    summary.index = make_index(layout, split, summary.folder, found, summary.problems)
    _read_pictures(summary, progress)
    return summary


def _read_pictures(summary: SplitSummary, progress: bool) -> None:
    """Decode every picture, and carve up to 32 scenes to see whether masks, poses and the cube agree."""
    index = summary.index
    assert index is not None
    with contextlib.suppress(MNIFError):  # an unreadable picture is named below, with all others
        summary.background = inspect_background(index.image_paths, index.height, index.width)
    carved = set(np.linspace(0, index.num_scenes - 1, min(32, index.num_scenes)).round().astype(int))
    jobs = (
        (_read_scene_pictures, index, s, summary.background if s in carved else None) for s in range(index.num_scenes)
    )
    for scene, (faults, state) in enumerate(
        tracked(ordered_results(jobs), f"reading {index.split}", index.num_scenes, progress)
    ):
        summary.problems += faults
        if "outside" in state:
            summary.outside.append(index.names[scene])
        if "unclear" in state:
            summary.unclear.append(index.names[scene])


def _read_scene_pictures(
    index: SplitIndex, scene: int, background: Background | None
) -> tuple[list[str], tuple[str, ...]]:
    first, last = (int(v) for v in index.view_offsets[scene : scene + 2])
    faults: list[str] = []
    masks = []
    for path in index.image_paths[first:last]:
        try:
            pixels = read_image(path, index.height, index.width)
        except MNIFError as error:
            faults.append(str(error))
            continue
        if background is not None and background.white:
            masks.append(silhouette(pixels, background))
    if faults or not masks:
        return faults, ()
    hull = carve_scene(np.stack(masks), index.poses[first:last], index.intrinsics[scene])
    return [], (*(["unclear"] if hull.state != "strict" else []), *([] if hull.fits else ["outside"]))


def _describe(summary: SplitSummary) -> list[str]:
    index = summary.index
    if index is None:
        return [f"{summary.split}: {summary.folder.name}, nothing readable"]
    counts = np.diff(index.view_offsets)
    views = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    radius = np.linalg.norm(index.poses[:, :3, 3], axis=1)
    near, far = max(radius.min() - HALF_EXTENT, 0.01), radius.max() + HALF_EXTENT
    focal = index.intrinsics[:, 0] / index.width
    lines = [
        f"{summary.split}: {index.num_scenes} scenes, {views} views each ({index.num_views} in all),"
        f" {index.width}x{index.height} pixels",
        f"  cameras: {radius.min():.3f} to {radius.max():.3f} from the origin, focal length"
        f" {focal.min():.3f} to {focal.max():.3f} image widths; suggested near {near:.2f}, far {far:.2f}",
    ]
    if summary.background is None:
        lines.append("  background: unknown, pictures are missing or unreadable")
    elif not summary.background.white:
        lines.append("  background: not white, so no silhouettes and no carving; whether objects fit is unknown")
    else:
        by = "alpha" if summary.background.alpha else "difference from white"
        lines.append(f"  background: white, silhouettes by {by}")
        outside = f"no: {', '.join(summary.outside[:5])}; scale them down" if summary.outside else "yes"
        lines.append(f"  objects fit the cube [-{HALF_EXTENT}, {HALF_EXTENT}]^3: {outside}")
        if summary.unclear:
            lines.append(f"  silhouettes and poses contradict each other in: {', '.join(summary.unclear[:5])}")
    return lines
