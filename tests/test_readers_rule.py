"""What comes from outside is read behind limits: whoever opens, parses or decodes a file uses `leakaudit.files`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_architecture import SOURCES

CALLS = {  # by the last two parts of what is called
    *("json.load", "json.loads", "tomllib.load", "tomllib.loads", "tomlkit.parse", "tomlkit.load", "pickle.load"),
    *("pickle.loads", "np.load", "numpy.load", "np.fromfile", "np.loadtxt", "np.genfromtxt", "torch.load"),
    *("Image.open", "zipfile.ZipFile", "zlib.decompress", "gzip.open", "csv.reader", "os.open", "io.open"),
    *("base64.b64decode", "b64decode", "ZipFile", "open", "load_file", "safe_open", "torchvision.io", "decode_image"),
}
METHODS = {"read_text", "read_bytes", "open"}  # of a path
READERS = "files."
# Others that may, and why. The list may only shrink: an entry that is not needed any more fails.
ALLOWED = {
    ("options.workflows", "read_text"): "a workflow of our own package",
    ("options.silence", "open"): "the null device",
    ("defenses.obscurer_file", "safe_open"): "after files.weights has looked through it",
    ("gate.pyproject", "tomlkit.parse"): "text that files.reading gave, within `reading`",
    ("load.checkpoints", "load_file"): "after files.weights has looked through it",
    ("load.checkpoints", "torch.load"): "weights only, after files.weights has looked through it",
    ("options.browser", "open"): "a page in a browser",
    ("reports.html_source", "read_bytes"): "the sources of our own package",
    ("result.signature", "base64.b64decode"): "text that files.jsonfile gave, of a length that it limits",
    ("reports.sarif", "json.loads"): "what this module has just written",
    ("units.code", "open"): "code that runs in this process, as bytes to be hashed",
    ("units.code", "read_text"): "what pip wrote of an installed package, only searched",
    ("units.packing", "torch.load"): "an outcome of this user's own, after files.own has looked whose it is",
    ("work.freememory", "read_text"): "the kernel's own files",
    ("work.resume", "safe_open"): "after files.weights has looked through it",
}


def found(tree: ast.Module) -> Iterator[str]:
    """Yield every call that reads a file or parses one, by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ".".join(ast.unparse(node.func).split(".")[-2:])
            last = name.rpartition(".")[2]
            if name in CALLS:
                yield name
            elif last in METHODS and isinstance(node.func, ast.Attribute):
                yield last


def test_nothing_but_a_reader_reads() -> None:
    seen = {
        (name, call)
        for name, file in SOURCES.items()
        if not name.startswith(READERS)
        for call in found(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert seen == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "json.loads(x)",
        "np.load(path)",
        "torch.load(path, weights_only=True)",
        "Image.open(path)",
        "PIL.Image.open(path)",
        "Path(name).read_text()",
        "path.read_bytes()",
        "open(name)",
        "path.open('rb')",
        "with safe_open(path) as file: pass",
        "lambda: base64.b64decode(x)",
    ],
)
def test_the_rule_finds_a_call_that_breaks_it(line: str) -> None:
    assert list(found(ast.parse(line)))


@pytest.mark.parametrize("line", ["json.dumps(x)", "text_of(path)", "opened(path, JSON)", "archive.read(name)"])
def test_the_rule_leaves_others_alone(line: str) -> None:
    assert not list(found(ast.parse(line)))
