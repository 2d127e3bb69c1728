"""Labels of instances from a table (`labels.csv`) or from the folders that their files lie in.

A table has a column `name` and one for every attribute. Where all values of a column are numbers it is numeric, else it
holds classes; `digit:class` in the header makes classes of numbers. Empty cells, `?`, `na` and `nan` are not known.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnif_nerf.data.readers.splits import SPLIT_NAMES
from mnif_nerf.data.readers.text import read_text
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file
from mnif_nerf.labels import MOST_ATTRIBUTES, MOST_CLASSES, Labels, Value
from mnif_nerf.limits import is_number
from mnif_nerf.names import shown

FILE = "labels.csv"
FOLDERS = "class"
"""The attribute that folders give."""
_UNKNOWN = {"", "?", "na", "n/a", "nan"}
_LARGEST = 64 << 20  # bytes
_LONGEST = 200  # characters of a class


@dataclass(frozen=True)
class Table:
    """What a file of labels says: the labels of its rows by name, and sentences on what was left out."""

    path: Path
    names: tuple[str, ...]
    labels: Labels | None
    notes: tuple[str, ...] = ()


def read_labels(path: Path) -> Table:
    """Read a table of labels.

    Raises:
        MNIFError: no such file, no column `name`, names or columns that are there twice, rows of another length,
            numbers mixed with text, or a class of its own for every instance.
    """
    if not path.is_file():
        raise MNIFError(f"{path}: no such file; give a .csv with the columns name and one for every attribute.")
    if path.stat().st_size > _LARGEST:
        raise MNIFError(f"{path}: is larger than {_LARGEST >> 20} MiB, so it is no table of labels; give another file.")
    lines = read_text(path).splitlines()
    head = next((line for line in lines if line.strip()), "")
    rows = list(csv.reader(lines, delimiter=max(",;\t", key=head.count)))
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    header = [cell.strip() for cell in numbered[0][1]] if numbered else []
    place = next((k for k, cell in enumerate(header) if cell.casefold() == "name"), None)
    if place is None:
        found = ", ".join(map(shown, header)) or "nothing"
        raise MNIFError(f"{path}: has no column name (its first line has {found}); write name,species in that line.")
    columns = [cell.partition(":")[0].strip() for cell in header]
    twice = next((name for k, name in enumerate(columns) if not name or name in columns[:k]), None)
    if twice is not None:
        raise MNIFError(f"{path}: its first line names the column {shown(twice)!r} twice or not at all; give each one.")
    if len(columns) - 1 > MOST_ATTRIBUTES:
        raise MNIFError(f"{path}: {len(columns) - 1} attributes are more than can be meant; keep {MOST_ATTRIBUTES}.")
    names: dict[str, int] = {}
    cells: list[list[str]] = []
    for number, row in numbered[1:]:
        if len(row) > len(header):
            raise MNIFError(f"{path}, line {number}: {len(row)} cells where the first line has {len(header)}.")
        padded = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
        name = padded[place]
        if name in names:
            raise MNIFError(f"{path}, line {number}: {shown(name)!r} is in line {names[name]} already; keep one row.")
        names[name] = number
        cells.append(padded)
    found_columns: dict[str, tuple[Value | None, ...]] = {}
    notes = []
    for k, name in enumerate(columns):
        if k == place:
            continue
        kind = header[k].partition(":")[2].strip().casefold()
        column, note = _column(path, name, kind, [row[k] for row in cells], list(names.values()))
        notes += [note] if note else []
        if column is not None:
            found_columns[name] = column
    return Table(path, tuple(names), Labels(found_columns) if found_columns else None, tuple(notes))


def find_table(root: Path, chosen: str = "auto") -> Table | None:
    """The table of labels of a data set: the chosen file, or with "auto" labels.csv in its folder, if it is there."""
    if chosen != "auto":
        return read_labels(Path(chosen))
    return read_labels(root / FILE) if (root / FILE).is_file() else None


def _column(
    path: Path, name: str, kind: str, cells: Sequence[str], lines: Sequence[int]
) -> tuple[tuple[Value | None, ...] | None, str]:
    """The values of an attribute, or None and why it is left out."""
    if kind not in ("", "class", "number"):
        raise MNIFError(f"{path}: the column {shown(name)} says {shown(kind)}; write {shown(name)}:class or :number.")
    texts = [None if cell.casefold() in _UNKNOWN else cell for cell in cells]
    numbers = [None if text is None else _number(text) for text in texts]
    known = [k for k, text in enumerate(texts) if text is not None]
    wordy = [k for k in known if numbers[k] is None]
    if kind != "class" and wordy and (kind == "number" or len(wordy) < len(known)):
        first = wordy[0]
        raise MNIFError(
            f"{path}, line {lines[first]}: {shown(name)} is {shown(cells[first])!r}, while others have numbers; "
            f"correct it, or write {shown(name)}:class in the first line if all are classes."
        )
    numeric = kind != "class" and not wordy
    values: list[Value | None] = list(numbers) if numeric else list(texts)
    different = {values[k] for k in known}
    if len(different) < 2:
        only = f"is {shown(str(next(iter(different))))} for all" if different else "is empty"
        return None, f"{path}: {shown(name)} {only}, which is no label; it is left out."
    if not numeric:
        if len(different) == len(known):
            raise MNIFError(
                f"{path}: every instance has a {shown(name)} of its own, so there is nothing to learn from it; use "
                "classes that several instances share, or remove the column."
            )
        _check_classes(path, name, [value for value in different if isinstance(value, str)])
    return tuple(values), ""


def _check_classes(path: Path, name: str, classes: Sequence[str]) -> None:
    if len(classes) > MOST_CLASSES or max(map(len, classes)) > _LONGEST:
        raise MNIFError(
            f"{path}: {shown(name)} has {len(classes):,} classes of up to {max(map(len, classes))} characters; at most "
            f"{MOST_CLASSES:,} of {_LONGEST} can be learned, so remove that column or make its classes coarser."
        )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if is_number(number) else None


def match_labels(
    table: Table, files: Mapping[str, Path | None], root: Path, unused: Iterable[Path] = ()
) -> dict[str, int]:
    """The row of every instance in a table, by its name; instances that it does not name are left out.

    Args:
        table: as read. A row names an instance by its name, its file's name or path below `root`, with or without
            suffix.
        files: all instances of all splits by name, with their files where they have one of their own.
        root: folder of the files.
        unused: further files there, which rows may name to no avail.

    Raises:
        MNIFError: rows that name nothing, or the same instance twice.
    """
    keys: dict[str, str | None] = {}
    for name, path in files.items():
        for key in _keys(name, path, root):
            keys[key] = name if keys.get(key, name) == name else None  # None: several have it
    for name in files:
        keys[name] = name
    idle = {key for path in unused for key in _keys(path.stem, path, root)} - set(keys)
    found: dict[str, int] = {}
    strange = []
    for row, text in enumerate(table.names):
        instance = keys.get(text)
        if text in idle:
            continue
        if instance is None:
            strange.append(text)
        elif instance in found:
            raise MNIFError(
                f"{table.path}: {shown(table.names[found[instance]])} and {shown(text)} are the same instance; keep "
                "one row."
            )
        else:
            found[instance] = row
    if strange:
        listed = ", ".join(map(shown, strange[:3])) + (", ..." if len(strange) > 3 else "")
        some = ", ".join(map(shown, list(files)[:3]))
        raise MNIFError(
            f"{table.path}: {len(strange)} of its {len(table.names)} names mean no instance, or several ({listed}); "
            f"names are such as {some}."
        )
    return found


def _keys(name: str, path: Path | None, root: Path) -> set[str]:
    if path is None:
        return {name}
    inside = path.is_relative_to(root)
    relative = path.relative_to(root).as_posix() if inside else path.name
    return {name, path.name, path.stem, relative, os.path.splitext(relative)[0]}


def table_labels(
    table: Table, files: Mapping[str, Path | None], root: Path, names: Sequence[str], unused: Iterable[Path] = ()
) -> Labels | None:
    """Labels of the instances `names`, which are among `files`: see `match_labels`."""
    rows = match_labels(table, files, root, unused)
    for note in table.notes:
        print(note, flush=True)
    if table.labels is None:
        return None
    columns = {
        attribute: tuple(column[rows[name]] if name in rows else None for name in names)
        for attribute, column in table.labels.columns.items()
    }
    return useful(Labels(columns))


def folder_labels(files: Mapping[Any, Path], root: Path) -> tuple[Labels | None, str]:
    """Labels by the folders that instances' files lie in: the first level below `root` in which they differ.

    Levels that are only splits (train, test, ...) do not count, nor do folders that hold one instance each.

    Returns:
        labels in the order of `files` (None where folders say nothing), and a sentence where they nearly do.
    """
    parts = [
        [part for part in path.relative_to(root).parts[:-1] if part.casefold() not in SPLIT_NAMES]
        for path in files.values()
    ]
    constant = []
    while parts and all(parts) and len({own[0] for own in parts}) == 1:
        constant.append(parts[0][0])
        parts = [own[1:] for own in parts]
    classes = [own[0] if own else None for own in parts]
    different = {name for name in classes if name is not None}
    if len(different) < 2 or 2 * len(different) > sum(name is not None for name in classes):
        alone = not different and len(constant) == 1 and len(files) > 1
        return None, f"all lie in one folder ({shown(constant[0])}), so folders give no label." if alone else ""
    if len(different) > MOST_CLASSES or max(map(len, different)) > _LONGEST:
        return None, ""
    return Labels({FOLDERS: tuple(classes)}), ""


def useful(labels: Labels) -> Labels | None:
    """Labels without attributes that say the same of all; None where nothing is left."""
    kept = {name: column for name, column in labels.columns.items() if len({*column} - {None}) > 1}
    return Labels(kept) if kept else None


def write_labels(path: Path, names: Sequence[str], labels: Labels) -> None:
    """Write a table that `read_labels` reads.

    Raises:
        MNIFError: the disk is full or cannot be written.
    """
    kinds = {attribute.name: attribute for attribute in labels.attributes()}
    header = [_heading(name, kinds[name].classes) for name in labels.columns]
    rows = zip(names, *labels.columns.values())
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *header])
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])


def _heading(name: str, classes: Sequence[str]) -> str:
    return f"{name}:class" if any(_number(word) is not None for word in classes) else name
