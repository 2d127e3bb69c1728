"""Which objects of a model are broken, judged by what the model makes of its own training instances.

    pipe = MNIFPipeline.from_pretrained("outputs/.../model")
    yardstick = yardstick_of(pipe)
    for found in integrity_of(pipe(16, seed=0), yardstick):
        print(found.score, found.broken, found.reason)

The yardstick is taken from reconstructions, so it needs no data. It is kept in the model folder as `integrity.json`,
with a digest of the field and the latents that it belongs to.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnif_nerf import modalities
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json, write_json
from mnif_nerf.labels import Wish
from mnif_nerf.latents.ranks import ONE, Ranks
from mnif_nerf.latents.rarity import TYPICAL
from mnif_nerf.limits import is_number
from mnif_nerf.machine import in_threads
from mnif_nerf.metrics.integrity import Judgement, Yardstick
from mnif_nerf.objects.base import NeuralObject
from mnif_nerf.pipelines.decoder import Decoder
from mnif_nerf.random import stream

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Opens a progress bar of a title and a length; entering it gives a function that advances it by one."""

FILE = "integrity.json"
MOST_INSTANCES = 128
"""Training instances that a yardstick is taken from, at most."""
FEWEST_INSTANCES = 4
REDRAWS = 3
"""How often the commands draw a broken sample again where nothing else is asked for."""
VERSION = 1  # of what is measured, and how


def measure(item: NeuralObject) -> dict[str, float]:
    """What is measured of an object, by name; nothing of an empty one. Of a solid it takes 0.2 to 0.4 s."""
    return modalities.get(item.modality).measure(item)


def integrity_of(
    objects: Iterable[NeuralObject], yardstick: Yardstick, advance: Callable[[], None] | None = None
) -> list[Judgement]:
    """How far each of some objects lies outside the range of a yardstick.

    Args:
        objects: of one modality.
        yardstick: of the model that they come from (`yardstick_of`), or of other objects (`yardstick_from`).
        advance: called after each.
    """
    found = []
    for features in in_threads(measure, objects):
        found.append(yardstick.judge(features))
        if advance is not None:
            advance()
    return found


def yardstick_from(objects: Iterable[NeuralObject]) -> Yardstick:
    """The yardstick of any objects of one modality that are known to be whole.

    Raises:
        MNIFError: there is none, or all are empty.
    """
    listed = list(objects)
    if not listed:
        raise MNIFError("a yardstick needs objects; give those of training instances.")
    features = modalities.get(listed[0].modality).integrity_features
    return Yardstick.of(features, [measure(item) for item in listed])


def yardstick_of(pipe: Decoder, folder: Path | str | None = None, stage: Stage | None = None) -> Yardstick:
    """The yardstick of a model: read from its folder, else measured of its training instances and kept there.

    Args:
        pipe: the model.
        folder: its folder; None keeps nothing. One that cannot be written is left as it is.
        stage: makes the progress bar of the measuring, from a title and a length.

    Raises:
        MNIFError: a model with too few training instances, or whose instances are all empty.
    """
    if len(pipe.names) < FEWEST_INSTANCES:
        raise MNIFError(
            f"this model has {len(pipe.names)} training instances, and a range of what is whole needs "
            f"{FEWEST_INSTANCES}; its objects cannot be judged."
        )
    features, digest = pipe.kind.integrity_features, _digest(pipe)
    path = None if folder is None else Path(folder) / FILE
    stored = None if path is None else _stored(path, digest)
    if stored is not None and set(stored["ranges"]) == {feature.name for feature in features}:
        ranges = {name: (float(low), float(high)) for name, (low, high) in stored["ranges"].items()}
        return Yardstick(features, ranges, int(stored["count"]))
    rows = torch.linspace(0, len(pipe.names) - 1, min(MOST_INSTANCES, len(pipe.names))).round().long().tolist()
    measured = []
    with _bar(stage, "yardstick of integrity, kept with the model", len(rows)) as advance:
        for found in in_threads(lambda row: measure(pipe.instance(row)), rows):
            measured.append(found)
            advance()
    yardstick = Yardstick.of(features, measured)
    if path is not None:
        _keep(path, yardstick, digest)
    return yardstick


@dataclass(frozen=True)
class Draw:
    """How samples are drawn: see `MNIFPipeline.__call__`."""

    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    temperature: float = 1.0
    typical: float = TYPICAL
    wish: Wish | None = None

    def latents(self, pipe: Decoder, count: int, seed: int) -> Tensor:
        """`count` latents `[count, D]` of another seed."""
        return pipe.sample_latents(count, seed, self.sampler, self.steps, self.temperature, self.typical, self.wish)

    def object(self, pipe: Decoder, latent: Tensor, index: int) -> NeuralObject:
        """Sample `index`, with the label that was asked for."""
        item = pipe.decode(latent, f"sample{index:03d}")
        item.label = {} if self.wish is None else pipe.label_of(self.wish)
        return item

    def objects(self, pipe: Decoder, count: int) -> list[NeuralObject]:
        """The first `count` samples."""
        return [self.object(pipe, latent, k) for k, latent in enumerate(self.latents(pipe, count, self.seed))]


@dataclass(frozen=True)
class Drawn:
    """Samples with what is said of them.

    Attributes:
        objects: `[N]`.
        judgements: `[N]`.
        attempts: `[N]`, how often each was drawn again.
    """

    objects: list[NeuralObject]
    judgements: list[Judgement]
    attempts: list[int]


def draw_whole(
    pipe: Decoder,
    num_samples: int,
    draw: Draw,
    redraw: int,
    yardstick: Yardstick,
    stage: Stage | None = None,
    ranks: Ranks = ONE,
) -> Drawn:
    """Samples, of which those outside the range are drawn again.

    Sample i is, of a first draw and `redraw` further ones, the first that is not broken, else the least broken one.
    Draw k of sample i is sample i of a seed made of the seed and k, so it depends on neither `num_samples` nor on what
    became of the others.

    Args:
        pipe: the model.
        num_samples: N.
        draw: seed and sampler.
        redraw: how often a sample may be drawn again; 0 only judges.
        yardstick: of the model.
        stage: makes progress bars, from a title and a length.
        ranks: the processes that judge together, each of which calls this.

    Raises:
        MNIFError: no prior, or an argument out of range.
    """
    if redraw < 0:
        raise MNIFError(f"`redraw` {redraw} is negative; use 0 for no further draws.")
    best: list[tuple[NeuralObject, Judgement]] = []
    attempts = [0] * num_samples
    wanted = list(range(num_samples))
    for attempt in range(redraw + 1):
        seed = draw.seed if attempt == 0 else stream(draw.seed, "redraw", attempt)
        latents = draw.latents(pipe, wanted[-1] + 1, seed)
        items = [draw.object(pipe, latents[k], k) for k in wanted]
        title = f"drawing again, {attempt} of {redraw}" if attempt else "integrity"
        measured = ranks.spread(items, functools.partial(_measured, stage, title))
        for k, item, features in zip(wanted, items, measured):
            judgement = yardstick.judge(features)
            if attempt == 0:
                best.append((item, judgement))
            else:
                attempts[k] = attempt
                if judgement.score < best[k][1].score:
                    best[k] = (item, judgement)
        wanted = [k for k in wanted if best[k][1].broken]
        if not wanted:
            break
    return Drawn([item for item, _ in best], [judgement for _, judgement in best], attempts)


def _measured(stage: Stage | None, title: str, items: Sequence[NeuralObject]) -> Iterator[dict[str, float]]:
    with _bar(stage, title, len(items)) as advance:
        for features in in_threads(measure, items):
            yield features
            advance()


def _bar(stage: Stage | None, title: str, length: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None) if stage is None else stage(title, length)


def _stored(path: Path, digest: str) -> dict[str, Any] | None:
    """What a file holds of this very model; None of another, and of one that cannot be read: it is made again."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except MNIFError:
        return None
    ours = isinstance(content, dict) and content.get("digest") == digest and content.get("version") == VERSION
    return content if ours and _is_sound(content) else None


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether ranges and count are what `_keep` writes: a folder may come from anywhere."""
    ranges, count = content.get("ranges"), content.get("count")
    pairs = list(ranges.values()) if isinstance(ranges, dict) else [None]
    each = all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs)
    return each and isinstance(count, int) and count > 0


def _keep(path: Path, yardstick: Yardstick, digest: str) -> None:
    content = {"version": VERSION, "digest": digest, "count": yardstick.count, "ranges": yardstick.ranges}
    try:
        write_json(path, content)
    except (MNIFError, OSError):
        return  # a folder of somebody else's; it is measured again next time


def _digest(pipe: Decoder) -> str:
    model, sha = pipe.model, hashlib.sha256()
    tensors: dict[str, Tensor] = {**model.field.state_dict(), "latents": model.latents}
    if model.cells is not None:
        tensors["cells"] = model.cells
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}{list(value.shape)}".encode() + value.numpy().tobytes())
    sha.update(repr([dataclasses.astuple(feature)[:4] for feature in pipe.kind.integrity_features]).encode())
    return sha.hexdigest()[:20]
