"""Building a data set of small JPEGs, against `datasets`' own imagefolder route to the same Parquet.

    python tests/benchmarks/bench_prepare.py [--images 20000] [--rounds 2]

Both read a folder of images by label and write Parquet with the files' bytes and the label. Ours also decodes every
image, hashes it and looks for duplicates, draws the rows, reads them again, and writes a card and a report. Each run
is a process of its own that has imported everything before the clock starts; the best of the rounds counts. Memory is
the peak beyond what the process had after its imports, at a quarter of the images and at all of them; the growth
between the two is what one more image takes.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

SIDE = 96


def make_folder(folder: Path, count: int, labels: tuple[str, ...]) -> int:
    """Writes `count` different JPEGs into a folder for each label; returns the bytes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (2 * SIDE // 8, 2 * SIDE // 8, 3), dtype=np.uint8))
    scenery = np.asarray(coarse.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC))
    for label in labels:
        (folder / label).mkdir(parents=True)
    size = 0
    for number in range(count):
        y, x = rng.integers(0, SIDE, 2)
        cut = scenery[y : y + SIDE, x : x + SIDE].copy()
        cut[:8, :8] = rng.integers(0, 256, 3)
        cut[8:16, :8] = rng.integers(0, 256, 3)
        stream = io.BytesIO()
        Image.fromarray(cut).save(stream, "JPEG", quality=85)
        size += (folder / labels[number % len(labels)] / f"{number:06d}.jpg").write_bytes(stream.getvalue())
    return size


def ours(raw: Path, output: Path) -> Callable[[], dict[str, float]]:
    from emo_r3.data.archive import Record, open_raw
    from emo_r3.data.build import select, write
    from emo_r3.data.records import RecordFile
    from emo_r3.data.report import Spec
    from emo_r3.miniature.datasets import miniature_spec

    given = miniature_spec("miniature-8")
    facts = {name: getattr(given, name) for name in ("labels", "license", "terms", "obtain", "citation")}
    spec = Spec(name="bench", title="Bench", about="Small JPEGs.", columns={}, **facts)

    def run() -> dict[str, float]:
        with open_raw(raw) as originals:
            files = ((name, *name.removesuffix(".jpg").split("/")) for name in originals.names)
            records = (Record(key, label, originals.file(name), "train", source=name) for name, label, key in files)
            selection = select({"train": RecordFile(originals, records)}, spec, strict=True)
            looked = time.perf_counter()
            write(selection, output)
            return {"writing": time.perf_counter() - looked}

    return run


def theirs(raw: Path, output: Path) -> Callable[[], dict[str, float]]:
    import datasets

    datasets.disable_progress_bars()

    def run() -> dict[str, float]:
        rows = datasets.load_dataset("imagefolder", data_dir=str(raw), split="train", cache_dir=str(output / "cache"))
        rows.to_parquet(str(output / "train.parquet"))
        return {}

    return run


def peak() -> float:
    """The most memory that this process has held, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def work(route: str, raw: Path, output: Path) -> None:
    run = {"ours": ours, "theirs": theirs}[route](raw, output)
    for module in ("datasets.packaged_modules.imagefolder.imagefolder", "pyarrow.parquet"):
        import_module(module)
    before, start, used = peak(), time.perf_counter(), time.process_time()
    more = run()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu": used, "memory": peak() - before, **more}))


def measure(route: str, raw: Path, rounds: int) -> dict[str, float]:
    results = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=raw.parent) as scratch:
            command = [sys.executable, __file__, "--route", route, str(raw), f"{scratch}/out"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: min(result[key] for result in results) for key in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--route", nargs=3, metavar=("ROUTE", "RAW", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.route:
        return work(args.route[0], *map(Path, args.route[1:]))

    from emo_r3.labels import LABEL_SETS

    results: dict[str, dict[str, float]] = {}
    fewer: dict[str, dict[str, float]] = {}
    few = args.images // 4
    for count in (few, args.images):
        with tempfile.TemporaryDirectory() as scratch:
            raw = Path(scratch) / "raw"
            size = make_folder(raw, count, LABEL_SETS["emoset"].labels)
            print(f"{count:,} JPEGs of {SIDE} x {SIDE} pixels, {size / 2**20:.1f} MiB")
            for route, name in (("theirs", "imagefolder, to_parquet"), ("ours", "emo_r3 build")):
                result = results[route] = measure(route, raw, args.rounds)
                print(
                    f"{name:<24} {result['seconds']:7.2f} s {count / result['seconds']:8.0f} images/s"
                    f" {result['cpu']:7.2f} s of CPU   peak + {result['memory']:5.0f} MiB"
                    + (f"   ({result['writing']:.2f} s writing)" if "writing" in result else "")
                )
                if count > few:
                    growth = (result["memory"] - fewer[route]["memory"]) * 2**20 / (count - few)
                    print(f"{'':<24} {growth:7.0f} bytes of memory for each further image")
            fewer = dict(results)
            ratio = {key: results["theirs"][key] / results["ours"][key] for key in ("seconds", "cpu")}
            print(f"emo_r3 is {ratio['seconds']:.2f} x as fast, on {1 / ratio['cpu']:.2f} x the CPU time")


if __name__ == "__main__":
    main()
