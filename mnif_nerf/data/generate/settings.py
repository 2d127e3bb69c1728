"""Settings of the data sets that this library makes; a wrong one is refused before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.generate.varied_copies import DEFAULT_VARIATIONS, check_copies
from mnif_nerf.data.geometry.raytrace import MAX_RESOLUTION
from mnif_nerf.errors import MNIFError
from mnif_nerf.limits import require_count

_MOST_CARS, _MOST_VIEWS = 1_000_000, 10_000


@dataclass(frozen=True)
class ViewCounts:
    """How many pictures each scene gets, and their size.

    Attributes:
        train_views: pictures of a training scene, 1 or more.
        heldout_views: further pictures of a training scene, kept for evaluation; may be 0.
        test_views: pictures of a scene of another split, 1 or more.
        resolution: height and width in pixels, at most `MAX_RESOLUTION`.

    Raises:
        MNIFError: a number out of range.
    """

    train_views: int = 50
    heldout_views: int = 8
    test_views: int = 24
    resolution: int = 128

    def __post_init__(self) -> None:
        _require_at_least(1, train_views=self.train_views, test_views=self.test_views, resolution=self.resolution)
        _require_at_least(0, heldout_views=self.heldout_views)
        if self.resolution > MAX_RESOLUTION:
            raise MNIFError(f"`resolution` {self.resolution}: must be {MAX_RESOLUTION} or less.")
        for name in ("train_views", "heldout_views", "test_views"):
            require_count(f"`{name}`", getattr(self, name), 0, _MOST_VIEWS)


@dataclass(frozen=True)
class CarCounts:
    """How many procedural cars each split gets.

    Attributes:
        num_train: training cars, 1 or more.
        num_val: validation cars; may be 0.
        num_test: test cars; may be 0.
        seed: seed of everything; the splits draw from disjoint streams.

    Raises:
        MNIFError: a number out of range.
    """

    num_train: int = 128
    num_val: int = 8
    num_test: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, num_train=self.num_train)
        _require_at_least(0, num_val=self.num_val, num_test=self.num_test, seed=self.seed)
        for name in ("num_train", "num_val", "num_test"):
            require_count(f"`{name}`", getattr(self, name), 0, _MOST_CARS)

    @property
    def total(self) -> int:
        """Cars of all splits."""
        return self.num_train + self.num_val + self.num_test


@dataclass(frozen=True)
class MeshFolderOptions:
    """How a folder of meshes is read and shared out between splits.

    Attributes:
        category: names the split folders; None takes the input folder's name.
        up: the files' up axis, see `mnif_nerf.data.readers.mesh_files.read_surface`.
        forward: the files' forward axis, likewise.
        val_fraction: share of the validation meshes in [0, 1); rounded, but at least one mesh where the share is
            above 0 and there are 4 meshes or more; no validation mesh below that.
        test_fraction: share of the test meshes, likewise.
        seed: seed of the split and the cameras.
        labels: a table of labels; None takes `labels.csv` in the folder, else the sub-folders that files lie in.
        copies: varied copies of each training mesh, 0 to 1,000; validation and test meshes get none.
        vary: what is varied in them, of `mnif_nerf.data.geometry.variations.VARIATIONS`.

    Raises:
        MNIFError: a number out of range.
    """

    category: str | None = None
    up: str = "auto"
    forward: str = "auto"
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    labels: Path | None = None
    copies: int = 0
    vary: tuple[str, ...] = DEFAULT_VARIATIONS

    def __post_init__(self) -> None:
        check_copies(self.copies, self.vary)
        _require_at_least(0, seed=self.seed)
        for name, share in (("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)):
            if not 0 <= share < 1:
                raise MNIFError(f"`{name}` {share}: must be at least 0 and below 1.")


def _require_at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise MNIFError(f"`{name}` {count}: must be {least} or more.")
