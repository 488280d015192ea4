"""Notebooks with the answers of their exercises as cells: `python tools/answers.py FOLDER` writes them all.

On a page an answer stands in `<details>`, which folds in Jupyter, on Colab and on the site, and is not run there. In
the copies its code is, right after the cell where a reader would type, so that the check below sees the answer.
`tools/run.sh` runs the copies.
"""

import json
import re
import shutil
import sys
from pathlib import Path

NBS = Path(__file__).parent.parent / "nbs"
ANSWER = re.compile(r"<details><summary>Answer.*?</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def answers(cell):
    """The code of the answers that a cell holds"""
    if cell["cell_type"] != "markdown": return []
    return [code for text in ANSWER.findall("".join(cell["source"])) for code in CODE.findall(text)]


def is_turn(cell):
    """Is this the cell where a reader types?"""
    return cell["cell_type"] == "code" and "".join(cell["source"]).endswith("# your turn")


def with_answers(notebook):
    """The notebook, where the code of each answer is a cell after the last one before it in which a reader types"""
    cells, place = [], 0
    for cell in notebook["cells"]:
        cells.append(cell)
        if is_turn(cell): place = len(cells)
        made = [{"cell_type": "code", "id": f"{cell['id']}-{i}", "metadata": {}, "outputs": [],
                 "execution_count": None, "source": code.splitlines(True)} for i, code in enumerate(answers(cell))]
        cells[place:place] = made
        place += len(made)
    return notebook | {"cells": cells}


def write(folder):
    """Copies of all notebooks, in the same places below `folder`"""
    shutil.rmtree(folder, ignore_errors=True)
    for path in NBS.rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        copy = folder / path.relative_to(NBS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        notebook = with_answers(json.loads(path.read_text(encoding="utf-8")))
        copy.write_text(json.dumps(notebook), encoding="utf-8")


if __name__ == "__main__": write(Path(sys.argv[1]))
