"""Measures the golden values anew and overwrites their tables."""

import csv
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests import golden


def main() -> None:
    for values in golden.draws, golden.orders, golden.weights:
        rows = list(values())
        with (golden.HERE / f"{values.__name__}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    with tempfile.TemporaryDirectory() as scratch:
        golden.search_digits(Path(scratch, "search"), "xla")
        golden.train_digits(Path(scratch, "train"))
        shutil.copy(Path(scratch, "search/curves.csv"), golden.HERE / "digits_depth10.csv")
        shutil.copy(Path(scratch, "train/curves.csv"), golden.HERE / "digits_conv.csv")
    print(
        f"\nWarning: golden values change only on purpose. Where `git diff {golden.HERE}` shows a change, searches and "
        "training no longer repeat what they gave before: say why in CHANGELOG.md, or find the mistake."
    )


if __name__ == "__main__":
    main()
