"""The site without Quarto: nbdev processes every page, and each public name is shown and linked."""
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import readme
import yaml
from test_project import MODULES, NOTEBOOKS, ROOT, settings

from consistency_models._modidx import d as index

PROCESS = """
import warnings
import nbdev.doclinks
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    nbdev_sidebar.__wrapped__()
    proc_nbs(n_workers=1)
"""
PAGES = [p.relative_to(ROOT / "nbs") for p in NOTEBOOKS if p.is_relative_to(ROOT / "nbs")]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the project that nbdev has processed, short of Quarto itself"""
    copy = tmp_path_factory.mktemp("site")
    for name in ("nbs", "consistency_models", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "_quarto.yml", "README.md"): shutil.copy(ROOT / name, copy / name)
    (copy / "process.py").write_text(PROCESS)
    paths = os.pathsep.join(filter(None, [str(ROOT / "tools"), os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, "process.py"], os.environ | {"PYTHONPATH": paths}
    result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
    return copy


@pytest.fixture(scope="module")
def pages(site):
    """The cells of each processed page"""
    found = {p: site / "_proc" / p for p in PAGES}
    return {p: json.loads(path.read_text(encoding="utf-8"))["cells"] for p, path in found.items()}


def read_yaml(path): return yaml.safe_load(path.read_text(encoding="utf-8"))


def front(page):
    """The front matter of a processed page"""
    assert page[0]["cell_type"] == "raw"
    return yaml.safe_load("".join(page[0]["source"]).strip().strip("-"))


def headings(page):
    """The names whose signatures a page shows"""
    outputs = [o.get("data", {}) for c in page for o in c.get("outputs", [])]
    shown = ["".join(data.get("text/markdown", "")) for data in outputs]
    return [line[4:] for text in shown for line in text.splitlines() if line.startswith("### ")]


def test_pages_are_processed_with_title_and_description(pages):
    titles = {p: (front(page)["title"], front(page)["description"]) for p, page in pages.items()}
    assert titles == {p: readme.title(ROOT / "nbs" / p) for p in PAGES}
    kinds = {(p, o["output_type"]) for p in pages for c in pages[p] for o in c.get("outputs", [])}
    assert [p for p, kind in kinds if kind == "error"] == []


def test_every_public_name_has_a_signature_and_links_lead_to_it(pages):
    """nbdev links a public name in backticks to its page and heading"""
    address_of = {p: front(page).get("output-file", f"{p.stem}.html") for p, page in pages.items()}
    shown = {(address_of[p], name) for p, page in pages.items() for name in headings(page)}
    links, lost = index["syms"], []
    for name in MODULES:
        module = import_module(f"consistency_models.{name}")
        for public in module.__all__:
            value = getattr(module, public)
            if getattr(value, "__name__", None) != public: continue  # a value, or a second name
            if value.__module__ != module.__name__: continue  # gathered from another module
            link = links[module.__name__][f"{module.__name__}.{public}"][0]
            page, _, heading = link.partition("#")
            if (page, public) not in shown or heading != public.lower(): lost.append((public, link))
    assert lost == [] and len(shown) > 50


def test_names_in_backticks_become_links(pages):
    text = "\n".join("".join(c["source"]) for c in pages[Path("12_paths.ipynb")])
    site = settings()["doc_host"] + settings()["doc_baseurl"]
    assert f"[`exact_consistency_function`]({site}/paths.html#exact_consistency_function)" in text


def test_source_is_shown_and_folded_once(pages):
    """Also of cells marked `exporti`; a cell's own way of folding decides (nbs/93_pages.ipynb)"""
    code_of = lambda page: ["".join(c["source"]) for c in page if c["cell_type"] == "code"]
    codes = {p: code_of(page) for p, page in pages.items()}
    lesson = "\n".join(codes[Path("14_networks.ipynb")])
    assert "class UNet(" in lesson and "def check_inputs(" in lesson and "default_exp" not in lesson
    doubled = [(p, code[:90]) for p, found in codes.items() for code in found
               for option in ("#| code-fold:", "#| code-summary:") if code.count(option) > 1]
    assert doubled == []


def test_sidebar_lists_every_page_once():
    contents = read_yaml(ROOT / "nbs/sidebar.yml")["website"]["sidebar"]["contents"]
    within = lambda entry: [entry] if isinstance(entry, str) else entry.get("contents") or [entry["href"]]
    listed = [page for entry in contents for page in within(entry)]
    assert sorted(listed) == sorted(p.as_posix() for p in PAGES)


def test_settings_of_the_site(site):
    """The files that it names exist; processing changes neither the sidebar nor the index"""
    assert (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml"
    quarto, nbdev = read_yaml(ROOT / "_quarto.yml"), read_yaml(site / "nbs/nbdev.yml")
    assert "commonmark" not in quarto["format"]
    assert quarto["metadata-files"] == ["nbdev.yml", "sidebar.yml"]
    assert nbdev["website"]["repo-url"] == settings()["git_url"]
    style = quarto["format"]["html"]["css"]
    named = [quarto["website"]["image"], style, *quarto["project"]["resources"]]
    assert [n for n in named if not (site / "_proc" / n).exists()] == []
    for name in ("nbs/sidebar.yml", "consistency_models/_modidx.py"):
        assert (site / name).read_text() == (ROOT / name).read_text()


@pytest.mark.parametrize("code, shown", [
    ('#| code-fold: show\n#| code-summary: "Exported source"\n#| code-fold: true\nx = 1',
     '#| code-summary: "Exported source"\n#| code-fold: true\nx = 1'),
    ('#| code-fold: show\n#| code-summary: "Exported source"\nx = 1',) * 2])
def test_a_fold_of_ones_own_stays(code, shown):
    from consistency_models import pages as steps

    class Cell: source = code
    steps.one_fold(Cell)
    assert Cell.source == shown
