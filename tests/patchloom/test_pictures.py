"""Pictures from files: what reaches the model, and what is refused."""

import shutil
import struct
import sys
import warnings
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchloom
from patchloom import cli, design
from patchloom.compiler.machine.errors import InputError, MissingExtraError
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.pictures import PictureWarning, read_pictures
from tests.host.fake import FakeDevice
from tests.host.programs import ELEMENTS, SHAPE, copying
from tests.patchloom.models import Patches

SIZE = 4, 6
RGB = Preprocessing(size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
GREY = Preprocessing(size=SIZE, mean=(0.0,), std=(1.0,), divide=1)
NEAREST = {"resize": "crop", "interpolation": "nearest"}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def like(preprocessing: Preprocessing, **changes) -> Preprocessing:
    return Preprocessing(**vars(preprocessing) | changes)


def saved(picture, name: str = "a.png", **options) -> str:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(name, **options)
    return name


def grey(value, **changes) -> np.ndarray:
    """What a model of one channel gets, as bytes again, [height, width] of each picture."""
    values = read_pictures("x", value, like(GREY, **changes))
    return values[..., 0, :, :].astype(np.uint8)


def refusal(function, *arguments, kind=InputError, **options) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    return str(caught.value)


# --- Right ---


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg"])
def test_a_file_is_the_array_that_pillow_reads(name):
    saved(noise(*SIZE, 3), name)
    bytes_ = torch.from_numpy(np.array(Image.open(name))).permute(2, 0, 1).float()
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (RGB.mean, RGB.std))
    np.testing.assert_array_equal(read_pictures("x", name, RGB), (bytes_ / 255 - mean) / std)


def test_a_list_is_a_batch_of_files_and_arrays():
    first, second = noise(*SIZE), noise(*SIZE, seed=1)
    np.testing.assert_array_equal(grey([saved(first), second, Path("a.png")]), [first, second, first])
    assert grey("a.png").shape == SIZE


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("made", [GREY, RGB], ids=["grey", "RGB"])
def test_every_mode_of_png_that_is_opaque(mode, made):
    source = Image.fromarray(noise(*SIZE, 3)).convert("L" if mode in "1LA" else "RGB").convert(mode)
    colours, channels = source.convert("RGBA").convert("RGB"), made.channels
    expected = np.asarray(colours if channels == 3 else colours.convert("L")).reshape(*SIZE, channels)
    path = saved(source)
    differs = (mode in ("1", "L", "LA")) == (channels == 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        values = read_pictures("x", path, like(made, layout="HWC", mean=[0] * channels, std=[1] * channels, divide=1))
    np.testing.assert_array_equal(values, expected)
    assert [w.category for w in told] == [PictureWarning] * differs


def test_conversions_are_told_once():
    for name in ("a.png", "b.png"):
        saved(noise(*SIZE), name)
    with pytest.warns(PictureWarning) as told:
        read_pictures("input 'x'", ["a.png", "b.png"], RGB)
    assert [str(w.message) for w in told] == ["input 'x': a.png and 1 more is grey and became three equal channels"]
    with pytest.warns(PictureWarning, match=r"b\.png has colours and became grey"):
        read_pictures("input 'x'", saved(noise(*SIZE, 3), "b.png"), GREY)


@pytest.mark.parametrize("turned", range(1, 9))
def test_exif_turns_a_picture_upright(turned):
    upright = noise(*SIZE)
    undo = [lambda x: x, np.fliplr, lambda x: x[::-1, ::-1], np.flipud, np.transpose, np.rot90,
            lambda x: x[::-1, ::-1].T, lambda x: np.rot90(x, -1)][turned - 1]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turned
    np.testing.assert_array_equal(grey(saved(np.ascontiguousarray(undo(upright)), exif=exif)), upright)


def test_few_bits_a_value_reach_white():
    """As PNG scales them."""
    np.testing.assert_array_equal(grey(raw_png(2, bytes([0b00011011, 0b00011011]))), [[0, 85, 170, 255, 0, 85]] * 4)


# --- Sizes ---

WIDE = noise(8, 16)  # Pillow's nearest neighbour of a factor of 2 takes the odd rows and columns
HALF = WIDE[1::2, 1::2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": (4, 4)}, HALF[:, 2:6]),
        ({"size": (4, 4), "resize": "squash"}, WIDE[1::2, 2::4]),
        ({"size": (4, 4), "crop_pct": 0.5}, WIDE[2:6, 6:10]),
        ({"size": (2, 4)}, WIDE[2::4, 2::4]),
        ({"size": (2, 8)}, HALF[1:3]),
        ({"size": (4, 6)}, HALF[:, 1:7]),
        ({"size": (3, 5), "crop_pct": 0.6}, None),  # 3 / 0.6 is 5 and 5 / 0.6 is 8: a ratio of 8 / 5
    ],
)
@pytest.mark.parametrize("as_array", [False, True], ids=["file", "array"])
def test_sizes(changes, expected, as_array):
    if expected is None:
        resized = Image.fromarray(WIDE).resize((10, 5), Image.Resampling.NEAREST)
        expected = np.asarray(resized)[1:4, 2:7]
    given = WIDE if as_array else saved(WIDE)
    np.testing.assert_array_equal(grey(given, **NEAREST | changes), expected)
    turned = given.T if as_array else saved(np.ascontiguousarray(WIDE.T), "b.png")
    size = changes["size"]
    if len(set(size)) == 1 and "resize" not in changes:
        np.testing.assert_array_equal(grey(turned, **NEAREST | changes), expected.T)


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_interpolation_is_pillows(interpolation):
    picture = noise(9, 13, 3)
    made = like(RGB, size=(5, 7), resize="squash", interpolation=interpolation, layout="HWC")
    resized = np.asarray(Image.fromarray(picture).resize((7, 5), Image.Resampling[interpolation.upper()]))
    expected = made.applied("x", resized)
    np.testing.assert_array_equal(read_pictures("x", saved(picture), made), expected)
    np.testing.assert_array_equal(read_pictures("x", picture.transpose(2, 0, 1)[None], made)[0], expected)


def test_a_file_of_the_models_size_is_still_cut_and_an_array_is_not():
    made = {"size": (8, 16), "crop_pct": 0.5} | NEAREST
    double = WIDE.repeat(2, 0).repeat(2, 1)[4:12, 8:24]
    np.testing.assert_array_equal(grey(saved(WIDE), **made), double)
    np.testing.assert_array_equal(grey([WIDE], **made)[0], WIDE)
    assert read_pictures("x", WIDE, like(GREY, **made)) is WIDE  # as it is, for `input_frames`


# --- Refused ---


def raw_png(depth: int, row: bytes, colour: int = 0) -> str:
    """A PNG of SIZE whose rows are all the same."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress((b"\0" + row) * SIZE[0])) + chunk(b"IEND", b"")
    Path("raw.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return "raw.png"


def encoded(picture: np.ndarray, kind: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


def damaged(name: str, change) -> str:
    raw = bytearray(encoded(noise(64, 64, 3), "PNG" if name.endswith("png") else "JPEG"))
    Path(name).write_bytes(change(raw))
    return name


def flipped(raw: bytearray) -> bytearray:
    raw[len(raw) // 2] ^= 1
    return raw


def transparent(mode: str) -> str:
    image = Image.fromarray(noise(*SIZE, 3)).convert("L" if mode == "LA" else "RGB").convert(mode)
    image.putpixel((2, 1), (*(0,) * (len(mode) - 1), 254))
    return saved(image)


REFUSED = {
    "transparent": (lambda: transparent("RGBA"), "a.png is transparent in places: save it with the background"),
    "transparent grey": (lambda: transparent("LA"), "a.png is transparent in places"),
    "transparent colour": (lambda: saved(np.zeros(SIZE, np.uint8), transparency=0), "a.png is transparent in places"),
    "16 bits grey": (lambda: raw_png(16, bytes(12)), "raw.png has 16 bits a value: save it with 8"),
    "16 bits RGB": (lambda: raw_png(16, bytes(36), 2), "raw.png has 16 bits a value: save it with 8"),
    "CMYK": (lambda: saved(Image.new("CMYK", (6, 4)), "a.jpg"), "a.jpg has colours of type CMYK: save it in RGB"),
    "animated": (
        lambda: saved(noise(*SIZE), save_all=True, append_images=[Image.fromarray(noise(*SIZE, seed=1))]),
        "a.png is animated: save the one frame that is meant",
    ),
    "torn PNG": (lambda: damaged("a.png", lambda raw: raw[:-500]), "a.png cannot be read: "),
    "torn JPEG": (lambda: damaged("a.jpg", lambda raw: raw[:-500]), "a.jpg cannot be read: image file is truncated"),
    "flipped bit of a PNG": (lambda: damaged("a.png", flipped), "a.png cannot be read: "),
    "empty": (lambda: damaged("a.png", lambda raw: b""), "a.png is neither a PNG nor a JPEG picture"),
    "GIF": (lambda: saved(noise(*SIZE), "a.png", format="GIF"), "a.png is neither a PNG nor a JPEG picture"),
    "other name": (lambda: saved(noise(*SIZE), "a.gif"), "a.gif must be a picture that ends in .png, .jpg, .jpeg"),
    "no file": (lambda: "no.png", "no.png cannot be read: No such file or directory"),
    "nothing": (lambda: "a\0.png", "cannot be read: "),
    "folder": (lambda: Path("d.png").mkdir() or "d.png", "d.png must be a file"),
    "size": (lambda: saved(noise(5, 6)), "a.png must have 4 x 6 pixels, not 5 x 6: the preprocessing that the Program"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, text = REFUSED[name]
    said = refusal(read_pictures, "input 'x'", make(), RGB)
    assert said.startswith("input 'x': ")
    assert text in said
    assert "BytesIO" not in said


def test_more_pixels_than_pillow_allows(monkeypatch):
    saved(noise(8, 600))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert "a.png has more than 3000 pixels" in refusal(read_pictures, "x", "a.png", GREY)
    thin = noise(1, 2000)
    said = refusal(read_pictures, "x", thin, like(GREY, size=(4, 4), **NEAREST))
    assert said == "x would be scaled to 4 x 8000 pixels, more than Pillow allows"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            lambda: ["a.png", np.zeros((1, *SIZE), np.float32)],
            "must be a list of pictures (paths and uint8 arrays) or of",
        ),
        (lambda: ["a.png", 3], "must be a list of pictures"),
        (lambda: ["a.png", noise(1, *SIZE, 1)], "must be a list of single pictures, not of shape [1, 4, 6, 1]"),
        (lambda: Image.open("a.png"), "must be the path of a picture or an array, not a PIL.Image"),
        (lambda: [Image.open("a.png")], "must be the path of a picture or an array, not a PIL.Image"),
    ],
)
def test_values_that_are_refused(value, text):
    saved(noise(*SIZE))
    assert text in refusal(read_pictures, "x", value(), GREY)


def test_what_is_no_picture_is_left_as_it_is():
    for value in (np.zeros(3), [], [1, 2], [np.zeros(3)], torch.zeros(3), None, noise(*SIZE)):
        assert read_pictures("x", value, GREY) is value
    for value in (noise(9, 9), [noise(9, 9)]):  # numbers, without preprocessing
        assert read_pictures("x", value, None) is value


def test_pictures_need_a_preprocessing():
    text = refusal(read_pictures, "x", "a.png", None)
    assert text.startswith("x must be arrays: pictures need a preprocessing, and there is none: patchloom.compile(")


def test_without_pillow_the_extra_is_named(monkeypatch):
    saved(noise(*SIZE))
    monkeypatch.setitem(sys.modules, "PIL", None)
    hint = "needs PIL: pip install 'patchloom[images]'"
    assert refusal(read_pictures, "x", "a.png", GREY, kind=MissingExtraError) == f"x: the picture a.png {hint}"
    resized = like(GREY, **NEAREST)
    assert refusal(read_pictures, "x", noise(9, 9), resized, kind=MissingExtraError) == f"x: resizing {hint}"
    np.testing.assert_array_equal(read_pictures("x", noise(*SIZE), resized), noise(*SIZE))


# --- The way through ---


TIMM = {"input_size": (3, 8, 12), "mean": RGB.mean, "std": RGB.std, "crop_pct": 0.9, "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Patches().eval()


@pytest.fixture(scope="module")
def program(model):
    return patchloom.compile(model, torch.zeros(1, 3, 8, 12), calibration=noise(4, 8, 12, 3), preprocessing=TIMM)


@pytest.fixture
def photos():
    return [saved(noise(20, 30, 3, seed=seed), f"{seed}.{kind}") for seed, kind in enumerate(("png", "jpg", "jpeg"))]


def test_calibration_and_inputs_go_the_same_way(model, program, photos):
    """Floats that are what the pictures become give the same Program and the same result."""
    [port] = program.tasks[0].inputs
    floats = read_pictures("x", photos, port.preprocessing)
    example = torch.zeros(1, 3, 8, 12)
    made = patchloom.compile(model, example, calibration=photos, preprocessing=TIMM)
    again = patchloom.compile(model, example, calibration=floats)
    assert made.image == again.image
    expected = patchloom.run(again, floats)
    with torch.no_grad():
        np.testing.assert_allclose(expected.outputs["main"], model(torch.from_numpy(floats)), atol=0.1)
    for given in (photos, {"image": photos}, (photos,)):
        np.testing.assert_array_equal(patchloom.run(made, given).raw["main"], expected.raw["main"])
    one = patchloom.run(made, Path(photos[1]))
    np.testing.assert_array_equal(one.raw["main"], expected.raw["main"][1])
    assert patchloom.predict(made, photos[0]).cycles == patchloom.predict(again, floats[0]).cycles


def test_a_preprocessing_of_another_shape_is_refused(model):
    text = refusal(
        patchloom.compile, model, torch.zeros(1, 3, 8, 12), calibration=noise(4, 8, 12, 3),
        preprocessing=TIMM | {"input_size": (3, 12, 8)}, kind=patchloom.Error,
    )  # fmt: skip
    assert text == "preprocessing of 'image' gives [3, 12, 8] (CHW), the model takes [3, 8, 12]"


def test_sessions_take_pictures():
    made = Preprocessing(size=SHAPE, mean=(128,), std=(1,), divide=1, layout="HW")
    program = copying(patchloom.Config(), "depth")
    [task] = program.tasks
    inputs = tuple(replace(port, preprocessing=made) for port in task.inputs)
    program = replace(program, tasks=(replace(task, inputs=inputs),))
    picture = np.random.default_rng(0).integers(120, 136, SHAPE, dtype=np.uint8)
    with patchloom.Session(FakeDevice(program.config, 2 * ELEMENTS), program) as session:
        for given in (picture, saved(picture)):
            np.testing.assert_array_equal(session.run(given).outputs["y"], picture.astype(float) - 128)


@pytest.fixture
def call(monkeypatch, capsys):
    """Exit code and error output of a command line."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["patchloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, capsys.readouterr().err

    return run


def test_the_command_line_takes_pictures(program, photos, call):
    patchloom.save(program, Path("program"))
    expected = patchloom.run(program, photos)
    for count, given in ((1, photos[:1]), (3, photos)):
        assert call("run", "program", *given, "--output", "out.npz") == (0, "")
        with np.load("out.npz") as results:
            wanted = expected.raw["main"] if count > 1 else expected.raw["main"][0]
            np.testing.assert_array_equal(results["raw/main"], wanted)
    Path("folder").mkdir()
    for path in photos:
        shutil.copy(path, "folder")
    Path("folder/notes.txt").write_text("mine")
    assert call("run", "program", "folder", "--output", "out.npz", "--json") == (0, "")
    with np.load("out.npz") as results:
        np.testing.assert_array_equal(results["raw/main"], patchloom.run(program, sorted(photos)).raw["main"])
    np.save("bytes.npy", noise(2, 3, 8, 12))
    assert call("run", "program", "bytes.npy", "--output", "out.npz") == (0, "")
    with np.load("out.npz") as results:
        np.testing.assert_array_equal(
            results["raw/main"], patchloom.run(program, noise(2, 3, 8, 12).transpose(0, 2, 3, 1)).raw["main"]
        )


def test_the_command_line_tells_what_is_wrong(program, photos, call):
    patchloom.save(program, Path("program"))
    Path("photos").mkdir()
    np.save("a.npy", noise(3, 8, 12))
    cases = {
        ("0.png", "a.npy"): "inputs must be pictures, and the task's only input, or one file of arrays, not '0.png'",
        ("a.npy", "a.npy"): "inputs must be pictures, or one file of arrays, not 'a.npy', 'a.npy'",
        ("photos",): "photos must have pictures that end in .png, .jpg, .jpeg, and there are none",
        ("a.txt",): "a.txt must be a file that ends in .npy, .npz, .safetensors, .png, .jpg, .jpeg",
        ("no.jpg",): "input 'image': no.jpg cannot be read: No such file or directory",
    }  # fmt: skip
    for paths, text in cases.items():
        code, err = call("run", "program", *paths, "--output", "out.npz")
        assert (code, Path("out.npz").exists()) == (1, False)
        assert err.startswith(f"error: {text}")


def test_conversions_are_a_warning_and_an_error_with_strict(program, call):
    patchloom.save(program, Path("program"))
    words = ["run", "program", saved(noise(20, 30)), "--output", "out.npz"]
    said = "input 'image': a.png is grey and became three equal channels"
    assert call(*words, "--strict") == (1, f"error: {said}\n")
    assert not Path("out.npz").exists()
    assert call(*words) == (0, f"warning: {said}\n")


# --- Design files ---

DESIGN = """module: models.py:Patches
calibration: {pictures: photos}
preprocessing:
  input_size: [3, 8, 12]
  mean: [0.485, 0.456, 0.406]
  std: [0.229, 0.224, 0.225]
  crop_pct: 0.9
  interpolation: bilinear
"""


def designed(text: str = DESIGN) -> patchloom.Program:
    Path("design.yaml").write_text(text)
    shutil.copy(Path(__file__).with_name("models.py"), ".")
    torch.manual_seed(0)
    return design.compile_design(design.load_design(Path("design.yaml")))


def test_a_design_keeps_its_preprocessing(model, photos):
    Path("photos").mkdir()
    for path in photos:
        Path(path).rename(Path("photos", path))
    Path("photos/notes.txt").write_text("mine")
    program = designed()
    paths = sorted(str(path) for path in Path("photos").iterdir() if path.suffix != ".txt")
    expected = patchloom.compile(model, torch.zeros(1, 3, 8, 12), calibration=paths, preprocessing=TIMM)
    assert program.image == expected.image
    assert program.tasks[0].inputs[0].preprocessing == expected.tasks[0].inputs[0].preprocessing
    np.save("bytes.npy", noise(4, 8 * 12 * 3))
    text = DESIGN.replace("{pictures: photos}", "{image: {file: bytes.npy, shape: [3, 8, 12]}}")
    by_name = designed(text.replace("\n  ", "\n    ").replace("preprocessing:", "preprocessing:\n  image:"))
    assert by_name.tasks[0].inputs[0].preprocessing == expected.tasks[0].inputs[0].preprocessing


BAD = {
    "design.yaml:4: preprocessing.input_size must be channels, height and width, not [8]": ("[3, 8, 12]", "[8]"),
    "design.yaml:7: 'crop_pt' is not a key of preprocessing; did you mean 'crop_pct'?": ("crop_pct", "crop_pt"),
    "design.yaml:7: preprocessing.crop_pct must be from 0.1 to 1, not 3.0": ("0.9", "3"),
    "design.yaml:2: pictures must be a folder, and there is none at 'nowhere'": ("photos", "nowhere"),
    "design.yaml:2: photos must have pictures that end in .png, .jpg, .jpeg, and there are none": ("", ""),
    "design.yaml:2: 'file' is not a key of calibration with pictures": ("photos}", "photos, file: a.npy}"),
    "design.yaml:2: divide must be left out beside preprocessing, which divides": (
        "{pictures: photos}", "{file: a.npy, divide: 255}",
    ),
    "design.yaml:3: preprocessing must be given by the names of calibration, not for ''": (
        "{pictures: photos}", "{left: {file: a.npy}, right: {file: a.npy}}",
    ),
}  # fmt: skip


WORDS = [
    "0",
    "-1",
    "1e99",
    ".nan",
    "null",
    "true",
    "[]",
    "{}",
    "''",
    "[a, [b]]",
    "{a: b}",
    "9" * 400,
    "2001-01-01",
    "RGB",
]


@pytest.mark.parametrize("name", ["", *vars(RGB), "input_size", "crop_mode"])
def test_whatever_a_design_says_is_taken_or_refused_with_its_line(name):
    for word in WORDS:
        text = "module: a.py:A\ncalibration: {file: a.npy}\npreprocessing:"
        np.save("a.npy", noise(1))
        fields = {"size": "[4, 6]", "mean": "[0]", "std": "[1]"} | {name: word} if name else {}
        text += "".join(f"\n  {key}: {value}" for key, value in fields.items()) if name else f" {word}"
        Path("design.yaml").write_text(text)
        told = ""
        try:
            assert isinstance(design.load_design(Path("design.yaml")).preprocessing[""], Preprocessing)
        except design.DesignError as error:
            told = str(error)
        assert all(line.startswith("design.yaml:") for line in told.splitlines())


@pytest.mark.parametrize("message", BAD)
def test_what_is_wrong_with_a_design(message):
    Path("photos").mkdir()
    np.save("a.npy", noise(1, 3, 8, 12))
    assert refusal(designed, DESIGN.replace(*BAD[message]), kind=design.DesignError) == message
