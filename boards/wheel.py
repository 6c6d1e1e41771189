"""A wheel of the driver alone, out of the package that is installed: what loads and runs Programs with NumPy only.

Its modules are those that the roots import when they are imported themselves; what needs an extra is imported later,
and told where it is missing. The same package gives the same bytes.
"""

import ast
import base64
import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from importlib.resources import files
from io import BytesIO
from pathlib import Path

PACKAGE = "patchloom"
ROOTS = (
    PACKAGE, f"{PACKAGE}.compiler.machine.store", f"{PACKAGE}.session", f"{PACKAGE}.running", f"{PACKAGE}.validating",
    f"{PACKAGE}.drawing",
)  # fmt: skip
NEEDED = "numpy"
PYTHON = ">=3.10"  # what PYNQ's images bring; the tools need a newer one
EXTRAS = ("images", "figures")  # of the package, that make sense beside a driver
WHEEL = (("Wheel-Version", "1.0"), ("Generator", PACKAGE), ("Root-Is-Purelib", "true"), ("Tag", "py3-none-any"))
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file: the first that a ZIP archive can state


def wheel() -> tuple[str, bytes]:
    """Its name and its content."""
    version = f"{distribution(PACKAGE).version}+driver"  # so that pip puts one in the place of the other
    name = f"{PACKAGE}-{version}-py3-none-any.whl"
    info = f"{PACKAGE}-{version}.dist-info"
    contents = dict(sorted(_modules())) | {
        f"{PACKAGE}/py.typed": b"",
        f"{info}/METADATA": _metadata(version).encode(),
        f"{info}/WHEEL": _fields(WHEEL).encode(),
        f"{info}/licenses/LICENSE": _license().encode(),
    }
    record = f"{info}/RECORD"
    lines = [f"{path},{_digest(data)},{len(data)}" for path, data in contents.items()]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: bytes that follow from no compressor's version
        for path, data in {**contents, record: "\n".join([*lines, f"{record},,", ""]).encode()}.items():
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return name, buffer.getvalue()


def _license() -> str:
    """Of the installed package, or of a checkout, whose metadata may lack it."""
    installed = distribution(PACKAGE).read_text("licenses/LICENSE")
    return installed or (Path(str(files(PACKAGE))).parent / "LICENSE").read_text()


def _digest(data: bytes) -> str:
    return f"sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()}"


def _metadata(version: str) -> str:
    installed = distribution(PACKAGE)
    needed = [line for line in installed.requires or () if _wanted(line)]
    fields = [
        ("Metadata-Version", "2.4"), ("Name", PACKAGE), ("Version", version),
        ("Summary", "The driver of Patchloom: loads Programs and runs them on a machine"),
        ("License-Expression", installed.metadata["License-Expression"]), ("License-File", "LICENSE"),
        ("Requires-Python", PYTHON),
        *(("Provides-Extra", extra) for extra in EXTRAS), *(("Requires-Dist", line) for line in needed),
    ]  # fmt: skip
    return _fields(fields)


def _fields(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}: {value}\n" for name, value in pairs)


def _wanted(requirement: str) -> bool:
    what, _, marker = requirement.partition(";")
    extras = [extra for extra in EXTRAS if marker.strip() == f'extra == "{extra}"']
    return bool(extras) or (not marker and what.startswith(NEEDED))


# --- Modules ---


def _modules() -> Iterator[tuple[str, bytes]]:
    """Paths and texts of the roots and of all that they import."""
    seen: set[str] = set()
    waiting = list(ROOTS)
    while waiting:
        module = waiting.pop()
        file = _file(module)
        if file is None or module in seen:
            continue
        seen.add(module)
        text = file.read_bytes()
        waiting += [*_imported(text), *filter(None, [module.rpartition(".")[0]])]
        folder = module.replace(".", "/")
        yield f"{folder}/__init__.py" if file.stem == "__init__" else f"{folder}.py", text


def _file(module: str) -> Path | None:
    """Nothing for a name within a module."""
    base = Path(str(files(PACKAGE))).joinpath(*module.split(".")[1:])
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _imported(text: bytes) -> Iterator[str]:
    """Names that may be modules of the package, of imports that importing the text executes."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] == PACKAGE)
