"""`mnif-data check`: what a data set holds, and everything that is wrong with it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.hull import SceneHull
from mnif_nerf.data.readers.images import Background, inspect_background, read_image
from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.data.readers.srn import SplitIndex, make_index, read_scene
from mnif_nerf.data.readers.srn_layout import Layout, folders_beside, locate, scene_folders, strange_folders
from mnif_nerf.data.stores.packing import ordered_results
from mnif_nerf.data.stores.scene_store import scene_placement
from mnif_nerf.data.stores.scene_survey import ScenePictures, Survey, carve_pictures, find_repair, read_pictures, spread
from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import tracked
from mnif_nerf.scene_box import HALF_EXTENT


@dataclass
class SplitSummary:
    """What `check` found in one split; `index` is None where nothing of it can be read."""

    split: str
    folder: Path
    survey: Survey
    index: SplitIndex | None = None
    background: Background | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_scenes(root: Path | str, progress: bool = True, reading: SceneReading = USUAL) -> tuple[list[str], list[str]]:
    """Read every picture of a data set in the SRN layout.

    Args:
        root: the data set.
        progress: whether to show bars.
        reading: how the files of cameras are read.

    Returns:
        lines naming splits, scenes, views per scene, picture size, background, camera distances, a near and far plane
        and whether the objects fit the unit cube; and the problems found, each by its path.

    Raises:
        MNIFError: the folder is missing or of another layout, or no split of it holds anything readable.
    """
    layout = locate(root)
    summaries = [summarise(layout, split, progress, reading) for split in layout.splits]
    problems = [problem for summary in summaries for problem in summary.problems]
    if all(summary.index is None for summary in summaries):
        raise MNIFError(problems[0])
    lines = [f"{layout.root}: {layout.category}, {len(summaries)} split(s)"]
    beside = folders_beside(layout)
    if beside:
        names = ", ".join(folder.name for folder in beside[:5])
        lines.append(f"  hold scenes but are called as no split is, and are left out: {names}")
    for summary in summaries:
        lines += _describe(summary)
    return lines, problems


def summarise(layout: Layout, split: str, progress: bool = False, reading: SceneReading = USUAL) -> SplitSummary:
    """Read one split without stopping at faults."""
    folder = layout.splits[split]
    summary = SplitSummary(split, folder, Survey(folder))
    try:
        folders = scene_folders(folder)
    except MNIFError as error:
        summary.problems.append(str(error))
        return summary
    strange = strange_folders(folder)
    if strange:
        summary.notes.append(f"  no scenes, and left out: {', '.join(path.name for path in strange[:5])}")
    found = [one for scene in folders if (one := read_scene(scene, summary.problems, reading)) is not None]
    if not found:
        return summary
    faults: list[str] = []
    automatic = reading.scale == "auto"
    summary.index = make_index(layout, split, folder, found, faults, placed=automatic)
    summary.problems += faults
    if automatic:
        try:
            placement = scene_placement(layout, reading)
        except MNIFError as error:
            summary.problems.append(str(error))
        else:
            summary.index = replace(summary.index, poses=placement.apply(summary.index.poses))
    _read_pictures(summary, progress, carve=not faults)
    return summary


def _read_pictures(summary: SplitSummary, progress: bool, carve: bool) -> None:
    """Decode every picture, and carve up to 32 scenes to see whether masks, poses and the cube agree.

    Args:
        summary: what is known of the split.
        progress: whether to show a bar.
        carve: whether the cameras are sound enough for that.
    """
    index, survey = summary.index, summary.survey
    assert index is not None
    with contextlib.suppress(MNIFError):  # an unreadable picture is named below, with all others
        summary.background = inspect_background(index.image_paths, index.height, index.width)
    carved = set(spread(index.num_scenes)) if carve else set()
    jobs = ((_read_scene_pictures, index, s, summary.background, s in carved) for s in range(index.num_scenes))
    for scene, (faults, pictures, hull) in enumerate(
        tracked(ordered_results(jobs), f"reading {index.split}", index.num_scenes, progress)
    ):
        summary.problems += faults
        if pictures is not None and pictures.blank:
            survey.blank.append(index.names[scene])
        elif pictures is not None and pictures.blank_views:
            survey.part_blank.append((index.names[scene], pictures.blank_views, len(pictures.pixels)))
        if hull is not None:
            survey.note_hull(index.names[scene], hull)
    if summary.background is not None:
        with contextlib.suppress(MNIFError):  # named above
            find_repair(survey, index, summary.background)
    summary.problems += survey.problems()


def _read_scene_pictures(
    index: SplitIndex, scene: int, background: Background | None, carve: bool
) -> tuple[list[str], ScenePictures | None, SceneHull | None]:
    """What is wrong with the pictures of a scene, what they show, and the hull where it is wanted."""
    first, last = (int(v) for v in index.view_offsets[scene : scene + 2])
    faults: list[str] = []
    for path in index.image_paths[first:last]:
        try:
            read_image(path, index.height, index.width)
        except MNIFError as error:
            faults.append(str(error))
    if faults or background is None:
        return faults, None, None
    try:
        pictures = read_pictures(index, scene, background)
    except MNIFError as error:
        return [str(error)], None, None
    hull = carve_pictures(index, scene, pictures) if carve else None
    return [], replace(pictures, masks=None), hull


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
        survey = summary.survey
        fit = "no" if survey.outside else "unknown" if survey.contradicting or not survey.seen else "yes"
        lines.append(f"  objects fit the cube [-{HALF_EXTENT}, {HALF_EXTENT}]^3: {fit}")
    return lines + summary.notes
