"""The ground: the tree and the standard library, the direction of imports, what must never be in the code, what is pinned."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CODE = ("platform", "trainables", "serve", "experiments")


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return found


def committed() -> list[Path]:
    """What is, or is about to be, committed: in a copy without git, everything that is not an output."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.split("\0")[:-1] if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    hidden = (".git/", ".venv/", "runs/", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/", ".hypothesis/")
    paths = [ROOT / name for name in names if not name.startswith(hidden) and "__pycache__" not in name]
    return [path for path in paths if path.is_file()]


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTHONPATH")}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | variables
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_platform_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()  # it would shadow the standard library's, and `import ray` dies
    assert not (ROOT / "tests" / "platform").exists()
    assert [path.name for path in (ROOT / "platform").iterdir() if path.name not in ("__pycache__", "recollect")] == []


@pytest.mark.parametrize("flags", [["-c"], ["-P", "-c"]])
def test_the_standard_librarys_platform_is_found_from_the_root(flags: list[str]) -> None:
    done = run(sys.executable, *flags, "import platform; print(platform.system(), platform.__file__)")
    assert done.returncode == 0, done.stderr
    system, file = done.stdout.split(maxsplit=1)
    assert system == os.uname().sysname and Path(file.strip()).parent == Path(os.__file__).parent


def test_a_platform_package_would_shadow_it(tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    assert "has no attribute 'system'" in run(sys.executable, "-c", "import platform; platform.system()", cwd=tmp_path).stderr


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder / "platform"), str(folder)])
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"
    return run(sys.executable, "-P", "-c", code, cwd=folder, PYTHONPATH=paths)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages and the contracts, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in CODE:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_point_down(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("trainables/mguit.py", "import ray", "trainables.mguit -> ray "),
        ("platform/recollect/pipeline.py", "from ray.data import Dataset", "recollect.pipeline -> ray "),
        ("platform/recollect/bundle.py", "import trainables.mguit", "recollect.bundle -> trainables.mguit "),
        ("trainables/mguit.py", "from experiments.stores import streets_store", "trainables.mguit -> experiments.stores "),
        ("experiments/stores.py", "import serve.schema", "experiments.stores -> serve.schema "),
    ],
)
def test_the_import_contracts_bite(tree: Path, file: str, line: str, says: str) -> None:
    with (tree / file).open("a") as stream:
        stream.write(f"\n\ndef _broken() -> None:\n    {line}\n")
    done = lint_imports(tree)
    assert done.returncode == 1 and says in done.stdout, done.stdout + done.stderr


def imports(path: Path) -> Iterator[str]:
    """Every imported name of a file, dotted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[str]:
    """Every called name of a file, dotted as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_ray_serve_is_never_imported_under_the_name_of_our_package() -> None:
    bad = re.compile(r"^\s*from ray import .*\bserve\b|^\s*import ray\.serve as serve\b", re.MULTILINE)
    assert [path for path in python_files(*CODE, "tests") if bad.search(path.read_text())] == []


def test_ray_has_few_doors() -> None:
    """As the contract in pyproject.toml, but of imports inside functions too, and of names."""
    names = ("cluster", "training/launch", "training/giveback", "search/tune", "search/trials", "search/proposals")
    doors = {f"platform/recollect/{name}.py" for name in names}
    users = {
        str(path.relative_to(ROOT))
        for path in python_files("platform", "trainables")
        if any(name.split(".")[0] == "ray" for name in imports(path))
    }
    assert users <= doors


PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_nothing_is_pickled() -> None:
    found = []
    for path in python_files(*CODE):
        found += [(path.name, name) for name in imports(path) if name.split(".")[0] in PICKLES]
        strange = ("torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle")
        found += [(path.name, name) for name in calls(path) if name in strange or name.endswith(".to_pickle")]
    assert found == []


def test_methods_know_nothing_of_devices_ranks_or_disks() -> None:
    for path in python_files("trainables"):
        called = set(calls(path))
        assert not {name for name in called if name.endswith((".cuda", ".cpu")) or name.startswith("torch.distributed")}, path
        assert not called & {"open", "torch.manual_seed", "torch.cuda.is_available"}, path
        assert not {name for name in imports(path) if name.split(".")[0] in ("os", "pathlib", "ray")}, path


def test_nothing_of_a_particular_machine_is_committed() -> None:
    strange = re.compile(  # in pieces, or this file would be found
        "|".join(
            ["/work/" + "shared", "/work/" + "main", "pypi" + r"\.org", "deb" + r"\.debian", "npm" + "js", "/tmp/" + "house"]
        )
    )
    found = []
    for path in committed():
        try:
            match = strange.search(path.read_text())
        except UnicodeDecodeError:
            continue
        if match:
            found.append((str(path.relative_to(ROOT)), match.group()))
    assert found == []


def test_ci_calls_the_makefile_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make setup", "make check", "make test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        found: dict[str, Any] = tomllib.load(stream)["project"]
    return found


def pins() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), "constraints.txt holds exact versions only"
    return {canonicalize_name(name): version for name, version in pairs}


def needed(extra: str) -> set[str]:
    """Every distribution that `recollect[extra]` needs here, by what pyproject.toml and the installed ones say."""
    sections = project()["optional-dependencies"]
    todo = [Requirement(text) for text in [*project()["dependencies"], f"recollect[{extra}]"]]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            if name == "recollect":
                todo += [Requirement(text) for text in sections.get(wanted, [])]
                continue
            for text in metadata.requires(name) or []:
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": wanted}):
                    todo.append(inner)
    return {name for name, _ in seen} - {"recollect"}


def test_every_distribution_is_pinned() -> None:
    pinned = pins()
    assert (pinned["torch"], pinned["torchvision"]) == ("2.14.1", "0.29.2")  # they come as a pair
    wanted = needed("dev")
    assert len(wanted) > 60 and {"torch", "ray", "optuna", "hypothesis", "uvicorn", "lpips"} <= wanted
    assert sorted(wanted - pinned.keys() - {"pip", "setuptools"}) == []  # those two come with the virtual environment


def test_the_pins_satisfy_what_the_project_asks_for() -> None:
    pinned, texts = pins(), [*project()["dependencies"], *sum(project()["optional-dependencies"].values(), [])]
    for requirement in map(Requirement, texts):
        if requirement.name != "recollect":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="{reason}")
def test_one():
    pass

@pytest.mark.xfail(reason="known")
def test_two():
    assert False

def test_three():
    pass
"""


@pytest.mark.parametrize(
    ("reason", "ci", "code"),
    [
        ("no real pictures: there is none", "1", 0),
        ("this laptop is too slow", "1", 1),
        ("this laptop is too slow", "", 0),
    ],
)
def test_in_ci_a_skip_must_be_listed(tmp_path: Path, reason: str, ci: str, code: int) -> None:
    for name in ("conftest.py", "skips.txt"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_some.py").write_text(SKIPPING.format(reason=reason))
    done = run(*PYTEST, cwd=tmp_path, CI=ci)
    assert done.returncode == code, done.stdout
    assert "1 passed, 1 skipped, 1 xfailed" in done.stdout
    assert ("that tests/skips.txt does not list" in done.stdout) == bool(code)
    assert (f"test_some.py::test_one: {reason}" in done.stdout) == bool(code)


def test_a_skipped_file_counts_too(tmp_path: Path) -> None:
    for name in ("conftest.py", "skips.txt"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_some.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    done = run(*PYTEST, cwd=tmp_path, CI="true")
    assert done.returncode == 1 and "no_such_module" in done.stdout


def test_every_skip_that_is_written_is_listed() -> None:
    listed = [line.partition("#")[0].strip() for line in (ROOT / "tests" / "skips.txt").read_text().splitlines()]
    starts = tuple(line for line in listed if line)
    written = re.compile(r'(?:pytest\.skip\(|(?:skipif|importorskip)\(.*reason=)"([^"{]+)')
    found = [
        reason
        for path in python_files("tests", "platform", "trainables")
        if path != Path(__file__)
        for reason in written.findall(path.read_text())
    ]
    assert found and [reason for reason in found if not reason.startswith(starts)] == []
    assert [start for start in starts if not any(reason.startswith(start) for reason in found)] == []  # no old ones
