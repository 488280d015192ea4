"""What can be tested of the site without Quarto: nbdev processes every page, and each public name is shown and linked."""
import json
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import readme
import yaml
from test_project import FLOORS, NOTEBOOKS, ROOT, relative, settings

from consistency_models import _modidx

PROCESS = """
import os, warnings
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
PAGES = [p for p in NOTEBOOKS if p.is_relative_to(ROOT / "nbs")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the project that nbdev has processed, short of Quarto itself"""
    copy = tmp_path_factory.mktemp("site")
    for name in ("nbs", "consistency_models"): shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "_quarto.yml", "README.md", "benchmarks"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    (copy / "process.py").write_text(PROCESS)
    result = subprocess.run([sys.executable, "process.py"], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
    return copy


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def sidebar_pages():
    """The pages of the sidebar in reading order"""
    contents = read_yaml(ROOT / "nbs/sidebar.yml")["website"]["sidebar"]["contents"]
    return [page for entry in contents for page in ([entry] if isinstance(entry, str) else entry["contents"])]


def shown(site):
    """For each processed page the text of the signatures that it shows, and everything it prints"""
    pages = {p: json.loads(p.read_text(encoding="utf-8")) for p in (site / "_proc").rglob("*.ipynb")}
    outputs = {p: [o for c in nb["cells"] for o in c.get("outputs", [])] for p, nb in pages.items()}
    return {p: "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for o in found) for p, found in outputs.items()}


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_page_is_processed_with_title_and_description(site, path):
    cells = json.loads((site / "_proc" / path.relative_to(ROOT / "nbs")).read_text(encoding="utf-8"))["cells"]
    front = yaml.safe_load("".join(cells[0]["source"]).strip().strip("-"))
    assert cells[0]["cell_type"] == "raw" and (front["title"], front["description"]) == readme.title(path)
    assert not [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]


@pytest.mark.parametrize("module", [m for m, floor in FLOORS.items() if floor < 6])
def test_every_public_name_has_a_signature(site, module):
    found, text = import_module(f"consistency_models.{module}"), "\n".join(shown(site).values())
    named = [n for n in found.__all__ if getattr(getattr(found, n), "__name__", None) == n]  # neither values nor second names
    assert named and [n for n in named if f"### {n}\n" not in text] == []


def test_names_in_backticks_become_links(site):
    page = json.loads((site / "_proc/18_sampling.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(c["source"]) for c in page["cells"] if c["cell_type"] == "markdown")
    assert f"[`model_forward_wrapper`]({settings()['doc_host']}{settings()['doc_baseurl']}/parameterization.html#model_forward_wrapper)" in text


def test_source_of_exported_functions_is_shown(site):
    page = json.loads((site / "_proc/18_sampling.ipynb").read_text(encoding="utf-8"))
    assert any("def _walk(" in "".join(c["source"]) for c in page["cells"])


def test_sidebar_lists_every_page_once():
    assert sorted(sidebar_pages()) == sorted(p.relative_to(ROOT / "nbs").as_posix() for p in PAGES)


def test_settings_of_the_site(site):
    quarto, nbdev = read_yaml(ROOT / "_quarto.yml"), read_yaml(site / "nbs/nbdev.yml")
    assert "commonmark" not in quarto["format"] and quarto["metadata-files"] == ["nbdev.yml", "sidebar.yml"]
    assert nbdev["website"]["repo-url"] == settings()["git_url"]
    named = [quarto["website"]["image"], quarto["format"]["html"]["css"], *quarto["project"]["resources"]]
    assert [n for n in named if not (site / "_proc" / n).exists()] == []


def test_processing_leaves_the_sidebar_and_the_index_as_they_are(site):
    for name in ("nbs/sidebar.yml", "consistency_models/_modidx.py"): assert (site / name).read_text() == (ROOT / name).read_text()


def test_links_to_names_lead_to_pages_and_headings(site):
    front = {p: yaml.safe_load("".join(json.loads(p.read_text())["cells"][0]["source"]).strip().strip("-")) for p in (site / "_proc").glob("*.ipynb")}
    texts = shown(site)
    headings = {f"{front[p].get('output-file', p.stem + '.html')}#{line[4:].lower()}" for p in front for line in texts[p].splitlines() if line.startswith("### ")}
    wanted = {address for names in _modidx.d["syms"].values() for name, (address, _) in names.items() if name.count(".") == 2 and "._" not in name}
    assert len(wanted) > 100 and wanted - headings == set()
