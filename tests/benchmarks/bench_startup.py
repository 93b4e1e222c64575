"""What `import emo_r3` and `emo-r3 --help` cost over `python -c pass` (goal: at most 0.15 s more)."""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import emo_r3": ["-c", "import emo_r3"],
    "emo-r3 --help": ["-m", "emo_r3", "--help"],
    "emo-r3 predict --help": ["-m", "emo_r3", "predict", "--help"],
}


def fastest(arguments: list[str], repeats: int = 10) -> float:
    """Seconds of the fastest of several runs: the least disturbed by what else the machine does."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print one line per command."""
    times = {name: fastest(arguments) for name, arguments in COMMANDS.items()}
    base = times["python -c pass"]
    for name, seconds in times.items():
        print(f"{name:<22} {seconds:.3f} s  {seconds - base:+.3f} s  {seconds / base:.1f} x")


if __name__ == "__main__":
    main()
