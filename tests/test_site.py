"""The site without Quarto: nbdev processes every page, another renderer makes HTML of it, and a browser looks at that.

The live parts are tested on these pages, with the models as `tools/live.py` exports them, and through Node.
"""
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import check_site
import headless
import live
import pytest
import readme
import torch
import yaml
from conftest import javascript
from test_project import MODULES, NOTEBOOKS, ROOT, settings

from consistency_models import from_pretrained, inpaint, preset_mask, sampling, trajectory
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
    shown = quarto["website"]
    named = [shown["image"], shown["favicon"], quarto["format"]["html"]["css"], *quarto["project"]["resources"]]
    assert [n for n in named if not list((site / "_proc").glob(n))] == []
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


# ---------------------------------------------------------------- What the pages show


def test_a_class_is_shown_with_its_fields_and_without_links(pages):
    signatures = {}
    for page in pages.values():
        for text in ("".join(o.get("data", {}).get("text/markdown", "")) for c in page for o in c.get("outputs", [])):
            if text.count("### ") == 1 and "```python" in text:
                signatures[text.partition("### ")[2].split()[0]] = text.partition("```python")[2].partition("```")[0]
    assert "    upper:Tensor, # where the student answers, σₙ₊₁, shape `(batch,)`" in signatures["Levels"]
    assert signatures["UNet"].startswith("\nclass UNet(") and "# 1 for gray images, 3 for color" in signatures["UNet"]
    unreadable = {name: code for name, code in signatures.items()
                  if "](" in code or "$" in code or "consistency_models." in code or "__main__" in code}
    assert len(signatures) > 100 and unreadable == {}


def test_a_page_has_the_question_and_one_fold_of_an_exercise(pages):
    lesson = ["".join(c.get("source", "")) for c in pages[Path("12_paths.ipynb")]]
    assert sum("**Exercise" in text for text in lesson) == sum("<details><summary>Answer" in text for text in lesson) == 3
    assert [text for text in lesson if text.endswith("# your turn") or text.startswith(("check(", "#| code-fold: true\n#| code-summary: \"Check\""))] == []


# ---------------------------------------------------------------- As HTML

@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """nbs/live with everything that `tools/live.py` adds"""
    folder = tmp_path_factory.mktemp("scripts") / "live"
    shutil.copytree(ROOT / "nbs/live", folder)
    live.main(folder)
    return folder


@pytest.fixture(scope="module")
def html(site, scripts):
    """The rendered pages. smalldocs reads what Quarto reads, and needs Python 3.11"""
    if sys.version_info < (3, 11): pytest.skip("smalldocs needs Python 3.11")
    shutil.copytree(scripts, site / "_proc/live", dirs_exist_ok=True)
    command = [sys.executable, "-c", "import sys; from smalldocs.cli import main; sys.exit(main())", "render", "_proc"]
    result = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return site / "_proc/_docs"


@pytest.fixture(scope="module")
def served(html):
    with check_site.serve(html) as address: yield address


@pytest.fixture(scope="module")
def chromium():
    with headless.browser() as found: yield found


@pytest.fixture
def visit(chromium, served):
    """Open a page, without any network but this site, wait for its live part; fails if there was an error"""
    contexts, errors = [], []
    def open_page(name, width=1280, ready=True, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(served) else route.abort())
        page.goto(f"{served}/{name}.html", wait_until="domcontentloaded")
        page.locator(".live").scroll_into_view_if_needed()
        if ready: page.wait_for_selector(".live[data-ready]")
        return page
    yield open_page
    for context in contexts: context.close()
    assert errors == []


def pixels(page, selector=".live canvas"):
    """The colors of each canvas, as text"""
    return page.eval_on_selector_all(selector, "all => all.map(c => c.toDataURL())")


def changes(page, read, before):
    """Wait until what `read(page)` gives is another than `before`, and give it"""
    for _ in range(100):
        if (now := read(page)) != before: return now
        page.wait_for_timeout(50)
    raise AssertionError("nothing changed")


def rest(page, read):
    """What `read(page)` gives once the part has done all it was asked"""
    page.wait_for_timeout(50)
    page.wait_for_function("() => !document.querySelector('.live [aria-busy=true]')")
    return read(page)


def said(page): return page.locator(".live-note").first.inner_text()


def test_the_site_has_no_faults(html): assert check_site.faults(html) == {}


def test_each_fault_is_found(tmp_path):
    (tmp_path / "other.html").write_text('<h1 id="here">Here</h1>')
    (tmp_path / "index.html").write_text("""<!doctype html>
        <img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Colab"><img src="x.png">
        <a href="gone.html">1</a><a href="other.html#there">2</a><a href="other.html#here">3</a><p style="position: absolute; left: 0; width: 500px">wide""")
    assert [fault.partition(": ")[0] for fault in check_site.faults(tmp_path)["index.html"]] == [
        "badge without link", "no alt text", "dead link", "dead anchor", "500 pixels wide in a window of 400"]


# ---------------------------------------------------------------- Models in JavaScript

ANSWER = """(async () => {
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create(readFileSync(file)), f = (x, sigma, asked) =>
        network.evaluate(ort, session, { x: Float32Array.from(x), shape, sigma, ...asked });
    BODY })()"""
NODE = {"scripts": ("vendor/ort.wasm.bundle.min.mjs", "network.js", "algorithms.js")}


def answer(scripts, name, code, **given):
    """What the body of a function gives that knows `f` of a model"""
    shape = from_pretrained(name).notes["shape"]
    made = javascript(ANSWER.replace("BODY", code), scripts, **NODE, file=str(scripts / f"models/{name}.onnx"), shape=list(shape), **given)
    return torch.tensor(made).reshape(-1, *shape)


@pytest.mark.parametrize("name", live.NAMES)
def test_exported_models_answer_as_in_pytorch_for_any_batch(scripts, name):
    net = from_pretrained(name).eval()
    for n in (1, 3, 16):
        x, sigma, labels, weight = live.examples(net, n)
        with torch.no_grad(): expected = live.F(net)(x, sigma, labels, weight)
        found = answer(scripts, name, "return [...await f(x, sigma, { labels, weight })];",
                       x=x.flatten().tolist(), sigma=sigma.tolist(), labels=labels.tolist(), weight=weight.tolist())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_sampling_and_editing_are_the_package_s(scripts, monkeypatch):
    net, sigmas = from_pretrained("avatars"), [80., 2., 0.4]
    z = [torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    known, mask = live._examples(net, 2)[0], preset_mask("top", 16, 16)
    run = """const last = async about => { let step; for await (step of algorithms.steps((x, sigma) =>
                 f(x, sigma, { labels: [0, 2], weight: 1.5 }), sigmas, z.map(x => Float32Array.from(x)), about)); return [...step.denoised]; };
             return last(about ? { known: Float32Array.from(about.known), mask: about.mask } : {});"""
    asked = {"sigmas": sigmas, "z": [x.flatten().tolist() for x in z]}
    for about in (None, {"known": known.flatten().tolist(), "mask": mask.expand(2, 3, 16, 16).flatten().tolist()}):
        draws = iter(z)
        monkeypatch.setattr(sampling, "randn_like", lambda *_: next(draws))       # noqa: B023
        labels = {"class_labels": torch.tensor([0, 2]), "weight": 1.5}
        if about: expected = inpaint(net, known, mask, sigmas, **labels)
        else: *_, (_, _, expected) = trajectory(net, torch.empty(2, 3, 16, 16), sigmas, **labels)
        torch.testing.assert_close(answer(scripts, "avatars", run, about=about, **asked), expected, rtol=0, atol=1e-3)


def test_noise_is_normal_and_the_same_for_a_seed():
    z = torch.tensor(list(javascript("algorithms.normal(3, 100001)", scripts=("algorithms.js",)).values()))
    again = javascript("algorithms.normal(3, 4)", scripts=("algorithms.js",))
    assert list(again.values()) == z[:4].tolist() and javascript("algorithms.normal(4, 4)", scripts=("algorithms.js",)) != again
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z[:-1] * z[1:]).mean()) < 0.01


# ---------------------------------------------------------------- Live parts in a browser

PARTS = {"home": "index", "sampling": "18_sampling", "editing": "19_editing", "paths": "12_paths", "schedules": "11_schedules",
         "parameterization": "13_parameterization", "losses": "16_losses"}


@pytest.mark.parametrize("part", PARTS)
def test_a_picture_stands_without_scripts(visit, part):
    page = visit(PARTS[part], ready=False, java_script_enabled=False)
    still = page.locator(".live > img").element_handle()
    assert still.get_attribute("src") == f"images/live-{part}.png" and still.bounding_box()["height"] > 200


CONTRAST = """selector => {
    const bright = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(v => (v / 255) ** 2.2); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = bright(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll(selector)].map(e => bright(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']))
        .map(front => (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05)); }"""


@pytest.mark.parametrize("part", PARTS)
def test_every_part_starts_on_a_phone_and_is_drawn(visit, part):
    """In both schemes text can be told from the page: a contrast of 4.5 is what WCAG asks for"""
    page = visit(PARTS[part], width=400, has_touch=True, is_mobile=True)
    for scheme in ("light", "dark"):
        page.evaluate("""scheme => { document.documentElement.dataset.bsTheme = scheme;
                                     document.documentElement.classList.toggle('quarto-dark', scheme === 'dark'); }""", scheme)
        read = page.evaluate(CONTRAST, ".live-note, .live label:not(.live-choice label), .live output, .live-axes text")
        assert len(read) > 2 and min(read) > 4.5
    assert page.locator(".live > img").count() == page.locator(".live-error").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    drawn = rest(page, pixels) + page.eval_on_selector_all(".live svg", "all => all.map(s => s.innerHTML)")
    assert min(map(len, drawn)) > 100 and len(set(drawn)) == len(drawn)
    unnamed = page.eval_on_selector_all(".live input, .live select, .live button, .live [tabindex]",
        "all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)")
    assert unnamed == []


def test_home_draws_anew_when_noise_or_level_changes_and_completes_what_is_painted_over(visit):
    page = visit("index")
    before = rest(page, pixels)
    page.get_by_role("button", name="new noise").click()
    fresh = changes(page, lambda p: pixels(p)[8:16], before[8:16])
    assert len(set(before[8:16] + fresh)) == 16
    page.get_by_label("noise", exact=True).focus()
    page.keyboard.press("Home")
    assert "Little noise" in changes(page, said, said(page))
    board, ends = page.locator(".cm-board"), rest(page, lambda p: pixels(p)[-4:])
    box = board.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.8 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    page.mouse.up()
    changes(page, lambda p: pixels(p)[-4:], ends)


def test_in_sampling_a_level_changes_its_step_only(visit):
    page = visit("18_sampling")
    rows = rest(page, pixels)
    page.get_by_label("level 2").focus()
    page.keyboard.press("PageUp")
    after = rest(page, pixels) if changes(page, pixels, rows) else None
    assert after[:16] == rows[:16] and not set(after[16:]) & set(rows[16:]) and len(rows) == 32
    page.get_by_label("steps").focus()
    page.keyboard.press("Home")
    assert changes(page, pixels, after) == rows[:16] and page.get_by_label("level 2").is_hidden()
    page.locator(".live").get_by_text("MNIST", exact=True).click()
    assert len(set(rest(page, pixels))) == 16
    page.get_by_label("class").select_option("3")
    changes(page, lambda p: pixels(p)[8:], pixels(page)[8:])


def test_the_model_that_was_asked_last_is_shown_also_when_an_earlier_one_comes_later(visit):
    page, held = visit("18_sampling"), []
    page.route("**/mnist.json", lambda route: held.append(route))   # noqa: PLW0108
    for name in ("MNIST", "8×8 digits"): page.locator(".live").get_by_text(name, exact=True).click()
    width = lambda page: page.eval_on_selector(".live canvas", "canvas => canvas.width")
    assert changes(page, width, 16) == 8
    held[0].continue_()
    page.wait_for_timeout(500)
    assert width(page) == 8 and page.get_by_label("8×8 digits").is_checked()


def test_a_model_that_does_not_load_is_told_and_can_be_asked_again(visit):
    page = visit("19_editing")
    page.evaluate("addEventListener('unhandledrejection', event => event.preventDefault())")      # expected here
    page.route("**/mnist.json", lambda route: route.abort())
    page.locator(".live").get_by_text("MNIST", exact=True).click()
    page.locator(".live-said").wait_for()
    assert page.get_by_label("faces").is_checked() and "did not work" in page.locator(".live-said").inner_text()
    page.unroute("**/mnist.json")
    before = pixels(page)
    page.locator(".live").get_by_text("MNIST", exact=True).click()
    changes(page, pixels, before)
    assert page.get_by_label("MNIST").is_checked() and page.locator(".live-said").count() == 0


def test_in_editing_masks_keys_and_colors_work(visit):
    page, results = visit("19_editing", has_touch=True), lambda page: pixels(page)[1:]
    hair = rest(page, results)
    page.get_by_role("button", name="bottom").click()
    changes(page, results, hair)
    assert len(set(hair)) == len(set(rest(page, results))) == 6 and "50% is hidden" in said(page)
    page.get_by_role("button", name="clear", exact=True).click()
    assert "Nothing is hidden" in changes(page, said, said(page)) and len(set(rest(page, results))) == 1
    page.locator(".cm-board").focus()
    for key in ("ArrowUp", "Space", "ArrowLeft", "Space"): page.keyboard.press(key)
    assert "% is hidden" in changes(page, said, said(page))
    page.get_by_role("button", name="undo").click()
    page.get_by_role("button", name="undo").click()
    assert "Nothing is hidden" in rest(page, said)
    page.get_by_text("with colors").click()
    assert "Your colors" in changes(page, said, said(page))        # a rough hat is painted already
    hats = rest(page, results)
    box = page.locator(".cm-board").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 0.9 * box["height"])
    changes(page, results, hats)
    page.get_by_role("button", name="clear", exact=True).click()
    assert "Nothing is painted" in changes(page, said, said(page))


def test_paths_bend_after_a_dragged_point_and_training_can_be_scrubbed(visit):
    page = visit("12_paths")
    before, box = said(page), page.locator(".live svg").first.bounding_box()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.2 * box["height"], steps=4)
    page.mouse.up()
    dragged = changes(page, said, before)
    for text in ("ECT", "what the loss asks", "two moons", "exact"):
        page.locator(".live").get_by_text(text, exact=True).first.click()
        dragged = changes(page, said, dragged)
    page.locator(".live").get_by_text("CD", exact=True).first.click()
    page.get_by_label("training").focus()
    page.keyboard.press("Home")
    changes(page, said, dragged)


@pytest.mark.parametrize("part, slider", [("schedules", "ρ"), ("parameterization", "σ data"), ("losses", "c"), ("losses", "share at −0.6")])
def test_a_formula_follows_its_slider(visit, part, slider):
    page = visit(PARTS[part])
    drawn = lambda p: p.eval_on_selector_all(".live svg", "all => all.map(svg => svg.innerHTML)")
    before = drawn(page), said(page)
    page.get_by_label(slider, exact=True).focus()
    page.keyboard.press("End")
    assert changes(page, drawn, before[0])
