"""Reports of a small model of two tasks: what they say, that it is so, how they look, and what is refused."""

import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jschon
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import patchloom
from examples.fashion_scenes.model import TASKS, FashionSceneViT
from patchloom import cli
from patchloom.boards.board import BOARDS
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import ClippedWarning
from patchloom.compiler.quantise import Precision
from patchloom.reporting import words
from patchloom.reporting.making import samples_of
from patchloom.reporting.overrides import candidates, merged
from patchloom.reporting.page import body, page, picture
from patchloom.reporting.report import Change, Override, Quality, Report, schema
from patchloom.reporting.trace import trace
from tests.compiler.graphs import sqnr, transformer

ROOT = Path(__file__).parents[3]
SIZES = {"dim": 16, "depth": 2, "heads": 2, "hidden": 32, "experts": 4, "expert_hidden": 16}
FRAMES = 3


def pictures(count, seed):
    return np.random.default_rng(seed).random((count, 1, 64, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = FashionSceneViT(**SIZES).eval()
    for parameter in made.parameters():  # gates that differ, biases that are not zero
        torch.nn.init.normal_(parameter, std=0.15)
    return made


def compiled(model, **overrides):
    return patchloom.compile(
        model, (torch.zeros(1, 1, 64, 128), 0), tasks=TASKS, calibration=pictures(2, 0), precision="w8a8",
        overrides={"blocks.0.mlp.fc2": "w4a8", **overrides},
    )  # fmt: skip


@pytest.fixture(scope="module")
def program(model):
    return compiled(model)


def reported(program, model, **options):
    return patchloom.report(
        program, model, pictures(4, 1), example_inputs=(torch.zeros(1, 1, 64, 128), 0), calibration=pictures(2, 0),
        **{"frames": FRAMES, "tries": 1, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(program, model):
    return reported(program, model)


# --- What it says ---


def in_float(model, number, images):
    with torch.no_grad():
        return model(torch.from_numpy(images), number).numpy()


def test_outputs_are_as_near_as_they_say(report, program, model):
    images = pictures(4, 1)[:FRAMES]
    for number, task in enumerate(report.tasks):
        found = patchloom.run(program, images, task=task.name).outputs[task.name]
        each = [sqnr(a, b) for a, b in zip(in_float(model, number, images), found, strict=True)]
        assert task.output.median == pytest.approx(np.median(each), abs=0.05)
        assert task.output.worst == pytest.approx(min(each), abs=0.05)
        assert task.layers[-1].accumulated == task.output
        assert (task.name, task.frames) == (TASKS[number], FRAMES)
        assert task.saturations == patchloom.run(program, images, task=task.name).saturations


def test_cycles_are_the_cycle_models(report, program):
    for task in report.tasks:
        prediction = patchloom.predict(program, pictures(4, 1)[:1], task=task.name)
        assert task.cycles == prediction.cycles == task.commands[-1].units["issuer"][1]
        assert 0 < task.cycles - sum(layer.cycles for layer in task.layers) < 1000  # boot and end
        assert task.bytes == (prediction.beats_read + prediction.beats_written) * program.config.beat_bytes
        assert task.macs == sum(layer.macs for layer in task.layers)
        assert 0 < task.utilisation < 1
        assert all(0 <= layer.utilisation <= 1 for layer in task.layers)
        assert all(sum(layer.waits.values()) < layer.cycles for layer in task.layers if layer.macs)
        assert next(layer for layer in task.layers if layer.name == "blocks.0.mlp.fc1").bytes > 16 * 32


def test_layers_are_the_users(report):
    names = [layer.name for layer in report.tasks[0].layers]
    assert names[:3] == ["image", "add", "patch_embed"]
    assert names[-2:] == ["heads.0", "segmentation"]
    moe = next(layer for layer in report.tasks[0].layers if layer.name == "blocks.1.moe")
    assert "examples/fashion_scenes/model.py:" in moe.where
    assert moe.routing is not None
    assert moe.routing.tokens == 129 * FRAMES
    fc2 = next(layer for layer in report.tasks[0].layers if layer.name == "blocks.0.mlp.fc2")
    assert fc2.precision == "w4a8"
    assert fc2.reach[0] == -(2**15) * fc2.step
    assert fc2.calibrated[0] < 0 < fc2.calibrated[1]
    assert sum(layer.share for layer in report.tasks[0].layers) == pytest.approx(1)
    assert report.tasks[0].losses[0].share == max(layer.share for layer in report.tasks[0].layers)


def test_bits_used(report):
    layer = replace(report.tasks[0].layers[0], bits=16, reach=(-8.0, 7.9))
    for seen, used in (((-1.0, 0.5), 13), ((0.0, 8.0), 16), ((0.0, 99.0), 16), ((0.0, 0.0), 0)):
        assert replace(layer, seen=seen).used == used
    assert words.used(replace(layer, seen=(-1.0, 0.5))) == "13.0/16"


def test_what_an_override_gains_is_what_it_gains(report, program, model):
    override = report.overrides[0]
    assert override.gain == max(one.gain for one in report.overrides)
    better, images = compiled(model, **override.layers), pictures(4, 1)[:FRAMES]
    assert override.bytes == len(better.image) - len(program.image)
    for number, change in enumerate(override.changes):
        found = patchloom.run(better, images, task=change.task).outputs[change.task]
        each = [sqnr(a, b) for a, b in zip(in_float(model, number, images), found, strict=True)]
        assert change.output.median == pytest.approx(np.median(each), abs=0.05)
        assert change.gain == pytest.approx(np.median(each) - report.tasks[number].output.median, abs=0.1)
        assert change.cycles == patchloom.predict(better, images[:1], task=change.task).cycles


def test_cycles_are_of_the_boards_memory(program, model):
    found = reported(replace(program, board="ulx3s_85f"), model, frames=1, tries=0)
    memory = BOARDS["ulx3s_85f"].memory.timing
    assert (found.board, found.memory) == ("ulx3s_85f", memory)
    images = pictures(4, 1)[:1]
    assert found.tasks[0].cycles == patchloom.predict(program, images, task="segmentation", **memory).cycles


def test_data_by_name_and_out_of_range(program, model, report):
    with pytest.warns(ClippedWarning, match="input 'image': 100% of its values do not fit"):
        samples_of(program.tasks[0], {"image": 99 + pictures(2, 1), "other": 1}, 1)
    few = samples_of(program.tasks[0], pictures(4, 1), 3)
    assert [sample["image"].shape for sample in few] == [(1, 64, 128)] * 3


def test_no_more_pictures_are_read_than_looked_at(program, tmp_path):
    port = replace(
        program.tasks[0].inputs[0], preprocessing=patchloom.Preprocessing(size=(64, 128), mean=(0.0,), std=(1.0,))
    )
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(tmp_path / "a.png")
    task, paths = replace(program.tasks[0], inputs=(port,)), [tmp_path / "a.png", tmp_path / "nowhere.png"]
    for data in (paths, {"image": paths}):
        assert len(samples_of(task, data, 1)) == 1


def test_tries_are_as_many_as_asked(program, model, report):
    assert reported(program, model, frames=1, tries=0).overrides == ()
    assert 1 <= len(report.overrides) <= 2 * 4


def override(gain, **layers):
    return Override(layers, (Change("main", Quality(30, 29), gain, 7),), 0, "")


def test_candidates_widen_a_layer_or_what_reads_it():
    graph = transformer(layers=1)
    nodes = {node.name: node for node in graph.nodes()}
    narrow = Precision.parse("w4a8", {"layer0.fc2": "w16a8"})
    assert list(candidates(graph, nodes["layer0.fc1"], narrow)) == [
        {"layer0.fc1": "w8a8"}, {"layer0.fc1": "w4a16"}, {"layer0.fc1": "w8a16"}, {"layer0.fc2": "w16a16"},
    ]  # fmt: skip
    assert list(candidates(graph, nodes["x"], Precision.parse("w8a8"))) == [{"embed": "w8a16"}]
    assert list(candidates(graph, nodes["layer0.fc1"], Precision.parse("w16a16"))) == []


def test_the_best_of_each_layer_go_together():
    several = [override(3, a="w16a16"), override(2, b="w8a16"), override(1, a="w8a16"), override(1, b="w8a8", c="w8a8")]
    assert merged(several) == {"a": "w16a16", "b": "w8a16"}


# --- What is refused ---


def test_a_program_of_other_weights_is_refused(program):
    torch.manual_seed(1)
    with pytest.raises(InputError, match="must be made of this model and these samples, and is not: compile it again"):
        reported(program, FashionSceneViT(**SIZES).eval())


def test_a_program_of_other_tasks_is_refused(program, model):
    renamed = tuple(replace(task, name=name) for task, name in zip(program.tasks, ("depth", "other"), strict=True))
    with pytest.raises(InputError, match="must have the model's layers, and has others"):
        reported(replace(program, tasks=renamed), model)


@pytest.mark.parametrize("options", [{"frames": 0}, {"tries": -1}])
def test_numbers_are_refused(options, program, model):
    [(name, value)] = options.items()
    with pytest.raises(InputError, match=f"{name} must be at least {value + 1}, not {value}"):
        reported(program, model, **options)


# --- As JSON ---


def test_json_and_back(report):
    assert Report.from_json(report.to_json()) == report


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what jschon imports
def test_json_is_of_the_schema(report):
    jschon.create_catalog("2020-12")
    stated = jschon.JSONSchema(schema())
    assert stated.validate().valid
    document = json.loads(report.to_json())
    assert stated.evaluate(jschon.JSON(document)).valid
    for damage in (
        lambda d: d.pop("machine"),
        lambda d: d.update(more=1),
        lambda d: d.update(version=2),
        lambda d: d["tasks"][0].update(cycles="many"),
        lambda d: d["tasks"][0]["layers"][0].update(alone=None),
        lambda d: d["tasks"][0]["layers"][0].update(reach=[1.0]),
    ):
        damaged = json.loads(report.to_json())
        damage(damaged)
        assert not stated.evaluate(jschon.JSON(damaged)).valid


def test_the_schema_is_published():
    published = ROOT / "docs" / "report.schema.json"
    assert published.read_text() == json.dumps(schema(), indent=1) + "\n", "make docs; and another VERSION?"


@pytest.mark.parametrize(("edit", "text"), [
    (lambda d: d.update(version=2), "a report must be of version 1, not 2"),
    (lambda d: d.update(format="cake"), "a report must have the format 'patchloom report'"),
    (lambda d: d.pop("tasks"), "Report must have precision, board"),
    (lambda d: d["tasks"][0].update(more=1), "TaskReport must have name, frames"),
])  # fmt: skip
def test_another_json_is_refused(edit, text, report):
    document = json.loads(report.to_json())
    edit(document)
    with pytest.raises(ValueError, match=text):
        Report.from_json(json.dumps(document))


# --- As it looks ---


def test_the_page_needs_nothing_else(report):
    made = page(report)
    for name in ("<script", "src=", "href=", "url(", "@import"):
        assert name not in made
    assert made.count("http") == made.count('xmlns="http://www.w3.org/2000/svg"') == 4
    for layer in report.tasks[0].layers:
        assert layer.name in made
        assert layer.where in made
    worst = [made.index(f">{layer.name}</text>") for layer in report.tasks[0].losses[: words.SHOWN]]
    assert worst == sorted(worst)
    assert report._repr_html_() == body(report)
    assert body(report) in made


def test_names_do_no_harm(report):
    evil = "<script>alert(1)</script>&"
    layers = (replace(report.tasks[0].layers[0], name=evil, where=evil, share=1.0), *report.tasks[0].layers[1:])
    task = replace(report.tasks[0], layers=layers, name=evil)
    made = page(replace(report, tasks=(task, report.tasks[1]), board=evil, overrides=(override(3, **{evil: "w8a8"}),)))
    assert "<script" not in made
    assert "&lt;script&gt;" in made


def test_the_picture_is_svg(report):
    root = ET.fromstring(picture(report.tasks[0]))
    text = " ".join(root.itertext())
    assert words.share(report.tasks[0].losses[0].share) in text


def test_long_names_are_cut_at_the_front():
    assert words.short("a" * 34) == "a" * 34
    assert words.short("x" * 40 + ".fc2") == "..." + "x" * 27 + ".fc2"


def test_trace(report):
    document = json.loads(trace(report))
    events = document["traceEvents"]
    for process, task in enumerate(report.tasks, 1):
        for thread, unit in enumerate(("issuer", "stager", "fetcher"), 1):
            spans = [e for e in events if (e["ph"], e["pid"], e["tid"]) == ("X", process, thread)]
            assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(spans))
            assert spans[-1]["ts"] + spans[-1]["dur"] == task.cycles
            assert all(name.startswith(f"{unit}.") for span in spans for name in span["args"]["waits"])
        issued = [e["name"] for e in events if (e["ph"], e["pid"], e["tid"]) == ("X", process, 1)]
        assert "blocks.1.moe: route" in issued
        named = {e["args"]["layer"] for e in events if e["ph"] == "X" and e["pid"] == process}
        assert "blocks.1.moe" in named


# --- From a shell ---


@pytest.fixture
def folder(tmp_path, monkeypatch, model, program):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.out, "width", 80, raising=False)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    np.save("samples.npy", pictures(2, 0))
    np.save("images.npy", pictures(4, 1))
    Path("design.yaml").write_text(
        "module: examples.fashion_scenes.model:FashionSceneViT\n"
        f"arguments: {json.dumps(SIZES)}\ncheckpoint: weights.safetensors\ntasks: [segmentation, depth]\n"
        "calibration: {file: samples.npy}\noverrides: {blocks.0.mlp.fc2: w4a8}\n"
    )
    patchloom.save(program, tmp_path / "program")
    return tmp_path


def call(monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", ["patchloom", *line.split()])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code or 0
    return (code, *capsys.readouterr())


REPORT = "report program --design design.yaml --data images.npy --frames 3"


def test_command(folder, monkeypatch, capsys, report):
    line = f"{REPORT} --tries 1 -o made/report.html --trace made/trace.json --json"
    code, out, err = call(monkeypatch, capsys, line)
    assert (code, err) == (0, "")
    found = Report.from_json(out)
    names = {layer.name: layer.alone for layer in found.tasks[1].layers}
    assert names == {layer.name: layer.alone for layer in report.tasks[1].layers}
    assert Path("made/report.html").read_text() == page(found)
    assert Path("made/trace.json").read_text() == trace(found)
    assert sorted(path.name for path in Path("made").iterdir()) == ["report.html", "trace.json"]


def test_table(folder, monkeypatch, capsys, report):
    code, out, err = call(monkeypatch, capsys, f"{REPORT} --tries 0")
    assert (code, err) == (0, "")
    lines = [line.split()[0] for line in out.splitlines() if line.strip()]
    worst = [layer.name for layer in report.tasks[0].losses[:12]]
    start = lines.index(worst[0])
    assert lines[start : start + len(worst)] == worst
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("line", "text"), [
    (f"{REPORT} -o page.txt", "error: --output must end in .html, not 'page.txt'"),
    (f"{REPORT} --trace trace.txt", "error: --trace must end in .json, not 'trace.txt'"),
    ("report program --design nowhere.yaml --data images.npy", "error: nowhere.yaml cannot be read: No such file"),
    ("report program --design design.yaml --data nowhere.npy", "error: nowhere.npy cannot be read: No such file"),
    ("report program --design design.yaml --data design.yaml", "error: design.yaml must be a file that ends in .npy"),
    ("report nowhere --design design.yaml --data images.npy", "cannot be read: No such file or directory"),
])  # fmt: skip
def test_failure(line, text, folder, monkeypatch, capsys):
    before = sorted(folder.rglob("*"))
    code, out, err = call(monkeypatch, capsys, line)
    assert (code, out) == (1, "")
    assert text in err
    assert sorted(folder.rglob("*")) == before
