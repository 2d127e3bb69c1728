"""Text files as programs write them: with a byte-order mark or not, in UTF-16, with commas, semicolons and comments."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from mnif_nerf.errors import MNIFError

COMMENTS = ("#", "//", "%", "!", "'")
"""What begins a line that holds no data."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECIMAL_COMMA = re.compile(r"(?<![\w.])[+-]?\d*,\d+(?:[eE][+-]?\d+)?(?![\w,])")


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte-order mark says, or UTF-16 without one; else latin-1.

    Raises:
        MNIFError: it cannot be opened.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise MNIFError(f"{path}: cannot be read ({reason}); write it again.") from None
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    head = content[:200]
    if len(head) > 3 and head[1::2].count(0) > 0.9 * len(head[1::2]):
        return content.decode("utf-16-le", errors="replace")
    if len(head) > 3 and head[0::2].count(0) > 0.9 * len(head[0::2]):
        return content.decode("utf-16-be", errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def data_lines(text: str) -> list[str]:
    """Lines that are neither empty nor comments, without what follows a # in them."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(COMMENTS)]


def has_decimal_commas(lines: list[str]) -> bool:
    """Whether commas stand in place of points: no line has a point, and all commas are within numbers that something
    else separates."""
    with_commas = [line for line in lines if "," in line]
    if not with_commas or any("." in line for line in lines):
        return False
    for line in with_commas:
        words = re.split(r"[;\s]+", line.strip("; \t"))
        if len(words) < 2 or not all("," not in word or _DECIMAL_COMMA.fullmatch(word) for word in words):
            return False
    return True


def split_words(line: str, decimal_commas: bool = False) -> list[str]:
    """The words of a line, between blanks, commas, semicolons and brackets."""
    if decimal_commas:
        line = line.replace(",", ".")
    return re.sub(r"[,;|\[\](){}]", " ", line).split()


def number_lines(path: Path) -> list[list[float]]:
    """The numbers of a file, line by line.

    Raises:
        MNIFError: a word is no number.
    """
    lines = data_lines(read_text(path))
    commas = has_decimal_commas(lines)
    numbers = []
    for line in lines:
        try:
            numbers.append([float(word) for word in split_words(line, commas)])
        except ValueError as error:
            raise MNIFError(f"{path}: not a text file of numbers ({error}); write it again.") from None
    return [line for line in numbers if line]
