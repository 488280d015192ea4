"""Write what is made from the text of the notebooks: `python tools/readme.py`.

README.md from nbs/index.ipynb, CONTRIBUTING.md from nbs/contributing.ipynb, and nbs/llms.txt from
nbs/sidebar.yml and the title cells of the notebooks that it lists. The figures of the home page go to
nbs/images, under their labels.
"""

import base64
import json
import re
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
ADDRESS = f"{SETTINGS['DEFAULT']['git_url']}/blob/{SETTINGS['DEFAULT']['branch']}/nbs"
CONVENTIONS = """\
Conventions: data `x` lies in [-1, 1] and has shape (batch, ...); a network is any callable
`net(x, sigma, **kwargs)`, to which `consistency_function(net)` adds c_skip and c_out; noise levels
`sigmas` descend in sampling; `mask` is 1 where to generate."""


def text_of(output):
    """The plain text of a cell's output, as an indented block."""
    text = "".join(output.get("text") or output.get("data", {}).get("text/plain", []))
    return "\n".join("    " + line for line in text.rstrip().splitlines())


def figure(cell):
    """The label of a cell's figure and its bytes, or nothing"""
    label = re.search(r"^#\| label: (fig-[\w-]+)", "".join(cell["source"]), re.M)
    drawn = [o["data"]["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    return (label[1], base64.b64decode("".join(drawn[0]))) if label and drawn else None


def block(cell):
    """One cell as Markdown; hidden cells and empty ones give nothing."""
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown": return source
    if not source or re.search(r"^#\| *(hide|include: *false)", source, re.M): return ""
    shown = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
    found, alt = figure(cell), re.search(r'^#\| fig-alt: "(.*)"', source, re.M)
    printed = [f"![{alt[1]}](images/{found[0]}.png)"] if found else filter(None, map(text_of, cell["outputs"]))
    return "\n\n".join([f"```python\n{shown.strip()}\n```", *printed])


def cells(notebook):
    """The cells of a notebook"""
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def render(notebook):
    """A notebook as Markdown; links relative to `nbs/` are made relative to the top"""
    text = "\n\n".join(filter(None, map(block, cells(notebook))))
    text = re.sub(r"\]\((?!https?:|#|\.\./)([^)]+)\)", r"](nbs/\1)", text).replace("](../", "](")
    origin = notebook.relative_to(ROOT).as_posix()
    return f"<!-- Made from {origin} by tools/readme.py; edit the notebook. -->\n\n{text}\n"


def title(notebook):
    """The title of a notebook and its line of description"""
    texts = ["".join(cell["source"]) for cell in cells(notebook)]
    text = next(t for t in texts if t.startswith("# "))
    return text.splitlines()[0].removeprefix("# "), text.splitlines()[-1].removeprefix("> ")


def line(path):
    """The line of llms.txt for a page of the sidebar"""
    name, description = title(ROOT / "nbs" / path)
    return f"- [{name}]({ADDRESS}/{path}): {description}"


def llms():
    """llms.txt: what the project is, and a link to each page in reading order"""
    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8"))
    contents = sidebar["website"]["sidebar"]["contents"]
    name, description = title(ROOT / "nbs/index.ipynb")
    start = "## Start\n\n" + "\n".join(line(p) for p in contents if isinstance(p, str))
    sections = [f"## {p['section']}\n\n" + "\n".join(map(line, p["contents"])) for p in contents if "section" in p]
    return "\n\n".join([f"# {name}", f"> {description}", CONVENTIONS, start, *sections]) + "\n"


def files():
    """Everything that this script writes, by path"""
    sources = {"README.md": "index.ipynb", "CONTRIBUTING.md": "contributing.ipynb"}
    made = {ROOT / name: render(ROOT / "nbs" / notebook) for name, notebook in sources.items()}
    return made | {ROOT / "nbs/llms.txt": llms()}


def pictures():
    """The figures of the home page, by path"""
    found = filter(None, map(figure, cells(ROOT / "nbs/index.ipynb")))
    return {ROOT / f"nbs/images/{label}.png": content for label, content in found}


if __name__ == "__main__":
    for path, text in files().items(): path.write_text(text, encoding="utf-8")
    for path, content in pictures().items(): path.write_bytes(content)
