"""Links, anchors, figures, cross-references and names in prose all lead somewhere."""
import ast
import builtins
import io
import keyword
import re
import tokenize
from importlib import import_module

import torch
from answers import answers
from test_project import (
    FILES,
    NOTEBOOKS,
    PACKAGE,
    ROOT,
    cells,
    offenders,
    relative,
    settings,
    source,
)

import consistency_models
from consistency_models._modidx import d as index

PAGES = [p for p in FILES if p.suffix in {".md", ".ipynb"}]
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
LABEL = re.compile(r"^#\| label: *([\w-]+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: *\{#([\w-]+)[^}]*\})? *$", re.MULTILINE)


def prose(path):
    """The text of a page without its blocks of code and formulas"""
    if path.suffix != ".ipynb": text = path.read_text(encoding="utf-8")
    else: text = "\n\n".join(source(c) for c in cells(path, "markdown"))
    return re.sub(r"```.*?```|\$\$.*?\$\$", "", text, flags=re.DOTALL)


def slug(heading):
    """The anchor that Pandoc gives a heading"""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*_$]", r"\1", heading).lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", plain).strip()))


def labels(path):
    """The labels of a notebook's cells"""
    return [m for c in cells(path, "code") for m in LABEL.findall(source(c))]


def anchors(path):
    """Everything on a page that a link can lead to"""
    headings = {h[2] or slug(h[1]) for h in HEADING.finditer(prose(path))}
    return headings | set(labels(path) if path.suffix == ".ipynb" else [])


def links(path):
    """The local links of a page, as pairs of file and anchor"""
    targets = [t for t in LINK.findall(prose(path)) if not re.match(r"https?:|mailto:", t)]
    parts = [t.partition("#") for t in targets]
    return [(path.parent / name if name else path, anchor) for name, _, anchor in parts]


def pictures(cell):
    """The types of the pictures that a cell has stored"""
    return [k for o in cell["outputs"] for k in o.get("data", {}) if k.startswith("image/")]


def test_links_lead_to_files_and_anchors():
    lost = lambda path: [str(target) for target, _ in links(path) if not target.resolve().exists()]
    assert offenders(lost, PAGES) == {}
    astray = lambda path: [f"{t.name}#{a}" for t, a in links(path) if a and a not in anchors(t)]
    assert offenders(astray, PAGES) == {}


def test_figures_are_labelled_once_and_referred_to_by_their_label():
    assert offenders(lambda path: len(labels(path)) == len(set(labels(path)))) == {}
    reference = re.compile(r"(?<![\w`])@((?:fig|tbl|eq|sec)-[\w-]+)")
    assert offenders(lambda path: sorted(set(reference.findall(prose(path))) - anchors(path))) == {}


def test_figures_have_labels_captions_and_stored_pictures():
    figures = lambda path: [c for c in cells(path, "code") if "#| label: fig-" in source(c)]
    drawn = lambda path: [source(c) for c in cells(path, "code") if pictures(c)]
    caption = re.compile(r'^#\| fig-cap: ".+"$', re.MULTILINE)
    bare = lambda codes, pattern: [code[:60] for code in codes if not pattern.search(code)]
    assert offenders(lambda path: bare(map(source, figures(path)), caption)) == {}
    described = re.compile(r'^#\| fig-alt: ".+"$', re.MULTILINE)
    assert offenders(lambda path: bare(map(source, figures(path)), described)) == {}
    assert offenders(lambda path: [source(c)[:60] for c in figures(path) if not pictures(c)]) == {}
    assert offenders(lambda path: bare(drawn(path), LABEL)) == {}


# Names in prose

def identifiers(code):
    """All names in a piece of code that may hold notebook magic"""
    code = re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    strings = set(re.findall(r"[\"']([A-Za-z_]\w*)[\"']", code))
    return {t.string for t in tokens if t.type == tokenize.NAME} | strings


def known_names():
    """Names that occur in code of notebooks, package and scripts; those of Python and PyTorch"""
    spaces = (builtins, torch, torch.Tensor, torch.nn, torch.nn.functional, torch.optim, torch.hub)
    options = [*settings(), *re.findall(r"\w+", " ".join(settings().values()))]
    names = {*keyword.kwlist, *options, *(name for space in spaces for name in dir(space))}
    codes = [source(c) for path in NOTEBOOKS for c in cells(path, "code")]
    codes += [code for path in NOTEBOOKS for c in cells(path, "markdown") for code in answers(c)]
    codes += [p.read_text(encoding="utf-8") for p in FILES if p.suffix == ".py"]
    names = names.union(*map(identifiers, codes))
    elsewhere = {"BatchNorm", "call_parse", "nbdev_docs", "notebook_launcher"}  # of other packages
    return names | elsewhere


def test_names_in_prose_exist():
    """A word in backticks that looks like a name (an underscore or inner capitals) is one"""
    known, ending = known_names(), re.compile(r"\.(md|py|ipynb|json|safetensors|yml|ini|png)$")

    def unknown(path):
        words = re.findall(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)", prose(path))
        parts = {part for w in words if not ending.search(w) for part in w.split(".")}
        return sorted(p for p in parts - known if re.search(r"[a-z]_[a-z]|[a-z][A-Z]", p))
    assert offenders(unknown) == {}


def test_every_public_name_has_a_page():
    """nbdev turns a public name in backticks into a link if it knows the name's notebook"""
    known = {key.split(".")[-1] for module in index["syms"].values() for key in module}
    named = {name: getattr(consistency_models, name) for name in consistency_models.__all__}
    ours = lambda value: getattr(value, "__module__", "").startswith("consistency_models.")
    own = [name for name, value in named.items() if ours(value)]
    assert [n for n in own if n not in known and named[n].__name__ == n] == []


def test_paths_in_prose_exist():
    """Files and folders of the project that a page names in backticks"""
    path = re.compile(r"`((?:nbs|tests|tools|benchmarks|consistency_models)/[\w./]*\w)`")
    lost = lambda page: [p for p in path.findall(prose(page)) if not (ROOT / p).exists()]
    assert offenders(lost, PAGES) == {}


def test_scripts_import_what_the_package_has():
    """Also those that no test runs, such as long benchmarks"""
    missing = []
    for path in (p for folder in ("tools", "benchmarks") for p in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom): continue
            if not (node.module or "").startswith(PACKAGE.name): continue
            module, names = import_module(node.module), {a.name for a in node.names} - {"*"}
            missing += [(relative(path), name) for name in names if not hasattr(module, name)]
    assert missing == []


def test_tests_stand_alone_in_their_folder():
    names = [p.name for p in FILES if p.parent == ROOT / "tests"]
    assert [n for n in names if not n.startswith("test_")] == ["conftest.py"]
