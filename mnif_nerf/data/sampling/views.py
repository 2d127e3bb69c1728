"""Which pictures a run trains on, holds out and shows: a thin layer of indices over the packed stores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from mnif_nerf.data.readers.scene_reading import USUAL, SceneReading
from mnif_nerf.errors import MNIFError

if TYPE_CHECKING:
    from mnif_nerf.data.stores.scene_store import PackedStore

USUAL_HELDOUT_VIEWS = 2  # of each scene, where no split holds them
# SRN's name for other views of the training instances, and the alias some archives use.
HELD_OUT_SPLITS = ("train_val", "train_test")


@dataclass(frozen=True)
class ViewList:
    """Pictures of one store, each with the index of its scene as it travels in `scene_idx`.

    Attributes:
        store: where the pictures lie.
        views: `[V]` int64, positions in `store.images`.
        scenes: `[V]` int64, rows of the latents to render them with.
    """

    store: PackedStore
    views: np.ndarray
    scenes: np.ndarray

    def __len__(self) -> int:
        return len(self.views)

    def where(self, wanted: np.ndarray) -> ViewList:
        """Those of the pictures for which `wanted` `[V]` is true."""
        return ViewList(self.store, self.views[wanted], self.scenes[wanted])

    @property
    def owners(self) -> np.ndarray:
        """`[V]` scenes of the pictures as `store` counts them."""
        return np.asarray(np.searchsorted(self.store.view_offsets, self.views, side="right") - 1)

    @property
    def intrinsics(self) -> np.ndarray:
        """`[V, 3]` focal, cx, cy in pixels."""
        return self.store.intrinsics[self.views]

    @property
    def names(self) -> list[str]:
        """`[V]` "scene/view" of every picture."""
        within = self.views - self.store.view_offsets[self.owners]
        return [f"{self.store.names[s]}/{view:06d}" for s, view in zip(self.owners, within)]


def evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """`wanted` indices spread evenly over `range(count)`, fewer where `count` is smaller."""
    wanted = max(0, min(wanted, count))
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * count // (2 * max(1, wanted))


def heldout_positions(num_views: int, wanted: int) -> np.ndarray:
    """Views of a training scene held out where no split of such views exists: evenly spaced, never all."""
    return evenly_spaced(num_views, max(0, min(wanted, num_views - 1)))


def choose_scene(names: tuple[str, ...], wanted: str = "") -> int:
    """Index of the scene to show: `wanted`, else the environment's MNIF_SCENE, else the first.

    Args:
        names: names of the scenes.
        wanted: a scene's name or index.

    Raises:
        MNIFError: no scene has this name or index.
    """
    source = "scene"
    if not wanted:
        wanted, source = os.environ.get("MNIF_SCENE", ""), "MNIF_SCENE"
    if not wanted:
        return 0
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    raise MNIFError(
        f"{source}={wanted}: no such scene; give an index from 0 to {len(names) - 1} or a name such as {names[0]}."
    )


class TrainingViews:
    """The training split, and the views of its scenes that are never trained on.

    Those are the split `train_val` where the data set has one; otherwise `heldout_per_scene` evenly spaced
    training views of every scene (at least one view always stays for training). Stores open on first use.

    Args:
        root: data folder.
        heldout_per_scene: how many views to hold out where there is no held-out split.
        reading: how the cameras' files are read.

    Raises:
        MNIFError: the folder is missing, or holds no readable training split.
    """

    def __init__(self, root: Path, heldout_per_scene: int = USUAL_HELDOUT_VIEWS, reading: SceneReading = USUAL) -> None:
        from mnif_nerf.data.readers.srn_layout import locate

        self.root, self.reading = Path(root), reading
        splits = locate(self.root).splits
        self.has_heldout_split = any(name in splits for name in HELD_OUT_SPLITS)
        self.heldout_per_scene = heldout_per_scene

    @cached_property
    def train(self) -> PackedStore:
        """The training split."""
        from mnif_nerf.data.stores.scene_store import open_store

        return open_store(self.root, "train", reading=self.reading)

    @cached_property
    def heldout_store(self) -> PackedStore:
        """Where the held-out pictures lie: the held-out split, or the training split itself."""
        from mnif_nerf.data.stores.scene_store import open_store

        if not self.has_heldout_split:
            return self.train
        return open_store(self.root, "train_val", reading=self.reading)

    @cached_property
    def _heldout_position(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.heldout_store.names)}

    @cached_property
    def trained(self) -> np.ndarray:
        """`[V]` bool over the training store: whether a view is trained on."""
        mask = np.ones(self.train.num_views, dtype=bool)
        if not self.has_heldout_split:
            offsets = np.asarray(self.train.view_offsets)
            counts = np.diff(offsets)
            for count in np.unique(counts).tolist():  # scenes of as many views hold out the same ones
                firsts = offsets[:-1][counts == count]
                mask[firsts[:, None] + heldout_positions(count, self.heldout_per_scene)] = False
        return mask

    def training(self, scene: int) -> ViewList:
        """The views of a scene that are trained on."""
        first, last = self.train.view_range(scene)
        views = np.arange(first, last, dtype=np.int64)
        if not self.has_heldout_split:
            views = np.setdiff1d(views, self.heldout(scene).views)
        return ViewList(self.train, views, np.full(len(views), scene, dtype=np.int64))

    def heldout(self, scene: int) -> ViewList:
        """The views of a scene that are never trained on; may be empty."""
        if self.has_heldout_split:
            position = self._heldout_position.get(self.train.names[scene])
            first, last = (0, 0) if position is None else self.heldout_store.view_range(position)
            views = np.arange(first, last, dtype=np.int64)
        else:
            first, last = self.train.view_range(scene)
            views = first + heldout_positions(last - first, self.heldout_per_scene)
        return ViewList(self.heldout_store, views, np.full(len(views), scene, dtype=np.int64))

    def evaluation(self, num_scenes: int, views_per_scene: int) -> ViewList:
        """Held-out views for evaluation: few scenes and few views of each, spread evenly, scene-major."""
        parts = []
        for scene in evenly_spaced(self.train.num_scenes, num_scenes):
            held = self.heldout(int(scene)).views
            parts.append((int(scene), held[evenly_spaced(len(held), views_per_scene)]))
        return _join(self.heldout_store, parts)


@dataclass(frozen=True)
class UnseenViews:
    """Scenes never trained on: the views their latents are fitted to, and the views that are scored.

    Attributes:
        names: `[K]` names of the chosen scenes; `scene_idx` of the views below counts along this list.
        conditioning: views to fit to.
        scored: views to score, none of them in `conditioning`.
    """

    names: list[str]
    conditioning: ViewList
    scored: ViewList


def conditioning_views(num_views: int, wanted: tuple[int, ...]) -> np.ndarray:
    """Views of one scene to fit a latent to: `wanted` where all exist, else as many evenly spaced ones.

    At least one view is left to score, if the scene has more than one.
    """
    if wanted and min(wanted) >= 0 and max(wanted) < num_views and len(set(wanted)) < num_views:
        return np.unique(np.asarray(wanted, dtype=np.int64))
    return evenly_spaced(num_views, min(max(1, len(wanted)), max(1, num_views - 1)))


def open_unseen(
    root: Path,
    split: str,
    num_scenes: int,
    views_per_scene: int,
    conditioning: tuple[int, ...],
    reading: SceneReading = USUAL,
) -> UnseenViews:
    """Open the split of unseen scenes and choose evenly spread scenes and views.

    Args:
        root: data folder.
        split: "val" or "test"; the other one is taken where it is missing.
        num_scenes, views_per_scene: at most this many are scored.
        conditioning: view numbers within a scene (SRN's protocol: 64 and 104).
        reading: how the cameras' files are read.

    Raises:
        MNIFError: the data set has no unseen split, or its scenes have a single view.
    """
    from mnif_nerf.data.readers.srn_layout import list_splits
    from mnif_nerf.data.stores.scene_store import open_store

    present = list_splits(Path(root))
    found = next((name for name in (split, "test", "val") if name in present), None)
    if found is None:
        raise MNIFError(f"{root}: no split of unseen scenes (val or test); evaluate with `eval_mode` heldout-views.")
    store = open_store(Path(root), found, reading=reading)
    chosen = evenly_spaced(store.num_scenes, num_scenes)
    fitted, scored = [], []
    for k, scene in enumerate(chosen):
        first, last = store.view_range(int(scene))
        given = conditioning_views(last - first, conditioning)
        rest = np.setdiff1d(np.arange(last - first), given)
        fitted.append((k, first + given))
        scored.append((k, first + rest[evenly_spaced(len(rest), views_per_scene)]))
    unseen = UnseenViews([store.names[int(s)] for s in chosen], _join(store, fitted), _join(store, scored))
    if len(unseen.scored) == 0:
        raise MNIFError(f"{root}: scenes of split {found} have a single view; to fit and to score takes two or more.")
    return unseen


def pictures_of(views: ViewList, num_scenes: int) -> SimpleNamespace:
    """A store in memory that holds these pictures alone, for a ray sampler; without hulls, so any pixel is
    drawn.

    Args:
        views: scene-major, their `scenes` counting from 0.
        num_scenes: K.
    """
    store = views.store
    counts = np.bincount(views.scenes, minlength=num_scenes)
    first = np.asarray(np.searchsorted(views.scenes, np.arange(num_scenes)))
    return SimpleNamespace(
        names=tuple(views.names[i].rsplit("/", 1)[0] for i in first),
        num_scenes=num_scenes,
        num_views=len(views),
        view_offsets=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        poses=np.array(store.poses[views.views]),
        intrinsics=np.array(views.intrinsics),
        height=store.height,
        width=store.width,
        images=np.array(store.images[views.views]),
        silhouettes=None if store.silhouettes is None else np.array(store.silhouettes[views.views]),
        touching=None,
        hulls=None,
        hull_resolution=store.hull_resolution,
        half_extent=store.half_extent,
        white_background=store.white_background,
    )


def _join(store: PackedStore, parts: list[tuple[int, np.ndarray]]) -> ViewList:
    views = np.concatenate([views for _, views in parts] or [np.zeros(0, dtype=np.int64)])
    scenes = np.concatenate([np.full(len(views), s, dtype=np.int64) for s, views in parts] or [views])
    return ViewList(store, views.astype(np.int64), scenes.astype(np.int64))
