"""The package as a whole: what an import costs, and what the wheel holds."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import emo_r3

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "PIL", "numpy", "huggingface_hub", "tqdm")


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, **options)


@pytest.mark.parametrize(
    "code",
    [
        "import emo_r3",
        "import emo_r3; dir(emo_r3)",
        "import emo_r3.cli.main as cli; cli.make_parser(['predict', 'x']).format_help()",
        "from emo_r3 import LABEL_SETS, EmoR3Error, normalize_label, parse_completion",
    ],
)
def test_light_imports(code: str) -> None:
    found = run("-c", f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])").stdout
    assert found.strip() == "[]"


def test_every_export_is_there() -> None:
    for name in emo_r3.__all__:
        assert getattr(emo_r3, name) is not None
    assert set(emo_r3.__all__) <= set(dir(emo_r3))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        emo_r3.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("training", "EmoR3Config EmoR3Trainer"),
        ("evaluation", "calibrate evaluate"),
        ("demo", "create_demo launch"),
        ("serving", "create_api"),
    ],
)
def test_rooms_give_their_names_on_first_use(package: str, names: str) -> None:
    module = importlib.import_module(f"emo_r3.{package}")
    assert all(callable(getattr(module, name)) for name in names.split()) and module.__all__ == names.split()
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018
    found = run("-c", f"import emo_r3.{package}, sys; print([n for n in {HEAVY} if n in sys.modules])").stdout
    assert found == "[]\n"


def test_version_is_the_distribution_s() -> None:
    assert metadata.version("emo-r3") == emo_r3.__version__
    assert run("-m", "emo_r3", "--version").stdout == f"emo-r3 {emo_r3.__version__}\n"


def pins_of(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ("train", "data", "eval", "demo", "serve", "dev")),
        ("constraints-vllm.txt", ("train", "data", "vllm")),
    ],
)
def test_every_constraint_satisfies_the_ranges(file: str, extras: tuple[str, ...]) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = pins_of(file)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    for text in texts:
        requirement = Requirement(text)
        if requirement.name != "emo-r3":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_the_tested_versions_run_on_the_oldest_python_asked_for() -> None:
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    here = {canonicalize_name(package.name): package for package in metadata.distributions()}
    names = pins_of("constraints.txt").keys() & here.keys()
    asked = {name: here[name].metadata["Requires-Python"] or "" for name in names}
    assert len(asked) > 100
    assert not {name: python for name, python in asked.items() if not SpecifierSet(python).contains(oldest)}


def test_what_is_imported_is_declared() -> None:
    """Whatever the package imports is asked for by name, not left to another library that brings it along."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    imported: dict[str, str] = {}
    for path in ROOT.glob("emo_r3/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported[node.module.partition(".")[0]] = path.name
    others = {name: file for name, file in imported.items() if name not in {*sys.stdlib_module_names, "emo_r3"}}
    makers = metadata.packages_distributions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        line
        for name in ("data", "train", "eval", "demo", "serve", "photos", "quantized")
        for line in project["optional-dependencies"][name]
    ]
    declared = {canonicalize_name(Requirement(line).name) for line in [*project["dependencies"], *extras]}
    needed = {canonicalize_name(makers[name][0]) if name in makers else name for name in others}
    # `evaluate` is for users of the metric, which lives in hub/; transformers imports the others.
    assert needed == declared - {"emo-r3", "evaluate", "bitsandbytes", "num2words", "torchvision"}


def test_only_the_families_that_need_it_bring_torchvision() -> None:
    # constraints-vllm.txt has it: vLLM asks for it.
    assert "torchvision" not in Path(ROOT, "constraints.txt").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any("torchvision" in line for line in project["dependencies"])
    asked = {name for name, lines in project["optional-dependencies"].items() if "torchvision" in str(lines)}
    assert asked == {"photos"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_the_package_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("emo_r3/")}
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("emo_r3/**/*") if path.is_file()}
    assert names == {name for name in sources if "__pycache__" not in name}
    checkpoint = {name.rpartition("/")[2] for name in names if "/checkpoint/" in name}
    assert {"model.safetensors", "config.json", "emo_r3.json", "tokenizer.json", "README.md"} <= checkpoint
    assert {"emo_r3/py.typed", "emo_r3/prompts.toml"} <= names
    assert wheel.stat().st_size < 14e6


@pytest.mark.slow
def test_wheel_predicts_alone_and_offline(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies of this environment, but not the checkout that it points to: a path in a .pth file is not a
    # site folder, so the .pth files there are not read.
    (site / "dependencies.pth").write_text(str(Path(metadata.distribution("torch").locate_file(""))) + "\n")
    from PIL import Image

    Image.new("RGB", (96, 96), "navy").save(tmp_path / "night.png")
    code = "import runpy, socket, sys; socket.socket.connect = None; sys.argv = ['emo-r3', *sys.argv[1:]]; "
    code += "import emo_r3; print(emo_r3.__file__, file=sys.stderr); runpy.run_module('emo_r3', run_name='__main__')"
    done = subprocess.run(
        [tmp_path / "env/bin/python", "-c", code, "predict", "night.png", "--format", "json"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert str(site) in done.stderr
    (row,) = json.loads(done.stdout)
    assert row["label"] in row["probabilities"]
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-3)
