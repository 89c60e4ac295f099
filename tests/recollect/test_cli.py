"""The command line: a small world from nothing to a translated picture, and what is said when something is wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from recollect import bundle, cli
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.pipeline import Pipeline
from tests.test_public_names import verbs

ROOT = Path(__file__).parents[2]
SMALL = ["width=8", "critic_width=8", "content_blocks=1", "generator_blocks=1", "memory.value_dim=8"]
TINY = ["data.size=32", "engine.steps=2", "engine.batch_size=1", "evaluation.pictures=1", *(f"model.{name}" for name in SMALL)]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The command as `main` runs it: exit code, what went to stdout, what went to stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recollect", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        said = capfd.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small store and a run on it, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("world")
    runner = CliRunner()
    sizes = {"--size": 32, "--train": 5, "--val": 1, "--test": 1, "--references": 1}
    options = [str(word) for pair in sizes.items() for word in pair]
    made = runner.invoke(cli.app, ["data", "streets", str(folder / "store"), *options], catch_exceptions=False)
    assert made.exit_code == 0 and "classes background, car, person, sign" in made.stdout
    assert re.search(r"train +5 sunny, 5 night, 5 rainy, 5 cloudy", made.stdout)
    trained = runner.invoke(
        cli.app,
        ["train", "mguit:tiny", f"data.store={folder / 'store'}", *TINY, "--out", str(folder / "run")],
        catch_exceptions=False,
    )
    assert trained.exit_code == 0 and f"bundle: {folder / 'run' / 'best'}" in trained.stdout
    return folder


def test_every_verbs_help_shows_an_example() -> None:
    for verb in verbs():
        result = CliRunner().invoke(cli.app, [*verb.split(), "--help"], terminal_width=160)
        assert result.exit_code == 0
        assert f"recollect {verb} " in re.sub(r"\s+", " ", result.stdout), verb


def test_examples_are_commands_that_parse() -> None:
    for verb in verbs():
        *name, own = verb.split()
        group = {"data": cli.data, "index": cli.index, "features": cli.features}[name[0]] if name else cli.app
        command = next(c for c in group.registered_commands if (c.name or c.callback.__name__) == own)  # type: ignore[union-attr]
        for line in re.findall(rf"^\s*recollect ({verb} .*?)(?:\\n)?$", str(command.callback.__doc__), re.MULTILINE):
            options = set(re.findall(r"--[a-z-]+", line))
            shown = CliRunner().invoke(cli.app, [*verb.split(), "--help"], terminal_width=200).stdout
            assert all(option in shown for option in options), line


FRESH = """
import sys
from recollect.cli import main
sys.argv = ["recollect", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
heavy = {"torch", "ray", "numpy", "pandas", "pyarrow", "torchvision", "serve"}
print("heavy:", sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "--help"], ["data", "folders", "--help"]])
def test_help_answers_at_once(words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["platform", "."])}
    done = subprocess.run([sys.executable, "-c", FRESH, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stdout.endswith("heavy: []\n"), done.stdout[-200:] + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_the_command_is_installed_and_says_errors_in_one_line(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("recollect")
    words = [command] if command.exists() else [sys.executable, "-m", "recollect.cli"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)])}
    done = subprocess.run([*words, "train", "mguti:tiny"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 'mguti:tiny' is neither a method nor a recipe") and done.stderr.count("\n") == 1


def test_from_a_world_to_a_translation(world: Path, call: Call, tmp_path: Path) -> None:
    code, out, _ = call("data", "show", world / "store")
    assert code == 0 and re.search(r"val +1 sunny, 1 night, 1 rainy, 1 cloudy", out)
    assert Store.open(str(world / "store")).digest in out

    opened = bundle.open_bundle(world / "run" / "best")
    assert opened.run.data.domains == ("sunny", "night") and opened.run.engine.steps == 2
    for what in (world / "run", world / "run" / "best"):
        code, out, _ = call("show", what)
        assert code == 0 and f"digest {opened.digest}" in out and "| self_rec | 10 |" in out
    code, out, _ = call("show", world / "store")
    assert code == 0 and out.startswith(f"store {world / 'store'}")

    picture = tmp_path / "street.png"
    Image.linear_gradient("L").resize((53, 37)).convert("RGB").save(picture)
    target = tmp_path / "out"
    code, out, _ = call("translate", world / "run" / "best", picture, "--to", "night", "--out", target)
    assert (code, out) == (0, f"{target / 'street-night.png'}\n")
    made = Image.open(target / "street-night.png")
    assert (made.size, made.mode) == ((53, 37), "RGB")
    unit = torch.tensor(list(Image.open(picture).get_flattened_data())).view(37, 53, 3).permute(2, 0, 1)[None] / 127.5 - 1
    answer = Pipeline.open(world / "run" / "best")(unit, "night").images[0].permute(1, 2, 0).reshape(-1, 3)
    stored = torch.tensor(list(made.get_flattened_data())) / 127.5 - 1
    assert (stored - answer).abs().max() <= 1 / 127.5  # the file is the pipeline's answer, to a grey level

    code, out, _ = call(
        "translate", world / "run" / "best", picture, "--to", "night", "--samples", 2, "--seed", 7, "--out", target
    )
    assert code == 0 and [Path(line).name for line in out.split()] == ["street-night-7.png", "street-night-8.png"]
    seven, eight = ((target / f"street-night-{seed}.png").read_bytes() for seed in (7, 8))
    assert seven != eight
    call("translate", world / "run" / "best", picture, "--to", "night", "--samples", 1, "--seed", 8, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "street-night-8.png").read_bytes() == eight
    code, *_ = call(
        "translate", world / "run" / "best", picture, "--to", "sunny", "--exemplar", target / "street-night.png", "--out", target
    )
    assert code == 0 and Image.open(target / "street-sunny.png").size == (53, 37)


def test_places_that_cannot_be_written_to_are_refused_in_a_line(world: Path, call: Call) -> None:
    words = ["train", "mguit:tiny", f"data.store={world}/store", *TINY, "--out"]
    code, _, error = call(*words, "s3://bucket/run?region=here", "--workers", 1)
    assert code == 2 and "a run's place is a URI without a query" in error
    code, _, error = call(*words, "s3://bucket/run")
    assert code == 2 and "with --workers 1 it can go to a URI" in error
    code, _, error = call(*words, "s3://bucket/run", "--min-workers", 1)
    assert code == 2 and "say --workers too" in error


def test_a_second_run_in_the_same_place_must_resume(world: Path, call: Call, tmp_path: Path) -> None:
    run = shutil.copytree(world / "run", tmp_path / "run")
    words = ["train", "mguit:tiny", f"data.store={world / 'store'}", *TINY, "--out", run]
    code, _, error = call(*words)
    assert code == 2 and "holds a run already; resume it (--resume)" in error
    code, _, error = call("train", "mguit:tiny", "--resume", "--out", run)
    assert code == 2 and "leave 'mguit:tiny' out" in error
    for change in ("seed=7", "engine.batch_size=2", "data.flip=false", "model.memory.read_temperature=0.5"):
        code, _, error = call("train", "--resume", change, "--out", run)
        assert code == 2 and "was trained with another" in error
    code, out, _ = call("train", "--resume", "engine.steps=3", "--out", run)
    assert code == 0 and bundle.open_bundle(run / "last").metrics()[-1]["step"] == 3
    assert bundle.open_bundle(run / "last").run.model == bundle.open_bundle(world / "run" / "last").run.model
    code, _, error = call("train", "--resume", "--out", tmp_path / "none")
    assert code == 2 and "holds no run to go on with" in error


@pytest.mark.slow
def test_training_on_workers_leaves_and_resumes_the_same_files(
    world: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "night"
    monkeypatch.chdir(world)  # workers stand elsewhere: the relative path must be made whole
    code, out, error = call("train", "mguit:tiny", "data.store=store", *TINY, "engine.batch_size=2", "--workers", 2, "--out", run)
    assert code == 0 and f"bundle: {run / 'best'}" in out, error
    assert bundle.open_bundle(run / "last").metrics()[-1]["step"] == 2 and not (run / "ray").exists()
    assert bundle.open_bundle(run / "last").run.name == "night", "a run without a name is called after its folder"
    code, _, error = call("train", "mguit:tiny", f"data.store={world / 'store'}", *TINY, "--workers", 2, "--out", run)
    assert code == 2 and "--resume" in error
    code, _, error = call("train", "--resume", "engine.steps=3", "--workers", 2, "--out", run)
    steps = [row["step"] for row in bundle.open_bundle(run / "last").metrics() if "loss/self_rec" in row]
    assert code == 0 and steps == [2, 3], error


def test_a_dry_run_prints_the_run_and_nothing_else(world: Path, call: Call) -> None:
    code, out, _ = call("train", "mguit:tiny", "engine.steps=7", "weights.con_k=0.3", "--dry-run")
    assert code == 0
    assert Run.model_validate_json(out) == overlay(preset("mguit:tiny"), ["engine.steps=7", "weights.con_k=0.3"])
    assert list(json.loads(out)) == ["name", "data", "model", "weights", "optimisers", "engine", "evaluation", "seed"]
    code, out, error = call(
        "train", "mguit:tiny", f"data.store={world / 'store'}", "model.memory.items_per_class.sign=4", "--dry-run"
    )
    run = Run.model_validate_json(out)  # what was chosen for the user is said, but not in between
    assert code == 0 and run.data.domains == ("sunny", "night") and "taking sunny and night" in error
    assert run.model.model_dump()["memory"]["items_per_class"] == {"background": 10, "car": 5, "person": 3, "sign": 4}


def test_folders_of_photographs_become_a_store_and_its_classes_can_be_set(call: Call, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in ("trainA", "trainB"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            pixels = torch.randint(0, 256, (24, 30, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos" / "trainA" / "broken.png").write_bytes(b"\x89PNG and nothing more")
    boxes = {
        "images": [{"id": i, "file_name": f"train{'AB'[i]}/0.png", "width": 30, "height": 24} for i in (0, 1)],
        "annotations": [{"id": i, "image_id": i, "category_id": 3, "bbox": [2, 2, 10, 8], "iscrowd": 0} for i in (0, 1)],
        "categories": [{"id": 3, "name": "tree"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    words = ["data", "folders", tmp_path / "photos", tmp_path / "store", "--names", "summer,winter", "--max-side", 20]
    code, out, error = call(*words, "--boxes", tmp_path / "boxes.json")
    assert code == 0 and "2 summer, 2 winter" in out and "classes background, tree" in out
    assert re.search(r"^skipped .*broken\.png: ", error, re.MULTILINE)
    store = f"data.store={tmp_path / 'store'}"
    code, out, error = call("train", "mguit:tiny", store, "model.memory.items_per_class.tree=6", "--dry-run")
    assert code == 0, error  # a class that only the store knows of
    assert json.loads(out)["model"]["memory"]["items_per_class"] == {"background": 10, "tree": 6}
    assert call(*words[:-4], "--strict", "--names", "summer,winter")[0] == 2
    boxes["images"], boxes["annotations"] = boxes["images"][:1], boxes["annotations"][:1]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert call(*words, "--boxes", tmp_path / "boxes.json")[0] == 0
    code, _, error = call("train", "mguit:tiny", store, "--dry-run")
    assert code == 2 and "nobody annotated the training pictures of 'winter'" in error
    assert call("train", "mguit:tiny", store, "model.memory.use=single", "--dry-run")[0] == 0


def test_the_catalogue_and_the_searchable_fields_are_shown(call: Call) -> None:
    code, out, _ = call("show", "methods")
    assert code == 0 and re.search(r"^mguit: MGUIT: .+\n    presets: tiny, paper, released$", out, re.MULTILINE)
    code, out, _ = call("search", "mguit:tiny", "weights.con_k=0.7", "--fields")
    assert code == 0 and "\nweights.con_k = 0.7   Range(low=0.1, high=10" in out
    assert "model.memory.items_per_class.car = 5   Range(low=2, high=12" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train mguit:tiny", r"which pictures\? give data\.store="),
        ("search --minimise class_found", r"class_found is better when it is higher: --maximise it"),
        ("search --objective scene_eror", r"did you mean 'scene_error'\?"),
        ("search --objective parameters", r"parameters is a cost: name a metric first"),
        ("search --limit speed=3", r"one of parameters, seconds_per_step"),
        ("train mguit:tiny data.store={tmp}/nowhere", r"nowhere"),
        ("train mguit:tiny data.store={store} engine.stesp=3", r"did you mean 'steps'\?"),
        ("train mguit:tiny data.store={store} model.width=many", r"model\.width: .*'many'"),
        ("train mguit:tiny data.store={store} steps", r"'steps' is not of the form name=value"),
        ("train mguit:tiny data.store={store} model.memory.items_per_class.cat=3", r"did you mean 'car'\?"),
        ('train mguit:tiny data.store={store} data.domains=["sunny","nigth"]', r"did you mean 'night'\?"),
        ("train experiments.streets:suny_night", r"did you mean 'sunny_night'\?"),
        ("data show {tmp}/nowhere", r"nowhere"),
        ("data folders {tmp}/nowhere {tmp}/out", r"nowhere"),
        ("data folders {tmp} {tmp}/out --names day", r"--names takes two names with a comma, as in day,night; not 'day'"),
        ("data streets {store} --size 16", r"holds another store"),
        ("show {tmp}/nowhere", r"is no bundle: it has no manifest\.json"),
        ("show {world}", r"is no bundle: it has no manifest\.json"),
        ("translate {bundle} {tmp}/nothing.png --to night", r"nothing\.png"),
        ("translate {bundle} {tmp} --to night", r"directory"),
        ("translate {bundle} {bundle}/README.md --to night", r"README\.md|picture"),
        ("translate {bundle} {bundle}/README.md --to nigth", r"."),
        ("translate {bundle} {tmp}/a.png --to nigth", r"there is no domain 'nigth'; did you mean 'night'\?"),
        ("translate {bundle} {tmp}/a.png --to night --from day", r"there is no domain 'day'"),
        ("translate {bundle} {tmp}/a.png --to night --samples 2 --exemplar {tmp}/a.png", r"leave --samples out"),
        ("translate {store} {tmp}/a.png --to night", r"is no bundle"),
        ("search mguit:tny --fields", r"mguit has no preset 'tny'; did you mean 'tiny'\?"),
        ("evaluate {tmp}/nowhere", r"is no bundle"),
    ],
)
def test_an_error_is_one_line_with_code_2(world: Path, call: Call, tmp_path: Path, words: str, says: str) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    places = {"tmp": tmp_path, "store": world / "store", "world": world, "bundle": world / "run" / "best"}
    code, out, error = call(
        *(word.format(**places) for word in words.split()), *(["--out", tmp_path / "o"] if words[:2] == "tr" else [])
    )
    assert code == 2 and re.search(says, error), error
    last = error.splitlines()[-1]
    assert last.startswith("error: ") and re.search(says, last) and "Traceback" not in error and out == ""
    assert (
        len([line for line in error.splitlines() if not line.startswith("the store has")]) == 1
    )  # nothing but the news of the store


def test_a_misspelt_verb_or_option_is_told(call: Call) -> None:
    for words in (["trian"], ["train", "mguit:tiny", "--wrokers", "2"], ["data", "street", "x"]):
        code, _, error = call(*words)
        assert code == 2 and ("No such" in error), error
