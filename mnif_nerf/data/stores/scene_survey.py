"""What the pictures of a split say about its cameras: blank instances, contradictions, objects beyond the scene box.

`mnif-data check` and packing ask the same questions here, so that training refuses what the check names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mnif_nerf.data.geometry.hull import HALF_EXTENT, SceneHull, SeenObject, carve_scene, seen_object
from mnif_nerf.data.readers.images import Background, read_image, silhouette, white_border
from mnif_nerf.data.readers.scene_reading import Placement, at_one_point, looked_at, other_readings
from mnif_nerf.data.readers.srn import SplitIndex
from mnif_nerf.errors import MNIFError
from mnif_nerf.names import listed

MOST_SURVEYED = 32
"""Scenes of a split that are carved to find out whether pictures and cameras agree."""
REFUSED_FROM = 0.5
"""Share of these from which training refuses: single ones are named, and trained on as far as they go."""
_MOST_VIEWS = 24
_FILLED = 0.98  # of the scene box, by the largest object once the data set is scaled


@dataclass
class Survey:
    """What is wrong with the pictures of a split, by the names of its scenes.

    Attributes:
        folder: of the split.
        seen: how many scenes were judged.
        blank: show nothing in any picture.
        part_blank: show nothing in some pictures: name and count of them.
        contradicting: no object explains the silhouettes.
        loose: a few views contradict the others.
        outside: the object reaches beyond the scene box.
        repair: option that makes the contradicting ones agree, as a sentence has it; "" where none does.
    """

    folder: Path
    seen: int = 0
    blank: list[str] = field(default_factory=list)
    part_blank: list[tuple[str, int, int]] = field(default_factory=list)
    contradicting: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    repair: str = ""

    def note_hull(self, name: str, hull: SceneHull) -> None:
        """Sort a carved scene in."""
        self.seen += 1
        if hull.state == "full":
            self.contradicting.append(name)
        elif not hull.fits:
            self.outside.append(name)
        elif hull.state == "loose":
            self.loose.append(name)

    def contradiction(self) -> str | None:
        """The sentence for scenes whose silhouettes contradict their cameras."""
        if not self.contradicting:
            return None
        cause = self.repair or (
            "check that poses are camera-to-world in the OpenCV convention, that the intrinsics are those of these "
            "pictures, and that nothing but the object differs from the background (no shadows); where they are right, "
            "`poses` c2w trains on them without hulls"
        )
        return (
            f"{self.folder}: silhouettes and poses contradict each other in {len(self.contradicting)} of {self.seen} "
            f"scenes ({listed(self.contradicting)}); {cause}."
        )

    def beyond(self) -> str | None:
        """The sentence for objects that reach beyond the scene box."""
        if not self.outside:
            return None
        return (
            f"{self.folder}: objects reach beyond the cube of half size {HALF_EXTENT} in {len(self.outside)} of "
            f"{self.seen} scenes ({listed(self.outside)}) and would be cut off there; `scale` auto moves and scales "
            "the data set so that all fit."
        )

    def blanks(self) -> str | None:
        """The sentence for blank instances."""
        if not self.blank:
            return None
        return f"{self.folder}: blank in all their pictures, and left out: {listed(self.blank)}."

    def problems(self) -> list[str]:
        """Everything, a sentence each."""
        found = [self.contradiction(), self.beyond(), self.blanks()]
        for name, count, views in self.part_blank:
            found.append(
                f"{self.folder / name}: {count} of {views} pictures show nothing; render them again, or remove them "
                "with their poses."
            )
        if self.loose:
            found.append(
                f"{self.folder}: a few views contradict the others in {listed(self.loose)}; look at their poses and "
                "backgrounds."
            )
        return [sentence for sentence in found if sentence]

    def refuse(self, kind_is_given: bool = False) -> None:
        """Stop where training would learn nothing from so wrong data.

        Args:
            kind_is_given: whether the user has said what the pose files are: contradictions that no other reading of
                them mends are then the masks' fault, and only hulls are lost by them.

        Raises:
            MNIFError: half of the scenes or more contradict their cameras, or reach beyond the scene box.
        """
        excused = kind_is_given and not self.repair
        contradicting = [] if excused else self.contradicting
        for names, sentence in ((contradicting, self.contradiction()), (self.outside, self.beyond())):
            if names and sentence and len(names) >= REFUSED_FROM * self.seen:
                raise MNIFError(sentence)


@dataclass(frozen=True)
class ScenePictures:
    """Pictures of one scene: uint8 [H, W, 3 or 4] each, and their silhouettes bool [V, H, W], None without."""

    pixels: list[np.ndarray]
    masks: np.ndarray | None
    blank_views: int

    @property
    def blank(self) -> bool:
        """Whether nothing is seen in any of them."""
        return self.blank_views == len(self.pixels)


def read_pictures(index: SplitIndex, scene: int, background: Background) -> ScenePictures:
    """Decode all pictures of a scene.

    Raises:
        MNIFError: one is unreadable, of another size, or has no alpha where the others have it and no white background.
    """
    first, last = (int(v) for v in index.view_offsets[scene : scene + 2])
    paths = index.image_paths[first:last]
    pixels = [read_image(path, index.height, index.width) for path in paths]
    if not background.white:
        return ScenePictures(pixels, None, sum(_is_plain(picture, background.threshold) for picture in pixels))
    if background.alpha:
        for path, picture in zip(paths, pixels):
            if picture.shape[-1] == 3 and not white_border(picture, background.threshold):
                raise MNIFError(
                    f"{path}: has no alpha while other pictures have, and its background is not white; render it like "
                    "the others, or remove its scene."
                )
    masks = np.stack([silhouette(picture, background) for picture in pixels])
    for mask, picture in zip(masks, pixels):
        if mask.all() and _is_plain(picture, background.threshold):  # black, or any other colour, all over
            mask[...] = False
    return ScenePictures(pixels, masks, int((~masks.any(axis=(1, 2))).sum()))


def carve_pictures(index: SplitIndex, scene: int, pictures: ScenePictures) -> SceneHull | None:
    """The hull of a scene, from the pictures that show something; None where none does, or without silhouettes."""
    if pictures.masks is None or pictures.blank:
        return None
    first, last = (int(v) for v in index.view_offsets[scene : scene + 2])
    shown = pictures.masks.any(axis=(1, 2))
    hull = carve_scene(pictures.masks[shown], index.poses[first:last][shown], index.intrinsics[first:last][shown])
    if shown.all():
        return hull
    touching = np.zeros_like(pictures.masks)
    touching[shown] = hull.touching
    return replace(hull, touching=touching)


def survey_split(index: SplitIndex, background: Background) -> Survey:
    """Look at up to `MOST_SURVEYED` scenes, spread over the split.

    Raises:
        MNIFError: see `read_pictures`.
    """
    survey = Survey(index.folder)
    for scene in spread(index.num_scenes):
        pictures = read_pictures(index, scene, background)
        hull = carve_pictures(index, scene, pictures)
        if hull is not None:
            survey.note_hull(index.names[scene], hull)
    find_repair(survey, index, background)
    return survey


def find_repair(survey: Survey, index: SplitIndex, background: Background) -> None:
    """Set `survey.repair`: read the cameras of a few contradicting scenes otherwise, and see whether one object then
    explains their silhouettes."""
    if not survey.contradicting or not background.white:
        return
    chosen = [index.names.index(name) for name in survey.contradicting[:2]]
    scenes = []
    for scene in chosen:
        first, last = (int(v) for v in index.view_offsets[scene : scene + 2])
        masks = read_pictures(index, scene, background).masks
        scenes.append((masks, index.poses[first:last], index.intrinsics[first:last]))
    kinds = [kind for kind, _ in other_readings(scenes[0][1], index.kind)]
    for kind in kinds:
        found = [_seen(masks, dict(other_readings(poses, index.kind))[kind], lens) for masks, poses, lens in scenes]
        if all(one is not None and one.agrees for one in found):
            where = {"c2w": "camera-to-world", "w2c": "world-to-camera"}[kind[:3]]
            axes = " with OpenGL's axes" if kind.endswith("-gl") else ""
            survey.repair = f"they agree if the matrices are {where}{axes}: `poses` {kind} reads them so"
            return
    found = [_seen(masks, poses, lens) for masks, poses, lens in scenes]
    if all(one is not None and one.agrees for one in found):
        survey.repair = "they agree on objects elsewhere or of another size: `scale` auto moves and scales the data set"


def find_placement(index: SplitIndex, background: Background) -> Placement:
    """Where to move a data set, and how to scale it, so that the objects fill the scene box.

    Raises:
        MNIFError: the background is not white, or no scene's pictures agree on an object.
    """
    if not background.white:
        raise MNIFError(
            f"{index.folder}: `scale` auto needs pictures on white or with alpha, to see how large the objects are; "
            "give a number instead."
        )
    boxes = []
    for scene in spread(index.num_scenes):
        pictures = read_pictures(index, scene, background)
        first, last = (int(v) for v in index.view_offsets[scene : scene + 2])
        if pictures.blank or pictures.masks is None:
            continue
        found = _seen(pictures.masks, index.poses[first:last], index.intrinsics[first:last])
        if found is not None and found.agrees:
            boxes.append((found.low, found.high))
    if not boxes:
        raise MNIFError(
            f"{index.folder}: `scale` auto finds no object that the pictures of a scene agree on; check the poses, or "
            "give a number."
        )
    low, high = np.min([low for low, _ in boxes], axis=0), np.max([high for _, high in boxes], axis=0)
    half = float((high - low).max()) / 2
    centre = (low + high) / 2
    return Placement((float(centre[0]), float(centre[1]), float(centre[2])), _FILLED * HALF_EXTENT / half)


def spread(count: int, most: int = MOST_SURVEYED) -> list[int]:
    """Up to `most` indices spread over `range(count)`."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count)).round()})


def _seen(masks: np.ndarray | None, poses: np.ndarray, intrinsics: np.ndarray) -> SeenObject | None:
    """`seen_object` of up to `_MOST_VIEWS` pictures that show something; None where cameras cannot tell."""
    assert masks is not None
    shown = np.flatnonzero(masks.any(axis=(1, 2)))
    shown = shown[spread(len(shown), _MOST_VIEWS)] if len(shown) else shown
    if len(shown) < 2 or at_one_point(poses):
        return None
    chosen = poses[shown]
    return seen_object(masks[shown], chosen, intrinsics[shown], looked_at(chosen))


def _is_plain(picture: np.ndarray, threshold: int) -> bool:
    """Whether a picture is of one colour all over."""
    flat = picture.reshape(-1, picture.shape[-1])
    return bool((flat.max(0).astype(int) - flat.min(0) <= threshold).all())
