"""The set-up: packages, make, CI, the doctor, and what README.md promises."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import conftest
import psutil
import pytest
import yaml
from packaging.requirements import Requirement

from lowrank_course import cli, data, models

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"torch": "pytorch"}  # everything else has the same name on both sides

# Each room imports only from rooms that stand before it.
ROOMS = [
    "linalg", "data", "measure", "layers", "responses", "ranks", "weighted", "plan", "refit",
    "latency", "compress", "models", "train", "recipes", "demo", "frontier", "plots", "checks",
    "cli", "__main__",
]  # fmt: skip


# ---- packages ----------------------------------------------------------------------------------


def ranges(lines: list[str]) -> dict[str, str]:
    """Name to range, in one spelling."""
    return {need.name: str(need.specifier) for need in map(Requirement, lines)}


def test_conda_says_the_same_as_pip():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = ranges(conda["dependencies"])
    assert len(listed) == len(conda["dependencies"]), "a package stands there twice"
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    assert listed.pop("python") == PROJECT["requires-python"]
    assert listed.pop("pip") == ""
    pip = ranges(PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["grading"])
    assert listed == {CONDA_NAMES.get(name, name): text for name, text in pip.items()}


def test_ranges_not_pins():
    for line in sum(EXTRAS.values(), PROJECT["dependencies"]):
        operators = {part.operator for part in Requirement(line).specifier}
        assert ">=" in operators and operators <= {">=", "<"}, line


def test_every_direct_import_is_declared():
    of_import = {"PIL": "pillow", "sklearn": "scikit-learn"}
    of_import |= {"jupyter_client": "jupyterlab", "cycler": "matplotlib"}  # parts of these
    of_import |= {"IPython": "ipywidgets"}
    declared = set(ranges(PROJECT["dependencies"]))
    for file in (ROOT / "lowrank_course").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {name.split(".")[0] for name in names if not getattr(node, "level", 0)}:
                known = top in sys.stdlib_module_names or top == "lowrank_course"
                assert known or of_import.get(top, top) in declared, f"{file.name}: {top}"


@pytest.mark.slow
def test_a_wheel_holds_all_modules_and_weights(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CONTENT"):
        shutil.copy(ROOT / name, tmp_path)
    copy = shutil.copytree(ROOT / "lowrank_course", tmp_path / "lowrank_course")
    (copy / "weights").mkdir(exist_ok=True)
    (copy / "weights" / "new.safetensors").write_bytes(b"")
    (copy / "weights" / "new.json").write_text("{}")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", tmp_path, tmp_path], check=True)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    kinds = {".py", ".safetensors", ".json"}
    ours = {f.relative_to(tmp_path).as_posix() for f in copy.rglob("*") if f.suffix in kinds}
    assert ours <= held, ours - held


def test_the_module_stays_short():
    files = sorted((ROOT / "lowrank_course").rglob("*.py"))
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    assert not [file.name for file, text in texts.items() if len(text.splitlines()) > 300]
    # To read, not to scroll: docstrings, comments and blank lines help and do not count.
    total = sum(code_lines(text) for file, text in texts.items() if file.parent.name != "checks")
    assert total < 2600


def code_lines(text: str) -> int:
    docs = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return sum(bool(line) and line[0] != "#" and n not in docs for n, line in lines)


def test_rooms_import_one_way():
    files = sorted((ROOT / "lowrank_course").rglob("*.py"))
    for file in [file for file in files if file.stem != "__init__"]:
        room = "checks" if file.parent.name == "checks" else file.stem
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            path = (node.module or "").split(".")
            if not node.level and path.pop(0) != "lowrank_course":
                continue
            for other in [name for name in path if name] or [alias.name for alias in node.names]:
                fits = other == room or ROOMS.index(other) < ROOMS.index(room)
                assert fits, f"{room} imports {other}"


# ---- make and CI -------------------------------------------------------------------------------

STUB = """#!/bin/sh
case "$1" in -c|--version) exit 0;; esac
if [ "$1 $2" = "-m venv" ]; then mkdir -p $3/bin && cp "$0" $3/bin/python; fi
echo "$@" >> {log}
case "$*" in {failing}) exit 1;; esac
"""


@pytest.fixture
def make(tmp_path):
    """Call make in an empty folder, with a shell script in place of Python; gives what it ran."""
    if not shutil.which("make"):
        pytest.skip("needs make, which is not installed here")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    log, python = tmp_path / "log", tmp_path / "stub"

    def call(*words, failing="none"):
        for place in (python, tmp_path / ".venv" / "bin" / "python"):
            if place.parent.exists():
                place.write_text(STUB.format(log=log, failing=failing))
                place.chmod(0o755)
        log.write_text("")
        command = ["make", *words, f"PYTHON={python}"]
        ours = ("PORT", "BROWSER")  # and, where make runs these tests, its own variables
        clean = {k: v for k, v in os.environ.items() if "MAKE" not in k and k not in ours}
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        return done, log.read_text().splitlines()

    return call


def test_make_installs_once_and_again_when_pyproject_changed(make, tmp_path):
    done, ran = make("demo")
    assert done.returncode == 0
    assert ran[0] == "-m venv .venv"
    assert ran[1].startswith("-m pip install") and ran[1].endswith("-e .")
    assert ran[2:] == ["-m lowrank_course demo"]
    assert make("demo")[1] == ["-m lowrank_course demo"]
    later = (tmp_path / ".venv" / ".installed-runtime").stat().st_mtime + 1
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert [line for line in make("demo")[1] if "pip" in line] == [ran[1]]


def test_make_test_installs_tests_and_grading_but_no_peers(make):
    pip = [line for line in make("test")[1] if "pip" in line]
    assert [line.split()[-1] for line in pip] == [".[dev,grading]"]
    assert not [line for line in make("demo")[1] if "pip" in line], "test covers demo"


def test_make_test_runs_every_part_and_fails_if_one_does(make):
    done, ran = make("test")
    parts = [line.split()[-1] for line in ran if "pytest" in line]
    assert parts == ["tests", "notebooks", "solutions", "exercises"]
    assert done.returncode == 0 and "all passed" in done.stdout.splitlines()[-1]
    done, ran = make("test", failing="*notebooks")
    assert [line.split()[-1] for line in ran if "pytest" in line] == parts
    assert done.returncode != 0 and "FAILED in notebooks;" in done.stdout.splitlines()[-1]


def test_make_says_what_to_do_when_the_installation_stops(make, tmp_path):
    done, ran = make("demo", failing="*pip*")
    assert done.returncode != 0 and "give the same command again" in done.stdout
    assert "-m lowrank_course demo" not in ran
    assert any("pip" in line for line in make("demo")[1]), "the next call tries again"


def test_make_leaves_no_half_environment(make, tmp_path):
    assert make("demo", failing="*venv*")[0].returncode != 0
    assert not (tmp_path / ".venv").exists()


def test_make_names_the_missing_python(make, tmp_path):
    tools = tmp_path / "tools"  # a PATH that holds no Python
    tools.mkdir()
    for name in ("make", "sh", "rm", "touch", "id", "echo"):
        (tools / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        ["make", "demo", "PYTHON=none"], cwd=tmp_path, env={"PATH": str(tools)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and "Python 3.11 or newer" in done.stdout


def test_make_lab_asks_the_doctor_first(make):
    ran = make("lab", "PORT=9000", "BROWSER=no")[1][2:]
    assert ran[0] == "-m lowrank_course doctor"
    assert "--port=9000" in ran[1] and "--no-browser" in ran[1]
    assert "notebooks/00_start_here.ipynb" in ran[1]
    assert "--no-browser" not in make("lab")[1][-1]
    done, ran = make("lab", failing="*doctor")
    assert done.returncode != 0 and len(ran) == 1


def test_ci_uses_the_shared_images_by_their_absolute_path(tmp_path):
    here = tmp_path / "clone"
    (here / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", here / ".ci")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("chromium", "chromedriver", "g++", "make"):
        (tools / name).write_text('#!/bin/sh\necho "${LOWRANK_DATA-unset} $LOWRANK_CI $@"\n')
        (tools / name).chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LOWRANK")}
    clean["PATH"] = f"{tools}:{clean['PATH']}"

    def run():
        command = [here / ".ci" / "run"]
        return subprocess.check_output(command, env=clean, text=True, cwd=tmp_path).strip()

    assert run() == "unset 1 test"
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert run() == f"{tmp_path / 'shared' / 'data'} 1 test"


def test_a_missing_tool_skips_here_and_fails_in_ci(monkeypatch):
    mark = pytest.mark.needs("no-such-tool", "nor-this-one").mark
    test = SimpleNamespace(iter_markers=lambda name: [mark] if name == "needs" else [])
    monkeypatch.delenv("LOWRANK_CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs no-such-tool or nor-this-one"):
        conftest.pytest_runtest_setup(test)
    monkeypatch.setenv("LOWRANK_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="needs no-such-tool or nor-this-one"):
        conftest.pytest_runtest_setup(test)
    mark = pytest.mark.needs("no-such-tool", "sh").mark
    conftest.pytest_runtest_setup(test)


def test_the_smoke_profile_of_make_test_downloads_nothing(machine, monkeypatch):
    assert "LOWRANK_PROFILE=smoke" in (ROOT / "Makefile").read_text()
    monkeypatch.setenv("LOWRANK_PROFILE", "smoke")
    monkeypatch.setattr(data.socket, "create_connection", lambda *_, **__: MagicMock())
    monkeypatch.setattr(data, "download", lambda *_: pytest.fail("downloads"))
    with pytest.warns(UserWarning, match="digits"):
        assert data.find_data("auto") == "digits"


# ---- README ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_what_the_readme_names_is_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake (?=[a-z])(\w+)", "\n".join(code(text)))) <= set(targets)
    called = r"(?:-m lowrank_course|lowrank-course) (?=[a-z])(\w+)"
    verbs = re.findall(called, "\n".join(code(text)))
    offered = cli.parser().format_help()
    assert all(re.search(rf"^ +{verb}\b", offered, re.M) for verb in verbs), verbs
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r"`([\w/]+/)`", text)
    assert not [link for link in links if not (ROOT / link).exists()]


def code(text: str) -> list[str]:
    """What stands in backticks or in fences."""
    return re.findall(r"```\w*\n(.*?)```", text, re.S) + re.findall(r"`([^`\n]+)`", text)


# ---- doctor ------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which nothing is wrong, and no connection is made."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LOWRANK_PROFILE", "laptop")
    monkeypatch.setattr(data.socket, "create_connection", lambda *_, **__: 1 / 0)
    return tmp_path


def row(printed: str, name: str) -> str:
    """The line of one check, with its mend."""
    return re.search(rf"^{name} .*\n(?: +-> .*\n)?", printed, re.M)[0]


def ill(capsys) -> str:
    """What the doctor prints, which has to count exactly one thing to mend."""
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "1 to mend" in printed and len(re.findall(r"^\w+ +wrong ", printed, re.M)) == 1
    return printed


def test_doctor_on_a_healthy_machine(machine, capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "wrong" not in printed and printed.splitlines()[-1].startswith("Everything")
    assert "digits stand in" in row(printed, "data")
    assert "of 64 digits" in row(printed, "model")


def test_doctor_finds_a_whole_imagenette(machine, capsys, monkeypatch):
    monkeypatch.setattr(data, "COUNTS", {"train": 2, "val": 1})
    for name in ("train/n1/a.JPEG", "train/n2/b.JPEG", "val/n1/c.JPEG"):
        file = machine / "data" / "imagenette2-160" / name
        file.parent.mkdir(parents=True)
        file.touch()
    assert cli.main(["doctor"]) == 0
    assert "Imagenette, 3 images" in row(capsys.readouterr().out, "data")
    file.unlink()
    assert "0 of 1 images" in row(ill(capsys), "data")


@pytest.mark.parametrize("version, said", [(None, "tqdm is missing"), ("1.0", "tqdm 1.0 is not")])
def test_doctor_names_a_missing_or_old_package(machine, capsys, monkeypatch, version, said):
    real = cli.importlib.metadata.version

    def fake(name):
        if name != "tqdm":
            return real(name)
        if version is None:
            raise cli.importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(cli.importlib.metadata, "version", fake)
    printed = ill(capsys)
    assert said in row(printed, "packages") and "pip install -e ." in printed
    assert "model" not in printed, "the rest cannot be checked"


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
def test_doctor_runs_where_torch_does_not_load(missing):
    program = f"import sys; sys.modules[{missing!r}] = None\n"
    program += "from lowrank_course.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "torch and torchvision do not load" in done.stdout and "in one go" in done.stdout


@pytest.mark.parametrize(
    "setting, value, name, said",
    [
        ("LOWRANK_PROFILE", "fast", "profile", "smoke, laptop, full"),
        ("LOWRANK_DATA", "{tmp}/none", "data", "is no folder"),
        ("LOWRANK_CACHE", "{tmp}/file/cache", "cache", "set LOWRANK_CACHE"),
        ("JUPYTER_PATH", "{tmp}/jupyter", "kernel", "would run in /another/python"),
    ],
)
def test_doctor_names_a_wrong_setting(machine, capsys, monkeypatch, setting, value, name, said):
    (machine / "file").touch()
    spec = machine / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/another/python"], "display_name": "Python 3"}))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv(setting, value.format(tmp=machine))
    assert said.format(tmp=machine) in row(ill(capsys), name)


def test_doctor_finds_a_read_only_folder_without_images(machine, capsys, monkeypatch):
    monkeypatch.setattr(cli.os, "access", lambda *_: False)  # root may write anywhere
    assert "read-only" in row(ill(capsys), "data")


def test_doctor_finds_a_full_disk(machine, capsys, monkeypatch):
    usage = shutil.disk_usage(machine)._replace(free=10**9)
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda _: usage)
    assert "another disk" in row(ill(capsys), "disk")


def test_doctor_finds_no_kernel(machine, capsys, monkeypatch):
    from jupyter_client import kernelspec

    monkeypatch.setattr(
        kernelspec.KernelSpecManager, "get_kernel_spec", lambda *_: {}["no such kernel"]
    )
    assert "ipykernel install" in row(ill(capsys), "kernel")


def test_doctor_finds_missing_weights(machine, capsys, monkeypatch):
    monkeypatch.setattr(models, "WEIGHTS", machine)
    assert "pip install -e ." in row(ill(capsys), "model")


def test_little_memory_is_a_note(machine, capsys, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert cli.main(["doctor"]) == 0
    assert "close other programs" in row(capsys.readouterr().out, "memory")


def test_errors_are_one_line_and_status_1(capsys, monkeypatch):
    def fails(args):
        raise ValueError("rank=0 is below 1")

    monkeypatch.setattr(cli, "doctor", fails)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "lowrank-course doctor: rank=0 is below 1\n"
