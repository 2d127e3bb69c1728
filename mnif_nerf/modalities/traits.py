"""Small tables that a modality hands out: one for each room that has to know more than a word of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnif_nerf.data.observations.observations import Kind

OBSERVATION_WORDS: dict[Kind, str] = {
    "views": "posed pictures",
    "photo": "a single picture of an object",
    "mesh": "a mesh",
    "voxels": "voxels",
    "cloud": "a point cloud",
    "image": "a plain picture",
}


@dataclass(frozen=True)
class Card:
    """What the card of a published model says.

    Attributes:
        tags: under which the hub lists the model.
        what: what the model generates, in the plural.
        usage: what the example calls on an object, without the leading dot.
    """

    tags: tuple[str, ...]
    what: str
    usage: str


@dataclass(frozen=True)
class Fitting:
    """What a model can be fitted to, and when two fits count as the same.

    Attributes:
        kinds: kinds of observations; none where nothing can be fitted.
        picture: what a single picture is to such a model.
        surface_only: whether the field was trained near surfaces only, so that points deep inside a solid say nothing.
        distances: whether the field says signed distances and colours, so that shapes are fitted to by those.
        view_weight, photo_weight: weights of the prior for posed pictures and for a single one (docs/fit.md).
        held_weight: the weight at least by which answers to a few pictures are held to their draws (docs/answers.md).
        agreement: the least likeness (`Modality.likeness`) of two objects that show the same thing.
        measure: what the likeness is, in words.
    """

    kinds: tuple[Kind, ...] = ()
    picture: Kind = "image"
    surface_only: bool = False
    distances: bool = False
    view_weight: float = 1e-4
    photo_weight: float = 3e-4
    held_weight: float = 0.0
    agreement: float = 20.0
    measure: str = "PSNR to the best, dB"


@dataclass(frozen=True)
class DemoData:
    """What the demo lets a user choose of its data.

    Attributes:
        folder: where the data is made.
        num_cars: training cars, where they are generated.
        train_views: pictures of each.
        resolution: pixels along an edge of a picture.
        seed: random seed of the data.
    """

    folder: Path
    num_cars: int | None = None
    train_views: int = 16
    resolution: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Demo:
    """The demo of a modality.

    Attributes:
        method: that is trained.
        data: name of the data folder.
        output: name of the output folder.
        title: heading of the page.
        nouns: what the page calls the instances.
        make_data: writes the data.
        num_samples: on the page.
        pixels: along an edge of a sample's picture; None leaves it to `mnif-sample`.
        frames: of the samples' turntable; None leaves it to `mnif-sample`.
        num_scored: training instances that are scored, and as many unseen ones where there are.
        across: how many samples along an edge share the place of one picture.
        steps: of training; 0 takes the method's own number.
        points: that a step takes of each instance; 0 takes the method's own number.
        trainer: the command that trains; importing nerfstudio takes ns-train a quarter of a minute.
    """

    method: str
    data: str
    output: str
    title: str
    nouns: str
    make_data: Callable[[DemoData], object]
    num_samples: int = 16
    pixels: int | None = None
    frames: int | None = None
    num_scored: int = 32
    across: int = 1
    steps: int = 0
    points: int = 0
    trainer: str = "mnif-train"


@dataclass(frozen=True)
class SweepScores:
    """How a sweep over model sizes is judged.

    Attributes:
        quality: key of a row, title, and digits in the table.
        reconstruction, generation: the keys that stand for either.
        generation_best: the best value of `generation`; a distance where it is 0.
        resolution: that the data is read at; None takes its own.
    """

    quality: tuple[tuple[str, str, int], ...]
    reconstruction: str
    generation: str
    generation_best: float = 0.0
    resolution: int | None = None

    @property
    def curves(self) -> tuple[str, ...]:
        """Keys that are drawn over the number of bases."""
        training = self.reconstruction.replace("unseen_", "train_")
        diversity = ("output_rank", "output_correlation", "coefficient_rank")
        return (training, self.reconstruction, self.generation, *diversity)

    def goodness(self, key: str, value: float) -> float:
        """`value` of a score, turned so that more is better."""
        return -abs(value - self.generation_best) if key == self.generation else value
