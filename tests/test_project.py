"""What the project promises about itself: light imports, one flat namespace, floors, one address, tidy notebooks."""
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

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "consistency_models"
FLOORS = {
    "utils": 0,
    "schedules": 1, "parameterization": 1, "losses": 1, "pictures": 1,
    "networks": 2, "training": 2, "sampling": 2, "data": 2,
    "editing": 3, "metrics": 3,
    "trainer": 4, "pretrained": 4,
    "widgets": 5, "cli": 5,
    "consistency_models": 6,
}
LESSONS = [name for name, floor in FLOORS.items() if floor < 5]  # what the flat namespace gathers
HEAVY = {"matplotlib", "torchvision", "ipywidgets", "PIL", "sklearn", "lpips", "torchmetrics", "pandas", "IPython"}
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
    return [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts[:-1])]


def relative(path):
    return path.relative_to(ROOT).as_posix()


FILES = sorted({p for p in listed_by_git() or found_by_walk() if p.is_file()})
NOTEBOOKS = [p for p in FILES if p.suffix == ".ipynb"]
TEXT_FILES = [p for p in FILES if p.suffix in TEXT or p.name == "Makefile"]
each_module = pytest.mark.parametrize("module", FLOORS)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=relative)
each_program = pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != "contributing"], ids=relative)


def settings():
    """The one section of settings.ini"""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def parsed(module):
    """The syntax tree of one module of the package"""
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


@cache
def read(path):
    """A notebook as a dictionary"""
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path, kind):
    """The cells of one kind, `code` or `markdown`, that hold anything"""
    return [c for c in read(path)["cells"] if c["cell_type"] == kind and "".join(c["source"]).strip()]


def source(cell):
    return "".join(cell["source"]).strip()


def outputs(path):
    return [o for c in cells(path, "code") for o in c["outputs"]]


# Imports and names

def test_import_loads_nothing_heavy():
    program = "import sys, consistency_models; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "torch" in loaded and not loaded & HEAVY


def test_flat_namespace_is_the_union_of_the_modules():
    flat = import_module("consistency_models.consistency_models").__all__
    names = [n for m in LESSONS for n in import_module(f"consistency_models.{m}").__all__]
    assert sorted(flat) == sorted(names)


@pytest.mark.parametrize("module", LESSONS)
def test_package_offers_every_name(module):
    package, lesson = import_module("consistency_models"), import_module(f"consistency_models.{module}")
    assert [n for n in lesson.__all__ if getattr(package, n, None) is not getattr(lesson, n)] == []


def test_package_and_flat_module_export_the_same():
    package, flat = import_module("consistency_models"), import_module("consistency_models.consistency_models")
    assert package.__all__ == flat.__all__


# Modules

def imported_modules(module):
    """The modules of the package that `module` imports anywhere, also inside functions; "" for the package itself"""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "consistency_models" * bool(node.level) + "." * bool(node.level and node.module) + (node.module or "")
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else: continue
        found |= {(name + ".").split(".")[1] for name in names if name.split(".")[0] == "consistency_models"}
    return found


def test_every_module_has_a_floor():
    assert {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "_modidx"} == set(FLOORS)


@each_module
def test_imports_come_from_lower_floors(module):
    above = {name for name in imported_modules(module) if FLOORS.get(name, float("inf")) >= FLOORS[module]}
    assert above == set()


@each_module
def test_module_names_the_notebook_it_comes_from(module):
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    notebook = re.search(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: \.\./(nbs/\S+\.ipynb)\.$", text, re.MULTILINE)
    assert notebook and ROOT / notebook[1] in NOTEBOOKS


@each_module
def test_public_functions_and_classes_have_docstrings(module):
    """Also the methods added with `@patch`, which stand at the top level"""
    defined = [n for n in parsed(module).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    public = [n for n in defined if not n.name.startswith("_") or n.name == "__call__"]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


# Address and build

def test_settings_hold_the_address():
    cfg = settings()
    assert cfg["git_url"] == f"https://github.com/{cfg['user']}/{cfg['repo']}"


def mentions(pattern):
    """Each match of `pattern` in a text file, with the file it stands in"""
    return [(relative(p), *found) for p in TEXT_FILES for found in pattern.findall(p.read_text(encoding="utf-8"))]


def test_every_mention_of_the_repository_is_the_one_in_settings():
    """Links to the paper's own code, openai/consistency_models, are citations"""
    cfg = settings()
    found = [m[:3] for m in mentions(REPOSITORY) + mentions(COLAB)]
    ours = [(p, user) for p, user, repo in found if repo.rstrip(".").removesuffix(".git") == cfg["repo"]]
    assert {user for _, user in ours} >= {cfg["user"]}
    assert [(p, user) for p, user in ours if user not in (cfg["user"], "openai")] == []


def test_colab_links_lead_to_notebooks_on_the_branch():
    cfg = settings()
    ours = [m for m in mentions(COLAB) if m[2] == cfg["repo"]]
    assert [m for m in ours if m[3] != cfg["branch"] or ROOT / m[4] not in NOTEBOOKS] == []


@each_program
def test_colab_badge_opens_the_notebook_it_stands_in(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    badges = re.findall(r"\[!\[[^]]*\]\(\S*colab-badge\.svg\)\]\((\S+)\)", text)
    address = COLAB.search(badges[0]) if badges else None
    assert len(badges) == 1 and address and address[4] == relative(path)


def test_setup_does_without_pkg_resources():
    assert "pkg_resources" not in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_quarto_settings_stand_where_nbdev_looks():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and link.readlink() == Path("../_quarto.yml") and link.is_file()


def test_nbdev_and_its_companions_are_pinned_for_development_alone():
    cfg, pins = settings(), {"nbdev==2.4.14", "fastcore<2", "execnb<0.2", "ghapi<2"}
    requirements = cfg["requirements"].split()
    assert pins <= set(cfg["dev_requirements"].split())
    assert [r for r in requirements if re.match("nbdev|execnb|ghapi", r)] == []


def test_every_requirement_has_a_floor_and_no_ceiling():
    requirements = [r for key in ("requirements", "inception_requirements") for r in settings()[key].split()]
    assert len(requirements) > 10 and [r for r in requirements if not re.fullmatch(r"[\w-]+>=[\d.]+", r)] == []


def test_what_is_imported_is_required():
    """All but the standard library, what a reader installs for one purpose, and what Colab has"""
    required = {re.split(">=", r)[0] for r in settings()["requirements"].split()}
    names = {"PIL": "pillow"}
    optional = {"diffusers", "torchmetrics", "torch_fidelity", "IPython", "google", "traitlets", "consistency_models"}    # traitlets come with ipywidgets
    imported = {m for module in FLOORS for node in ast.walk(parsed(module)) for m in
                ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])}
    used = {m.split(".")[0] for m in imported} - set(sys.stdlib_module_names) - optional
    assert {names.get(m, m) for m in used} - required == set()


SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml", "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml", "citation-file-format": "CITATION.cff"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_github_follow_their_schemas(schema):
    paths = sorted(ROOT.glob(SCHEMAS[schema]))
    result = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *paths], capture_output=True, text=True)
    assert paths and result.returncode == 0, result.stdout + result.stderr


def test_actions_are_pinned_by_version():
    uses = [line.split("uses:")[1].strip() for path in ROOT.glob(".github/workflows/*.yml") for line in path.read_text().splitlines() if "uses:" in line]
    assert len(uses) > 10 and [u for u in uses if not re.search(r"@(v\d|release/v\d)", u)] == []


def test_citation_and_changelog_know_the_version():
    version = settings()["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text() and f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", readme.files(), ids=relative)
def test_markdown_comes_from_the_notebooks(path):
    assert path.read_text(encoding="utf-8") == readme.files()[path], "run 'make export' and commit the result"


# Notebooks

@each_notebook
def test_notebook_opens_with_title_and_subtitle_alone(path):
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+", source(cells(path, "markdown")[0]))


@each_notebook
def test_no_widget_state_is_stored(path):
    kinds = {kind for o in outputs(path) for kind in o.get("data", {})}
    assert "widgets" not in read(path)["metadata"] and "application/vnd.jupyter.widget-state+json" not in kinds


@each_notebook
def test_no_output_is_an_error(path):
    assert [o["ename"] for o in outputs(path) if o["output_type"] == "error"] == []


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


@each_program
def test_outputs_are_stored(path):
    """At least one, and one for each cell that evidently prints or draws"""
    missing = [source(c) for c in cells(path, "code") if should_have_output(c) and not c["outputs"]]
    assert (outputs(path) or path.stem == "app") and missing == []  # a widget has no stored output


@each_notebook
def test_no_code_asks_for_cuda_outright(path):
    assert [source(c) for c in cells(path, "code") if ".cuda(" in source(c)] == []


def test_list_of_names_is_what_the_modules_export():
    stored = next("".join(o["text"]) for c in cells(ROOT / "nbs/99_api.ipynb", "code") for o in c["outputs"] if o["output_type"] == "stream")
    shown = {name for line in stored.splitlines() for name in line.replace(",", " ").split()[1:]}
    assert shown == set(import_module("consistency_models.consistency_models").__all__)


# Exercises

EXERCISE = re.compile(r"\*\*Exercise (\d+)")
PLAIN = {"index", "benchmarks", "contributing", "91_pictures", "99_api", "app"}  # pages without exercises


def exercises(path):
    """For each exercise the cell that asks, the cell that answers, and the cell with the answer in words"""
    everything = [c for c in read(path)["cells"] if source(c)]
    starts = [i for i, c in enumerate(everything) if c["cell_type"] == "markdown" and EXERCISE.search(source(c))]
    return [everything[i:i + 3] for i in starts]


each_lesson = pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem not in PLAIN], ids=relative)


@each_lesson
def test_exercises_are_numbered(path):
    numbers = [int(EXERCISE.findall(source(part[0]))[-1]) for part in exercises(path)]
    assert numbers == list(range(1, len(numbers) + 1)) and 3 <= len(numbers) <= (6 if path.parent.name == "nbs" or "workshop" not in path.stem else 30)


@each_lesson
def test_every_exercise_has_a_folded_answer_that_is_run(path):
    for _, answer, words in exercises(path):
        assert answer["cell_type"] == "code" and "eval: false" not in source(answer)
        assert source(answer).startswith('#| code-fold: true\n#| code-summary: "Answer"') and "assert" in source(answer)
        assert answer["metadata"]["jupyter"]["source_hidden"] and answer["outputs"] == []
        assert 'collapse="true"' in source(words)


@each_lesson
def test_page_has_header_and_footer(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    assert "**Before this" in text and "**Run time:**" in text and "## Recap" in text and "**Next:**" in text
