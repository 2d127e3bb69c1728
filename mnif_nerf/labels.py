"""Labels: what a person says of instances, by attribute. An attribute holds classes (words) or numbers.

A label of one instance is a dictionary such as `{"species": "oak", "height": 7.5}`; what is not known is left out.
"""

from __future__ import annotations

import difflib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mnif_nerf.errors import MNIFError
from mnif_nerf.limits import is_number, require_number
from mnif_nerf.names import shown

Value = str | float
Label = dict[str, Value]

MOST_ATTRIBUTES = 64
MOST_CLASSES = 1000
"""Of one attribute: more are names, not classes."""
MOST_GUIDANCE = 20.0
GUIDANCE = 1.0
"""What is used where nothing else is asked for: see docs/labels.md for what more and less do."""
_LONGEST_WORD = 200  # characters
_LISTED = 20


@dataclass(frozen=True)
class Attribute:
    """One thing that labels say.

    Attributes:
        name: of the attribute.
        classes: what it can be, sorted; empty of numbers.
        low, high, mean, deviation: of numbers.
    """

    name: str
    classes: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def is_numeric(self) -> bool:
        """Whether it holds numbers."""
        return not self.classes

    def describe(self) -> str:
        """What can be asked for, such as "species: birch, oak" or "height: 1.5 to 9"."""
        if self.is_numeric:
            return f"{shown(self.name)}: {self.low:g} to {self.high:g}"
        more = f" and {len(self.classes) - _LISTED} more" if len(self.classes) > _LISTED else ""
        return f"{shown(self.name)}: {', '.join(map(shown, self.classes[:_LISTED]))}{more}"

    def value(self, asked: object) -> Value:
        """One of its values from what was asked for; letter case of classes does not count.

        Raises:
            MNIFError: it has no such value; the sentence lists those that it has.
        """
        if self.is_numeric:
            return self._number(asked)
        text = str(asked).strip()
        equal = [name for name in self.classes if name.casefold() == text.casefold()]
        if text in self.classes or equal:
            return text if text in self.classes else equal[0]
        close = difflib.get_close_matches(text, self.classes, n=1)
        hint = f"; did you mean {shown(close[0])}?" if close else "."
        raise MNIFError(f"`label` {shown(self.name)}={shown(text)}: there is {self.describe()}{hint}")

    def _number(self, asked: object) -> float:
        try:
            number = float(str(asked))
        except ValueError:
            number = float("nan")
        if not self.low <= number <= self.high:
            raise MNIFError(
                f"`label` {shown(self.name)}={shown(asked)}: expected a number that training has seen "
                f"({self.describe()})."
            )
        return number

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        if not self.is_numeric:
            return {"name": self.name, "classes": list(self.classes)}
        return {name: getattr(self, name) for name in ("name", "low", "high", "mean", "deviation")}

    @classmethod
    def from_dict(cls, content: Any, place: object) -> Attribute:
        """The inverse of `to_dict`.

        Raises:
            MNIFError: something else; the sentence begins with `place`.
        """
        wrong = MNIFError(f"{place}: an attribute of labels is damaged ({shown(content)}); train the prior again.")
        if not isinstance(content, dict) or not _is_word(content.get("name")):
            raise wrong
        if set(content) == {"name", "classes"}:
            classes = content["classes"]
            fits = isinstance(classes, list) and 2 <= len(classes) <= MOST_CLASSES and all(map(_is_word, classes))
            if not fits or len(set(classes)) != len(classes):
                raise wrong
            return cls(content["name"], tuple(classes))
        numbers = ("low", "high", "mean", "deviation")
        if set(content) != {"name", *numbers} or not all(is_number(content[name]) for name in numbers):
            raise wrong
        if content["deviation"] <= 0 or content["low"] > content["high"]:
            raise wrong
        return cls(content["name"], (), *(float(content[name]) for name in numbers))


@dataclass(frozen=True)
class Labels:
    """Labels of N instances.

    Attributes:
        columns: by attribute, N values; None where one is not known. Words or numbers, never both.
    """

    columns: Mapping[str, tuple[Value | None, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def of(self, index: int) -> Label:
        """The label of one instance."""
        return {name: value for name, column in self.columns.items() if (value := column[index]) is not None}

    def some(self, rows: Iterable[int]) -> Labels:
        """Those of some instances."""
        chosen = list(rows)
        return Labels({name: tuple(column[row] for row in chosen) for name, column in self.columns.items()})

    def attributes(self) -> tuple[Attribute, ...]:
        """What they say."""
        return tuple(_attribute(name, column) for name, column in self.columns.items())

    def rows_with(self, label: Mapping[str, Value]) -> list[int]:
        """Instances that have this label; only attributes of classes are compared."""
        words = {name: value for name, value in label.items() if isinstance(value, str)}
        return [
            row
            for row in range(len(self))
            if all(self.columns.get(name, (None,) * len(self))[row] == value for name, value in words.items())
        ]

    def describe(self) -> str:
        """What they say and of how many, in one line."""
        parts = []
        for attribute in self.attributes():
            counts = Counter(value for value in self.columns[attribute.name] if isinstance(value, str))
            if counts:
                named = ", ".join(f"{shown(word, 40)} {count}" for word, count in counts.most_common(_LISTED))
                more = f" and {len(counts) - _LISTED} more" if len(counts) > _LISTED else ""
                parts.append(f"{shown(attribute.name)} ({named}{more})")
            else:
                parts.append(attribute.describe())
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: list(column) for name, column in self.columns.items()}

    @classmethod
    def from_dict(cls, content: Any, count: int, place: object) -> Labels:
        """The inverse of `to_dict`.

        Args:
            content: from a file.
            count: N.
            place: of the file, for messages.

        Raises:
            MNIFError: something else, or of another number of instances.
        """
        if not isinstance(content, dict) or not 1 <= len(content) <= MOST_ATTRIBUTES:
            raise MNIFError(f"{place}: labels are no table of attributes ({shown(content)}); make them again.")
        for name, column in content.items():
            if not _is_word(name) or not isinstance(column, list) or len(column) != count:
                raise MNIFError(
                    f"{place}: labels {shown(name)} are not one for each of {count} instances; make them again."
                )
            known = [value for value in column if value is not None]
            words = bool(known) and all(map(_is_word, known)) and 2 <= len(set(known)) <= MOST_CLASSES
            if not words and not (known and all(map(is_number, known))):
                raise MNIFError(f"{place}: labels {shown(name)} are neither classes nor numbers; make them again.")
        return cls({name: tuple(column) for name, column in content.items()})


@dataclass(frozen=True)
class Wish:
    """What samples shall be.

    Attributes:
        label: the label that is asked for; nothing in it takes what comes.
        guidance: how strongly: 0 leaves the label out, 1 is the model itself, more makes samples more like their class
            and less varied.

    Raises:
        MNIFError: a guidance that is no number from 0 to `MOST_GUIDANCE`, or a label that is no dictionary.
    """

    label: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = GUIDANCE

    def __post_init__(self) -> None:
        require_number("`guidance`", self.guidance, 0.0, MOST_GUIDANCE)
        if not isinstance(self.label, Mapping):
            raise MNIFError(f'`label` {shown(repr(self.label))}: expected a dictionary such as {{"species": "oak"}}.')


def checked_label(label: Mapping[str, Any], attributes: Sequence[Attribute]) -> Label:
    """A label with its values as training has seen them.

    Args:
        label: as a user gives it.
        attributes: of the model's prior.

    Raises:
        MNIFError: an attribute or a value that is not there; the sentence lists those that are.
    """
    if label and not attributes:
        raise MNIFError(
            "`label`: this model's prior was trained without labels; leave it out, or give some with "
            "mnif-train-prior --labels."
        )
    found: Label = {}
    for name, asked in label.items():
        chosen = next((each for each in attributes if each.name.casefold() == str(name).strip().casefold()), None)
        if chosen is None:
            there = "; ".join(attribute.describe() for attribute in attributes)
            raise MNIFError(f"`label` {shown(name)}={shown(asked)}: no such attribute; there is {there}.")
        if chosen.name in found:
            raise MNIFError(f"`label` {shown(name)}: asked for twice; leave one out.")
        found[chosen.name] = chosen.value(asked)
    return found


def label_text(label: Mapping[str, Value]) -> str:
    """A label in a few words, for captions: "oak, autumn, height 7.5"."""
    parts = [value if isinstance(value, str) else f"{name} {value:.4g}" for name, value in label.items()]
    return shown(", ".join(parts), 60)


def _attribute(name: str, column: Sequence[Value | None]) -> Attribute:
    words = sorted({value for value in column if isinstance(value, str)})
    if words:
        return Attribute(name, tuple(words))
    numbers = [float(value) for value in column if value is not None]
    deviation = statistics.pstdev(numbers)
    return Attribute(name, (), min(numbers), max(numbers), statistics.fmean(numbers), deviation or 1.0)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_WORD
