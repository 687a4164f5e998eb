"""The table beside a folder's pictures: metadata.csv or metadata.jsonl, a row per picture."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from undiffuse.errors import InputError

NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"  # the column that names the picture, relative to the folder; as the imagefolder of `datasets` has it


@dataclass(frozen=True)
class Table:
    """path: of the table; files: the picture of every row; columns: name -> values, texts or what JSON gives."""

    path: Path
    files: list[Path]
    columns: dict[str, list[object]]


def read(root: Path) -> Table | None:
    """The table of the folder `root`, or None where it has none.

    Raises: InputError for two tables, one without a column `file_name`, rows that are cut short, and pictures that are
    not there or stand twice.
    """
    found = [root / name for name in NAMES if (root / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"{root} holds both {' and '.join(NAMES)}: one of them is needed")
    path = found[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    rows = _csv(path, text) if path.suffix == ".csv" else _jsonl(path, text)
    if not rows:
        raise InputError(f"{path} has no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if FILE not in names:
        raise InputError(f"{path} has no column {FILE!r}, the picture of each row: its columns are {', '.join(names)}")
    files, seen = [], set()
    for number, row in enumerate(rows, start=1):
        name = Path(str(row.get(FILE)))
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{path}: row {number} names the picture {row.get(FILE)!r}, which is not below the folder")
        file = root / name
        if not row.get(FILE) or not file.is_file():
            raise InputError(f"{path}: row {number} names the picture {row.get(FILE)!r}, which does not exist")
        if file in seen:
            raise InputError(f"{path}: row {number} names the picture {row[FILE]!r} a second time")
        seen.add(file)
        files.append(file)
    return Table(path, files, {name: [row.get(name) for row in rows] for name in names if name != FILE})


def _csv(path: Path, text: str) -> list[dict[str, object]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows: list[dict[str, object]] = []
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise InputError(f"{path}: row {number} has not as many values as there are columns")
            rows.append(dict(row))
    except csv.Error as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return rows


def _jsonl(path: Path, text: str) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines breaks at more than ends of lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} holds no object {{...}}")
        rows.append(row)
    return rows
