"""Links, anchors, figures, cross-references and names in prose all lead somewhere."""
import builtins
import io
import keyword
import re
import tokenize

import pytest
import torch
from test_project import COLAB, FILES, NOTEBOOKS, PACKAGE, ROOT, cells, each_notebook, read, relative, settings, source

PAGES = [p for p in FILES if p.suffix in {".md", ".ipynb"}]
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
LABEL = re.compile(r"^#\| label: *([\w-]+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: *\{#([\w-]+)[^}]*\})? *$", re.MULTILINE)


def prose(path):
    """The text of a page without its blocks of code and formulas"""
    text = "\n\n".join(source(c) for c in cells(path, "markdown")) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    return re.sub(r"```.*?```", "", re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL), flags=re.DOTALL)


def slug(heading):
    """The anchor that Pandoc gives a heading"""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*_$]", r"\1", heading).lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", plain).strip()))


def anchors(path):
    """Everything on a page that a link can lead to"""
    labels = [LABEL.search(source(c)) for c in cells(path, "code")] if path.suffix == ".ipynb" else []
    return {h[2] or slug(h[1]) for h in HEADING.finditer(prose(path))} | {m[1] for m in labels if m}


def links(path):
    """The local links of a page, as pairs of file and anchor"""
    targets = [t for t in LINK.findall(prose(path)) if not re.match(r"https?:|mailto:", t)]
    return [(path.parent / name if name else path, anchor) for name, _, anchor in (t.partition("#") for t in targets)]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_links_lead_to_files(path):
    assert [relative(target) if target.is_relative_to(ROOT) else str(target) for target, _ in links(path) if not target.resolve().exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_anchors_exist(path):
    assert [(target.name, anchor) for target, anchor in links(path) if anchor and anchor not in anchors(target)] == []


@each_notebook
def test_figures_are_labelled_once_and_referred_to_by_their_label(path):
    labels = [m for c in cells(path, "code") for m in LABEL.findall(source(c))]
    referred = re.findall(r"(?<![\w`])@((?:fig|tbl|eq|sec)-[\w-]+)", prose(path))
    assert len(labels) == len(set(labels)) and set(referred) <= set(labels) | anchors(path)


@each_notebook
def test_labelled_figures_have_captions_and_pictures(path):
    labelled = [c for c in cells(path, "code") if "#| label: fig-" in source(c)]
    assert [source(c)[:60] for c in labelled if not re.search(r'^#\| fig-cap: ".+"$', source(c), re.MULTILINE)] == []
    drawn = [c for c in labelled if not any(k.startswith("image/") for o in c["outputs"] for k in o.get("data", {}))]
    assert [source(c)[:60] for c in drawn] == []


@each_notebook
def test_every_stored_picture_is_labelled(path):
    pictures = [c for c in cells(path, "code") if any(k.startswith("image/") for o in c["outputs"] for k in o.get("data", {}))]
    assert [source(c)[:60] for c in pictures if not LABEL.search(source(c))] == []


def test_badges_open_the_address_in_the_settings():
    cfg = settings()
    for path in NOTEBOOKS:
        for user, repo, branch, name in COLAB.findall("\n".join(source(c) for c in cells(path, "markdown"))):
            assert (user, repo, branch, name) == (cfg["user"], cfg["repo"], cfg["branch"], relative(path))


# Names in prose

def identifiers(code):
    """All names in a piece of code that may hold notebook magic"""
    code = re.sub(r"^\s*[%!].*$", "", code, flags=re.MULTILINE)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {t.string for t in tokens if t.type == tokenize.NAME} | set(re.findall(r"[\"']([A-Za-z_]\w*)[\"']", code))


@pytest.fixture(scope="module")
def known():
    """Names that occur in code: in the notebooks, the package, the build files; and those of Python and PyTorch"""
    names = {*dir(builtins), *keyword.kwlist, *dir(torch), *dir(torch.Tensor), *dir(torch.nn), *dir(torch.nn.functional), *dir(torch.optim), *dir(torch.hub), *settings()}
    for path in NOTEBOOKS:
        for cell in cells(path, "code"): names |= identifiers(source(cell))
    for path in [*PACKAGE.glob("*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "setup.py"]: names |= identifiers(path.read_text(encoding="utf-8"))
    return names | {"BatchNorm", "call_parse", "notebook_launcher"}   # named for those who know them from elsewhere


@each_notebook
def test_names_in_prose_exist(path, known):
    """A word in backticks that looks like a name of code (a bare one with an underscore or inner capitals) is one"""
    words = re.findall(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)", prose(path))
    names = {part for w in words for part in w.split(".") if re.search(r"[a-z]_[a-z]|[a-z][A-Z]", part) and not re.search(r"\.(md|py|ipynb|json|safetensors|yml|ini|png)$", w)}
    assert names - known == set()


def test_every_public_name_has_a_page():
    """nbdev turns a public name in backticks into a link if it knows the name's notebook"""
    import consistency_models
    from consistency_models._modidx import d
    from consistency_models.consistency_models import __all__ as public
    known = {key.split(".")[-1] for module in d["syms"].values() for key in module}
    defined = [n for n in public if getattr(getattr(consistency_models, n), "__module__", "").startswith("consistency_models.")]
    assert [n for n in defined if n not in known and getattr(consistency_models, n).__name__ == n] == []


@each_notebook
def test_notebook_is_read(path):
    assert read(path)["nbformat"] == 4
