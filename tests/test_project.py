"""What the project promises about itself: light imports, one flat namespace, floors, one address, tidy notebooks.

A test over many files or modules lists all that offend, so that one run names every place to mend.
"""
import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import readme

import consistency_models

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "consistency_models"
FLOORS = {
    "checks": 0,
    "utils": 1,
    "schedules": 2, "parameterization": 2, "data": 2,
    "losses": 3, "paths": 3, "networks": 3, "sampling": 3, "consistency_training": 3,
    "improved_consistency_training": 4, "editing": 4, "metrics": 4, "pretrained": 4, "trainer": 5,
    "widgets": 6, "cli": 6,
}
APART = {"checks", "widgets", "cli"}  # modules that the flat namespace leaves out
MODULES = [name for name in FLOORS if name not in APART]
HEAVY = {"matplotlib", "torchvision", "ipywidgets", "sklearn", "lpips", "torchmetrics", "pandas", "IPython"}
TEXT = {".ipynb", ".md", ".py", ".yml", ".yaml", ".ini", ".cff", ".toml"}
REPOSITORY = re.compile(r"github\.com[/:]([\w.-]+)/([\w.-]+)")
COLAB = re.compile(r"colab\.research\.google\.com/github/([\w.-]+)/([\w.-]+)/blob/([\w.-]+)/([\w./-]+)")


def listed_by_git():
    """Every file that git knows or would add, or nothing without git"""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try: output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError): return []
    return [ROOT / name for name in output.split("\0") if name]


def found_by_walk():
    """Every file outside hidden folders"""
    hidden = lambda path: any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
    return [p for p in ROOT.rglob("*") if not hidden(p)]


def relative(path): return path.relative_to(ROOT).as_posix()


FILES = sorted({p for p in listed_by_git() or found_by_walk() if p.is_file()})
NOTEBOOKS = [p for p in FILES if p.suffix == ".ipynb"]
PROGRAMS = [p for p in NOTEBOOKS if p.stem != "contributing"]  # notebooks with code


@cache
def settings():
    """The one section of settings.ini"""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(key="requirements"): return settings()[key].split()


@cache
def parsed(module):
    """The syntax tree of one module of the package"""
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


@cache
def read(path):
    """A notebook as a dictionary"""
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell): return "".join(cell["source"]).strip()


def cells(path, kind):
    """The cells of one kind, `code` or `markdown`, that hold anything"""
    return [c for c in read(path)["cells"] if c["cell_type"] == kind and source(c)]


def outputs(path): return [o for c in cells(path, "code") for o in c["outputs"]]


def offenders(test, paths=NOTEBOOKS):
    """The files for which `test` is false, or what it says about them where it gives a list"""
    found = {relative(p): test(p) for p in paths}
    return {p: said for p, said in found.items() if said is False or isinstance(said, list) and said}


# ---------------------------------------------------------------- Imports and names

def test_import_loads_nothing_heavy():
    program = "import sys, consistency_models; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "torch" in loaded and not loaded & HEAVY


def test_flat_namespace_is_the_union_of_the_modules():
    """The package, and the module of its name for older code: the same objects, none twice, and nothing else"""
    flat, names = import_module("consistency_models.consistency_models"), {}
    for module in map(import_module, (f"consistency_models.{m}" for m in MODULES)):
        assert not names.keys() & module.__all__, module.__name__
        names |= {name: getattr(module, name) for name in module.__all__}
    for source_of in ("consistency_models", "consistency_models.consistency_models"):
        starred = {}
        exec(f"from {source_of} import *", starred)
        del starred["__builtins__"]
        assert starred == names
    assert sorted(consistency_models.__all__) == sorted(names) and vars(flat).keys() >= names.keys()


def test_page_of_names_shows_what_the_modules_declare():
    page = cells(ROOT / "nbs/99_api.ipynb", "code")
    stored = next("".join(o["text"]) for c in page for o in c["outputs"] if o["output_type"] == "stream")
    shown = {name for line in stored.splitlines() for name in line.replace(",", " ").split()[1:]}
    assert shown == set(consistency_models.__all__)


# ---------------------------------------------------------------- Modules

def imported_modules(module):
    """The modules of the package that `module` imports anywhere, also inside functions; "" for the package itself"""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            own = "consistency_models" * bool(node.level) + "." * bool(node.level and node.module)
            names = [f"{own}{node.module or ''}.{alias.name}" for alias in node.names]
        else: continue
        found |= {(name + ".").split(".")[1] for name in names if name.split(".")[0] == "consistency_models"}
    return found


def test_imports_come_from_lower_floors():
    modules = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "_modidx", "consistency_models"}
    assert modules == set(FLOORS)
    higher = lambda name, module: FLOORS.get(name, float("inf")) >= FLOORS[module]
    assert {(m, name) for m in FLOORS for name in imported_modules(m) if higher(name, m)} == set()


def test_each_module_names_the_notebook_it_comes_from():
    pattern = re.compile(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: \.\./(nbs/\S+\.ipynb)\.$", re.MULTILINE)
    named = {m: pattern.search((PACKAGE / f"{m}.py").read_text(encoding="utf-8")) for m in FLOORS}
    assert [m for m, found in named.items() if not found or ROOT / found[1] not in NOTEBOOKS] == []


def test_public_functions_classes_and_methods_have_docstrings():
    kinds, bare = (ast.FunctionDef, ast.ClassDef), []
    for module in FLOORS:
        top = [(n.name, n) for n in parsed(module).body if isinstance(n, kinds)]
        inner = [(f"{name}.{n.name}", n) for name, c in top if isinstance(c, ast.ClassDef)
                 for n in c.body if isinstance(n, kinds) and n.name != "forward"]
        bare += [f"{module}.{name}" for name, node in top + inner
                 if not re.search(r"(^|\.)_", name) and not ast.get_docstring(node)]
    assert bare == []


# ---------------------------------------------------------------- Address and build

def mentions(pattern):
    """Each match of `pattern` in a text file, with the file it stands in"""
    texts = [p for p in FILES if p.suffix in TEXT or p.name == "Makefile"]
    return [(relative(p), *found) for p in texts for found in pattern.findall(p.read_text(encoding="utf-8"))]


def test_every_mention_of_the_repository_is_the_one_in_settings():
    """Links to the paper's own code, openai/consistency_models, are citations"""
    cfg = settings()
    assert cfg["git_url"] == f"https://github.com/{cfg['user']}/{cfg['repo']}"
    found = [m[:3] for m in mentions(REPOSITORY) + mentions(COLAB)]
    ours = [(p, user) for p, user, repo in found if repo.rstrip(".").removesuffix(".git") == cfg["repo"]]
    assert ours and [(p, user) for p, user in ours if user not in (cfg["user"], "openai")] == []


def test_links_to_colab_open_notebooks_that_exist_and_badges_their_own():
    cfg = settings()
    address = (cfg["user"], cfg["repo"], cfg["branch"])
    assert [m for m in mentions(COLAB) if m[1:4] != address or ROOT / m[4] not in NOTEBOOKS] == []
    badge = re.compile(r"\[!\[[^]]*\]\(\S*colab-badge\.svg\)\]\((\S+)\)")
    text = lambda path: "\n".join(source(c) for c in cells(path, "markdown"))
    own = lambda path: [a.endswith(f"/{relative(path)}") for a in badge.findall(text(path))] == [True]
    assert offenders(own, PROGRAMS) == {}


def test_requirements_have_floors_and_no_ceilings():
    """nbdev, which is pinned, and its companions are for development alone"""
    found = requirements()
    assert len(found) > 10 and [r for r in found if not re.fullmatch(r"[\w-]+>=[\d.]+", r)] == []
    assert not any(re.match("nbdev|execnb|ghapi", r) for r in found)
    assert any(r.startswith("nbdev==") for r in requirements("dev_requirements"))


def test_what_is_imported_is_required():
    """All but the standard library, what a reader installs for one purpose, and what Colab has"""
    required = {r.split(">=")[0] for r in requirements()}
    names = {"PIL": "pillow", "sklearn": "scikit-learn"}
    optional = {"diffusers", "torch_fidelity", "IPython", "google", "traitlets", "consistency_models"}  # traitlets come with ipywidgets
    imported = set()
    for node in (n for module in FLOORS for n in ast.walk(parsed(module))):
        if isinstance(node, ast.Import): imported |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module)
    used = {m.split(".")[0] for m in imported} - set(sys.stdlib_module_names) - optional
    assert {names.get(m, m) for m in used} - required == set()


SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml", "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml", "citation-file-format": "CITATION.cff"}


@pytest.mark.slow
def test_files_for_github_follow_their_schemas():
    for schema, pattern in SCHEMAS.items():
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
        paths = sorted(ROOT.glob(pattern))
        result = subprocess.run([*command, *paths], capture_output=True, text=True)
        assert paths and result.returncode == 0, result.stdout + result.stderr


def test_actions_are_pinned_by_version():
    lines = [line for path in ROOT.glob(".github/workflows/*.yml") for line in path.read_text().splitlines()]
    uses = [line.split("uses:")[1].strip() for line in lines if "uses:" in line]
    assert len(uses) > 10 and [u for u in uses if not re.search(r"@(v\d|release/v\d)", u)] == []


def test_citation_and_changelog_know_the_version():
    version = settings()["version"]
    assert consistency_models.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_markdown_comes_from_the_notebooks():
    made = readme.files()
    stale = [relative(p) for p, text in made.items() if p.read_text(encoding="utf-8") != text]
    assert made and stale == [], "run 'make export' and commit the result"


# ---------------------------------------------------------------- Notebooks

def test_notebooks_open_with_title_and_subtitle_alone():
    opens = lambda path: re.fullmatch(r"# [^\n]+\n\n> [^\n]+", source(cells(path, "markdown")[0])) is not None
    assert offenders(opens) == {}


def test_no_widget_state_and_no_error_is_stored():
    state = "application/vnd.jupyter.widget-state+json"
    without = lambda path: "widgets" not in read(path)["metadata"] and not any(state in o.get("data", {}) for o in outputs(path))
    assert offenders(without) == {}
    assert offenders(lambda path: [o["ename"] for o in outputs(path) if o["output_type"] == "error"]) == {}


def shows_something(statement):
    """Does this statement certainly print or draw, as far as its syntax tells?"""
    if isinstance(statement, ast.For | ast.With): return any(shows_something(s) for s in statement.body)
    calls = [n.func for n in ast.walk(statement) if isinstance(n, ast.Call)] if isinstance(statement, ast.Expr) else []
    return any(isinstance(f, ast.Name) and f.id in {"print", "display", "show_images"} for f in calls)


def should_have_output(cell):
    """Is this a cell that runs and ends in a picture or a printed line?"""
    text = source(cell)
    if "#| eval: false" in text or re.search(r"^\s*[%!]", text, re.MULTILINE): return False
    return any(shows_something(s) for s in ast.parse(text).body)


def test_outputs_are_stored():
    """At least one in a notebook, and one for each cell that evidently prints or draws"""
    missing = lambda path: [source(c)[:60] for c in cells(path, "code") if should_have_output(c) and not c["outputs"]]
    assert offenders(missing, PROGRAMS) == {}
    assert offenders(lambda path: bool(outputs(path)) or path.stem == "app", PROGRAMS) == {}  # a widget has none


def test_no_code_asks_for_cuda_outright():
    assert offenders(lambda path: [source(c)[:60] for c in cells(path, "code") if ".cuda(" in source(c)]) == {}


# ---------------------------------------------------------------- Lessons

EXERCISE = re.compile(r"\*\*Exercise (\d+)")
PLAIN = {"index", "benchmarks", "contributing", "99_api", "app"}  # pages without exercises
LESSONS = [p for p in NOTEBOOKS if p.stem not in PLAIN]


def exercises(path):
    """For each exercise the cell that asks, the cell that answers, and the cell with the answer in words"""
    everything = [c for c in read(path)["cells"] if source(c)]
    starts = [i for i, c in enumerate(everything) if c["cell_type"] == "markdown" and EXERCISE.search(source(c))]
    return [everything[i:i + 3] for i in starts]


def test_exercises_are_numbered():
    def right(path):
        numbers = [int(EXERCISE.findall(source(part[0]))[-1]) for part in exercises(path)]
        most = 30 if "workshop" in path.stem else 6
        return numbers == list(range(1, len(numbers) + 1)) and 3 <= len(numbers) <= most
    assert offenders(right, LESSONS) == {}


def test_every_exercise_has_a_folded_answer_that_is_run():
    def folded(answer, words):
        text = source(answer)
        return (answer["cell_type"] == "code" and "eval: false" not in text and "assert" in text
                and text.startswith('#| code-fold: true\n#| code-summary: "Answer"')
                and answer["metadata"]["jupyter"]["source_hidden"] and answer["outputs"] == []
                and 'collapse="true"' in source(words))
    open_ones = lambda path: [source(ask)[:60] for ask, answer, words in exercises(path) if not folded(answer, words)]
    assert offenders(open_ones, LESSONS) == {}


def test_pages_have_header_and_footer():
    parts = ("**Before this", "**Run time:**", "## Recap", "**Next:**")
    text = lambda path: "\n".join(source(c) for c in cells(path, "markdown"))
    assert offenders(lambda path: [part for part in parts if part not in text(path)], LESSONS) == {}
