"""What `tools/workshop.py` makes of the workshop's page: nothing is given away, and every check answers."""
import builtins
import contextlib
import io
import json
import re

import matplotlib
import pytest
import torch
import workshop

from consistency_models.exercises import check

QMD = re.compile(r"^## .+$", re.MULTILINE)
WRONG = {        # answers that are not right, for every exercise
    "half": 0.5, "comes_out": "gray", "lines": "12345", "team": [80., 60.], "masks": ("gray", "gray"),
    "rows_needed": 12, "causes": "123456", "quiz": "aaaaaa", "same": 8., "equal": 5., "missing": "time", "most": "last six"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that the script writes"""
    out = tmp_path_factory.mktemp("workshop")
    workshop.main(out)
    return out


def cells(folder, name): return json.loads((folder / name).read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def participant(made): return cells(made, "participant.ipynb")


def text(cell): return "".join(cell["source"])


def exercises(participant):
    """The question, the dots, the check and the folded answer of each exercise, by the name of its variable"""
    asked = [i for i, c in enumerate(participant) if c["cell_type"] == "markdown" and "**Exercise " in text(c)]
    groups = [participant[i:i + 4] for i in asked]
    return {text(group[1]).partition(" = ...")[0]: group for group in groups}


def answers():
    """The code of each answer in the source, by the name of its variable"""
    codes = [code for c in workshop.notebook("07")["cells"] for code in workshop.answers(c)]
    first = lambda code, names: next(n for n in names if re.search(rf"^{n} = ", code, re.MULTILINE))
    return {first(code, WRONG): code for code in codes}


def run(code, names):
    """What a cell prints; a figure or a value at its end is not shown"""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed): exec(code, names)
    return printed.getvalue()


# ---------------------------------------------------------------- The participant's notebook

def test_nothing_is_given_away(participant):
    assert [c for c in participant if c.get("outputs")] == []
    whole = "\n".join(text(c) for c in participant)
    assert ":::" not in whole and "#| " not in whole and "colab-badge" not in whole
    opened = re.sub(r"<details>.*?</details>", "", whole, flags=re.DOTALL)
    for name, code in answers().items():
        line = re.search(rf"^{name} = .*$", code, re.MULTILINE)[0]
        assert line not in opened and line in whole


def test_every_exercise_has_dots_a_check_and_a_folded_answer(participant):
    found = exercises(participant)
    assert list(found) == list(WRONG)
    for name, (ask, turn, checked, answer) in found.items():
        assert f"`{name}`" in text(ask)
        assert text(turn) == f"{name} = ...  # your turn" and turn["cell_type"] == checked["cell_type"] == "code"
        assert f"check({name}, " in text(checked) and checked["metadata"]["cellView"] == "form"
        assert re.fullmatch(r"<details><summary>Answer.*```python\n.*\n```\n\n.+\n\n</details>", text(answer), re.DOTALL)


def test_checks_ask_for_an_answer_and_give_a_hint(participant):
    for _, turn, checked, _ in exercises(participant).values():
        said = run(f"{text(turn)}\n{text(checked)}", {"__builtins__": builtins, "check": check})
        assert said.startswith("Not yet: put your answer") and len(said.partition("Hint: ")[2]) > 10


def test_a_check_survives_what_it_cannot_read(participant):
    for name, (_, _, checked, _) in exercises(participant).items():
        names = {"__builtins__": builtins, "check": check, name: object()}
        assert re.match("Not yet.*Hint: ", run(text(checked), names)), name


def test_participants_install_this_version_and_replace_the_older_package(participant):
    install = next(text(c) for c in participant if "%pip" in text(c))
    assert f'"{workshop.ARCHIVE}"' in install and "import from_pretrained" in install and "git+" not in install
    assert workshop.ARCHIVE in "\n".join(text(c) for c in workshop.notebook("08")["cells"])


def test_links_leave_the_notebook_for_the_site(participant):
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(text(c) for c in participant if c["cell_type"] == "markdown"))
    assert links and [a for a in links if not a.startswith("https://")] == []


@pytest.mark.slow
def test_participants_notebook_runs_and_checks_tell_right_from_wrong(participant):
    """From top to bottom with wrong answers, then with right ones; widgets and pictures are left out"""
    from matplotlib import pyplot
    matplotlib.use("agg")
    names, found, right = {"__builtins__": builtins}, exercises(participant), answers()
    checks = [text(checked) for _, _, checked, _ in found.values()]
    for cell in (c for c in participant if c["cell_type"] == "code"):
        code = text(cell)
        if code in checks or "%pip" in code or re.fullmatch(r"\w+_explorer\(.*\)", code): continue
        run(code, names)
        pyplot.close("all")
    for name, (_, _, checked, _) in found.items():
        names[name] = WRONG[name]
        assert run(text(checked), names).startswith("Not yet."), name
        said = run(right[name], names) + run(text(checked), names)
        assert said.startswith("Right."), (name, said)


# ---------------------------------------------------------------- The teacher's copy and the slides

def test_teachers_copy_has_answers_outputs_and_minutes(made, participant):
    teacher = cells(made, "teacher.ipynb")
    whole = "\n".join(text(c) for c in teacher)
    assert all(code.strip() in whole for code in answers().values()) and whole.count("**Answer.**") == len(answers())
    assert sum(bool(c.get("outputs")) for c in teacher) > 15
    parts = re.findall(r"^## (.+) \(\d+ minutes\)$", whole, re.MULTILINE)
    assert len(parts) == 9 and [part for part in parts if f"> **{part} (" not in whole] == []


def test_parts_leave_slack():
    """The table, the headings and the teacher's clock agree, and leave a quarter of an hour of the two"""
    page = "\n".join(text(c) for c in workshop.notebook("07")["cells"])
    headings = [int(n) for n in re.findall(r"^## .+ \((\d+) minutes\)$", page, re.MULTILINE)]
    assert headings == [int(n) for n in re.findall(r"^\| (\d+) \| ", page, re.MULTILINE)] and sum(headings) <= 105
    times = [re.findall(r"(\d):(\d\d)", script.splitlines()[0]) for script in workshop.minutes().values()]
    clock = [[60 * int(h) + int(m) for h, m in ends] for ends in times]
    assert [end - start for start, end in clock] == headings
    assert [start for start, _ in clock[1:]] == [end for _, end in clock[:-1]]


def test_slides_have_notes_minutes_and_pictures(made):
    source = (made / "slides.qmd").read_text(encoding="utf-8")
    assert 12 <= len(QMD.findall(source)) <= 15
    assert source.count("::: {.notes}") == len(QMD.findall(source)) == len(re.findall(r"^\*\*-?\d:\d\d to \d:\d\d\.\*\*", source, re.MULTILINE))
    pictures = re.findall(r"!\[\]\((\S+)\)", source)
    assert len(pictures) > 10 and all((made / p).read_bytes().startswith(b"\x89PNG") for p in pictures)
    assert "![](None" not in source and '"None"' not in source


def test_a_wrong_address_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(workshop, "ARCHIVE", "https://github.com/another/archive/refs/tags/v9.zip")
    with pytest.raises(SystemExit, match="install line"): workshop.main(tmp_path)


# ---------------------------------------------------------------- The check of a machine

def readiness():
    """The function of the teacher's page, and the line that calls it"""
    code = next(text(c) for c in workshop.notebook("08")["cells"] if "def ready(" in text(c))
    names = {"__builtins__": builtins}
    exec(code.replace("print(ready())", ""), names)
    return names["ready"]


@pytest.mark.slow
def test_readiness_check_says_ready():
    torch.set_num_threads(1)
    assert readiness()().startswith("ready")


@pytest.mark.parametrize("missing", ["torch", "matplotlib", "anywidget", "consistency_models"])
def test_readiness_check_names_what_is_missing(missing, monkeypatch):
    import importlib
    original = importlib.import_module
    def without(name, *args):
        if name == missing: raise ImportError(f"No module named {name!r}")
        return original(name, *args)
    monkeypatch.setattr(importlib, "import_module", without)
    said = readiness()()
    assert said.startswith(f"not yet: {missing}") and workshop.ARCHIVE in said


def test_readiness_check_knows_the_older_package(monkeypatch):
    import sys
    import types
    monkeypatch.setitem(sys.modules, "consistency_models", types.ModuleType("consistency_models"))
    assert "older package" in readiness()()


def test_readiness_check_survives_a_broken_install(monkeypatch):
    import consistency_models
    monkeypatch.setattr(consistency_models, "from_pretrained", lambda name: 1 / 0)
    assert readiness()().startswith("not yet: installed, but")
