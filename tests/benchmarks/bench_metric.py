"""The metric on a million rows with its intervals, against looping evaluate's `accuracy` over the domains.

    python tests/benchmarks/bench_metric.py [--rows 1000000] [--rounds 3]

`accuracy` is that metric as its repository has it: two int32 columns and scikit-learn's `accuracy_score`. It is given
ids, as it takes no text, and a list for each domain; making the lists counts, as our metric does this too. Ours is the
function of the package, on ids and on text, and the `evaluate` module over it, which like `accuracy` writes the rows
to an Arrow file and reads them again. Times are the CPU's, the best of the rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", HF_EVALUATE_OFFLINE="1")

from emo_r3.labels import LABEL_SETS  # noqa: E402
from emo_r3.metrics import domain_accuracy  # noqa: E402

DOMAINS = ("emoset-2k", "emotion6", "webemo-2k")


def make_rows(count: int) -> dict[str, list[Any]]:
    """Ids of eight labels, of which about two in three are right, in three domains."""
    rng = np.random.default_rng(0)
    references = rng.integers(0, 8, count)
    predictions = np.where(rng.random(count) < 0.6, references, rng.integers(0, 8, count))
    domains = [DOMAINS[at] for at in rng.integers(0, 3, count).tolist()]
    return {"predictions": predictions.tolist(), "references": references.tolist(), "domains": domains}


def looped(folder: str) -> Callable[..., dict[str, float]]:
    import datasets
    import evaluate
    from sklearn.metrics import accuracy_score

    class Accuracy(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            return {"accuracy": float(accuracy_score(references, predictions))}

    metric = Accuracy(cache_dir=folder)

    def run(predictions: list[int], references: list[int], domains: list[str]) -> dict[str, float]:
        found = {}
        for domain in DOMAINS:
            rows = [at for at, name in enumerate(domains) if name == domain]
            columns = {"predictions": [predictions[at] for at in rows], "references": [references[at] for at in rows]}
            found[domain] = metric.compute(**columns)["accuracy"]
        return found

    return run


def module(folder: str) -> Callable[..., dict[str, Any]]:
    import evaluate

    return evaluate.load(str(ROOT / "hub/metrics/domain_accuracy"), cache_dir=folder).compute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    ids = make_rows(args.rows)
    labels = LABEL_SETS["emoset"].labels
    text = ids | {name: [labels[number] for number in ids[name]] for name in ("predictions", "references")}
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "evaluate's accuracy, looped": (looped(folder), ids),
            "domain_accuracy of ids": (domain_accuracy, ids),
            "domain_accuracy of text": (domain_accuracy, text),
            "evaluate module, of ids": (module(folder), ids),
            "evaluate module, of text": (module(folder), text),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        results = {}
        for _ in range(args.rounds):
            for name, (way, rows) in ways.items():
                start = time.process_time()
                results[name] = way(**rows)
                seconds[name].append(time.process_time() - start)
    base, *others = ways
    for name in others:
        found = {domain: cell["accuracy"]["value"] for domain, cell in results[name]["domains"].items()}
        assert found == results[base], (name, found, results[base])
    for name, times in seconds.items():
        print(f"{name:<28} {min(times):6.2f} s  {min(seconds[base]) / min(times):5.1f} x")


if __name__ == "__main__":
    main()
