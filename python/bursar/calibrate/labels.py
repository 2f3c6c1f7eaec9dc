"""Which runs succeeded, out of a CSV file: a label per run, matched by the run's key.

For what is judged after the Commit, which can say it, too. Reads one file, no ledger.
"""

import csv
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bursar.calibrate.runs import By

__all__ = ["LABELS_MAX", "LabelsError", "read_labels"]

LABELS_MAX: Final = 1_000_000
_WORDS: Final = MappingProxyType(
    {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
)
_SUCCESS: Final = "success"


class LabelsError(ValueError):
    """The file is not one of labels; the message says where and what would be right."""


def read_labels(path: Path, by: By) -> dict[str, bool]:
    """Reads the columns `success` and `reservation`, or `account`: what a run is.

    Raises:
        LabelsError: Something is wrong with the file.
        OSError: It cannot be read.
    """
    labels: dict[str, bool] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {by.value, _SUCCESS} <= set(reader.fieldnames or ()):
                raise LabelsError(f"{path}:1: its first line must name {by.value} and {_SUCCESS}")
            for row in reader:
                key, word = row[by.value] or "", (row[_SUCCESS] or "").strip().lower()
                where = f"{path}:{reader.line_num}"
                if word not in _WORDS:
                    raise LabelsError(f"{where}: {_SUCCESS} is {word!r}, not true or false")
                if not key or key in labels:
                    fault = f"{key!r} is there twice" if key else "it names none"
                    raise LabelsError(f"{where}: {fault}; write one line for each {by.value}")
                if len(labels) == LABELS_MAX:
                    raise LabelsError(f"{where}: more than {LABELS_MAX:,} labels")
                labels[key] = _WORDS[word]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(f"{path}: not a CSV file in UTF-8: {error}") from error
    return labels
