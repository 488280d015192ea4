"""Write README.md from nbs/index.ipynb: `python tests/readme.py`."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def text_of(output):
    """The plain text of a cell's output, as an indented block."""
    text = "".join(output.get("text") or output.get("data", {}).get("text/plain", []))
    return "\n".join("    " + line for line in text.rstrip().splitlines())


def block(cell):
    """One cell as Markdown; hidden cells and empty ones give nothing."""
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown": return source
    if not source or re.search(r"^#\| *(hide|include: *false)", source, re.M): return ""
    shown = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
    return "\n\n".join([f"```python\n{shown.strip()}\n```", *filter(None, map(text_of, cell["outputs"]))])


def render(notebook=ROOT / "nbs/index.ipynb"):
    """README.md as text; links and pictures, relative to `nbs/` in the notebook, are made relative to the top."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(filter(None, map(block, cells)))
    text = re.sub(r"\]\((?!https?:|#|\.\./)([^)]+)\)", r"](nbs/\1)", text).replace("](../", "](")
    return "<!-- Made from nbs/index.ipynb by tests/readme.py; edit the notebook. -->\n\n" + text + "\n"


if __name__ == "__main__": (ROOT / "README.md").write_text(render(), encoding="utf-8")
