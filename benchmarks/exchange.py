"""Peak memory and processor time of export and import, each in a process of its own, at two sizes of an index of given vectors.

    python benchmarks/exchange.py [--folder FOLDER] [--documents 4000 16000]

What streams does not grow with the index, but for what is mapped of it and one line a document in the report.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ragkit import Index

DIMS, BATCH = 512, 4000
STEPS = ("open", "export", "import")


def make(folder: Path, documents: int) -> None:
    rng = np.random.default_rng(0)
    with Index.open(folder / "library", model=f"vectors:{DIMS}", recall=1.0) as index:
        for start in range(0, documents, BATCH):
            rows = rng.normal(size=(min(BATCH, documents - start), DIMS)).astype(np.float32)
            numbered = enumerate(rows, start)
            index.add({"id": f"d{n}", "text": f"Note {n} says {n * n} of things.", "vector": row} for n, row in numbered)


def step(name: str, folder: Path) -> None:
    start = time.process_time()
    if name == "import":
        Index.import_from(folder / "new", folder / "exported")
    else:
        with Index.open(folder / "library") as index:
            index.stats() if name == "open" else index.export(folder / "exported")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {name}: peak {peak:.0f} MiB, {time.process_time() - start:.1f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--documents", type=int, nargs="+", default=[4000, 16000])
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(options.step[0], Path(options.step[1]))
        return
    for documents in options.documents:
        folder = Path(tempfile.mkdtemp(prefix="ragkit-exchange-", dir=options.folder))
        try:
            make(folder, documents)
            print(f"{documents} documents of {DIMS} dims", flush=True)
            for name in STEPS:
                subprocess.run([sys.executable, __file__, "--step", name, str(folder)], check=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
