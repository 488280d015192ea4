"""Write what a workshop hands out: `python tools/workshop.py [OUT]`, by default into the folder `workshop`.

From nbs/tutorials/07_workshop.ipynb, which is complete and executed, and nbs/tutorials/08_teacher.ipynb:
participant.ipynb (no outputs, a cell with dots and a check for each exercise, answers folded), teacher.ipynb
(answers and outputs open, the minutes of the script below the heading of each part), and slides.qmd with its
pictures. An exercise of the source is a question, `NAME = ...  # your turn`, the answer in `<details>`, and a check.
"""

import base64
import copy
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from answers import CODE, answers, is_turn

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "nbs/tutorials"
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
SITE = SETTINGS["doc_host"].lower() + SETTINGS["doc_baseurl"]
COPY = "On Colab choose *File*, *Save a copy in Drive*, and work in the copy: otherwise your answers are lost with the tab."
ARCHIVE = f"{SETTINGS['git_url']}/archive/refs/tags/v{SETTINGS['version']}.zip"

# Each slide: title, figure (page and label), lines on the slide, minutes, notes
SLIDES = [
    ("From noise to a face in one step", "07 fig-ready",
     "Pairs, one keyboard. Open the notebook, save a copy, run the first cells.",
     "-0:20 to 0:08", "Up while they arrive, in turn with the painter. Read the address aloud once."),
    ("Two hours", None,
     "A. Noise levels · B. The consistency function · C. Paths · *break* · D. One step, two steps · "
     "E. Editing · F. Six mistakes · G. Six questions",
     "0:05 to 0:06", "Write the clock times beside the parts. Three habits: guess, measure, distrust one seed."),
    ("At which noise level is a digit lost?", "07 fig-reading", "Hands: 0.5, 1, 2, 5, 10?",
     "0:08 to 0:14", "Take the hands before this picture is up. Many will reason from the noise of one pixel."),
    ("How far a machine gets", "07 fig-reading-rate", "It knows a thousand digits by heart.",
     "0:16 to 0:19", "Mark on the curve the means of the room, collected at 0:14. "
     "Where is it decided? That part of the axis comes back in D and E."),
    ("A promise kept by construction", "08 fig-board", "f(x, σ_min) = x, exactly, for any network.",
     "0:20 to 0:23", "Draw c_skip by hand, let somebody draw c_out, then show this. Where do they cross?"),
    ("Both terms at work", "07 fig-parts", "At the left the network is muted; at the right it draws alone.",
     "0:26 to 0:27", "Ask why the last face is another one. We said glasses; the noise said the rest."),
    ("Where does each noise lead?", "07 fig-paths", "Paths bend into the data. A jump goes to the end.",
     "0:30 to 0:33", "Ask: can two paths cross? Point at the axis: it is the noise level."),
    ("Why not predict the clean picture?", "08 fig-blur", "Averages are gray. Ends of paths are pictures.",
     "0:36 to 0:37", "Asked or not: the best guess is the upper row; many small steps along it, or one jump, give the lower."),
    ("Learned without solving anything", "07 fig-learned", "One noise, two levels, one answer.",
     "0:41 to 0:43", "Which line solves an equation? None. (The models of the package were distilled from a "
     "teacher that does take steps.)"),
    ("One evaluation, or two?", "07 fig-second", "Too low covers nothing. Too high forgets. Which second level?",
     "0:53 to 0:56", "Do not show the next slide before the competition is over."),
    ("The hill, and the seed", "08 fig-hill", "Pixels: a hill. As asked: the seed counts as much as the level.",
     "1:06 to 1:08", "After the secret seed. How many faces is one point?"),
    ("Finish what it never learned to finish", "07 fig-fill", "Known pixels are put back after every jump.",
     "1:13 to 1:15", "Nothing was trained for this. Let the room say what 1 means in the mask."),
    ("Who decides, picture or label?", "07 fig-labels", "Little noise: the picture. Much noise: the label.",
     "1:19 to 1:21", "Back to the curve of part A: where can the digit still be read?"),
    ("Six results, six mistakes", "07 fig-faults", "Letters to numbers. No code.",
     "1:23 to 1:32", "In rows A and E the digits are right and the contrast is wrong: take these two if nobody disagrees. Which one number would you print?"),
    ("What came after", "07 fig-end",
     "Distillation, easy tuning, continuous time, latents: lessons 20 to 27. "
     "Text, code and weights: MIT license. Faces in the style Pixel Art of DiceBear, CC0.",
     "1:37 to 1:40", "First one sentence from each pair. Leave this up, with the address of the course."),
]


def text(cell):
    """The source of a cell"""
    return "".join(cell["source"])


def notebook(number):
    """The tutorial of this number"""
    path, = TUTORIALS.glob(f"{number}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))


def option(cell, name):
    """An option of a code cell, such as `code-summary`, without its quotes"""
    found = re.search(rf"^#\| {name}: *(.*)$", text(cell), re.M) if cell["cell_type"] == "code" else None
    return found and found[1].strip('"')


def code(cell):
    """The code of a cell without its options"""
    return re.sub(r"^#\|.*\n?", "", text(cell), flags=re.M)


def abroad(source):
    """Markdown for a notebook outside the site: no badge of its page, and links that lead to the site"""
    source = re.sub(r"^\[!\[Open In Colab\].*$", COPY, source, flags=re.M)
    address = lambda m: f"]({SITE}/{'' if m[1] else 'tutorials/'}{m[2]}.html{m[3] or ''})"
    return re.sub(r"\]\((\.\./)?(\w+)\.ipynb(#[^)]*)?\)", address, source)


def words(cell):
    """The words of an answer, without its code and out of `<details>`"""
    return CODE.sub("", re.sub(r"<summary>.*?</summary>|</?details>", "", text(cell))).strip()


def markdown(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code_cell(source, metadata=None, outputs=()):
    return {"cell_type": "code", "execution_count": None, "metadata": metadata or {}, "outputs": list(outputs), "source": source}


def exercise(turn, answer, check):
    """What a participant gets below a question: the dots, the check, and the answer, folded"""
    return [code_cell(text(turn)), hidden(check, "Check"), markdown(abroad(text(answer)))]


def hidden(cell, title):
    """A cell whose code is folded in Colab and in JupyterLab"""
    return code_cell(f"# @title {title}\n{code(cell)}", {"cellView": "form", "jupyter": {"source_hidden": True}})


def participant(cells):
    """The notebook without outputs and open answers"""
    made, cells = [], iter(cells)
    for cell in cells:
        summary = option(cell, "code-summary")
        if cell["cell_type"] == "markdown": made.append(markdown(abroad(text(cell))))
        elif is_turn(cell): made += exercise(cell, next(cells), next(cells))
        elif option(cell, "code-fold"): made.append(hidden(cell, summary or ("Figure" if option(cell, "label") else "Code")))
        else: made.append(code_cell(code(cell)))
    return made


def minutes():
    """The sections of the teacher's script, by the titles of the parts"""
    source = "\n\n".join(text(c) for c in notebook("08")["cells"] if c["cell_type"] == "markdown")
    script = re.split(r"^## ", source, flags=re.M)
    script = next(s for s in script if s.startswith("The script"))
    parts = [part.partition("\n") for part in re.split(r"^### ", script, flags=re.M)[1:]]
    return {title.rpartition(" (")[0]: f"**{title}**\n\n{abroad(body.strip())}" for title, _, body in parts if title.endswith(")")}


def with_minutes(source, script):
    """The text of a cell, with the teacher's script below the heading of each part"""
    def add(heading):
        part = script.get(heading[1])
        quoted = part and "\n".join(f"> {line}".rstrip() for line in part.splitlines())
        return f"{heading[0]}\n\n{quoted}" if part else heading[0]
    return re.sub(r"^## (.+?) \(\d+ minutes\)$", add, source, flags=re.M)


def teacher(cells):
    """The notebook with answers and outputs in the open"""
    script, made, cells = minutes(), [], iter(cells)
    for cell in cells:
        if cell["cell_type"] == "markdown":
            made.append(markdown(with_minutes(abroad(text(cell)), script)))
            continue
        if not is_turn(cell):
            made.append(code_cell(code(cell), outputs=copy.deepcopy(cell["outputs"])))
            continue
        answer, check = next(cells), next(cells)
        made += [*map(code_cell, answers(answer)), markdown("**Answer.** " + abroad(words(answer))), code_cell(code(check))]
    return made


def pictures():
    """The stored figures of both pages, by page and label: `07 fig-ready`"""
    found = {}
    for number in ("07", "08"):
        for cell in notebook(number)["cells"]:
            drawn = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
            if drawn: found[f"{number} {option(cell, 'label')}"] = base64.b64decode("".join(drawn[0])), option(cell, "fig-alt")
    return found


def slides(drawn):
    """The text of the slides"""
    head = ("---\ntitle: From noise to a face in one step\nformat:\n  revealjs:\n    slide-number: true\n"
            f"    footer: \"[{SITE.removeprefix('https://')}]({SITE}/)\"\ntitle-slide-attributes:\n  data-visibility: hidden\n---\n")
    parts = [head]
    for title, figure, line, when, notes in SLIDES:
        shown = figure and f"![]({figure.split()[1]}.png){{height=440 fig-alt=\"{drawn[figure][1]}\"}}\n\n"
        parts.append(f"## {title}\n\n{shown or ''}{line}\n\n::: {{.notes}}\n**{when}.** {notes}\n:::\n")
    return "\n".join(parts)


def write(path, original, cells):
    """One notebook, with an id for each cell"""
    for i, cell in enumerate(cells):
        cell["id"], cell["source"] = f"cell-{i}", cell["source"].strip("\n").splitlines(keepends=True)
    made = original | {"cells": cells}
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(out):
    """Write all files into the folder `out`"""
    out.mkdir(parents=True, exist_ok=True)
    original, drawn = notebook("07"), pictures()
    named = re.findall(r"https://\S+?/archive/\S+?\.zip", "\n".join(map(text, original["cells"])))
    if set(named) != {ARCHIVE}: raise SystemExit(f"the install line must name {ARCHIVE}, got {', '.join(named)}")
    write(out / "participant.ipynb", original, participant(original["cells"]))
    write(out / "teacher.ipynb", original, teacher(original["cells"]))
    (out / "slides.qmd").write_text(slides(drawn), encoding="utf-8")
    for figure in filter(None, (slide[1] for slide in SLIDES)):
        (out / f"{figure.split()[1]}.png").write_bytes(drawn[figure][0])
    print(f"participant.ipynb, teacher.ipynb and slides.qmd are in {out}")


if __name__ == "__main__": main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "workshop")
