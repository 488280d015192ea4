"""How long the live parts of the site take: `python benchmarks/live.py` after `python tools/live.py`.

In a headless Chromium, on one thread, as a visitor's browser does it: from opening a page of nothing else to the
first picture, and from a move of a slider to the new one. Of ten moves the median and the longest, milliseconds.
"""

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from check_site import serve  # noqa: E402
from headless import browser  # noqa: E402
from live import LIVE, visit  # noqa: E402

# a part, what is chosen first, the slider that moves, and what a move changes
MOVES = [("home", None, "noise", "canvas >> nth=9"), ("sampling", None, "level 2", ".live-line:last-child canvas >> nth=0"),
         ("sampling", "MNIST", "level 2", ".live-line:last-child canvas >> nth=0"),
         ("sampling", "8×8 digits", "level 2", ".live-line:last-child canvas >> nth=0"),
         ("paths", None, "training", "svg"), ("schedules", None, "ρ", "svg"), ("parameterization", None, "noise level", "svg"),
         ("losses", None, "c", "svg")]
TIMED = """([slider, shown]) => new Promise(done => {
    const before = performance.now(), watch = new MutationObserver(() => finish());
    const draw = CanvasRenderingContext2D.prototype.putImageData;
    const finish = () => { watch.disconnect(); CanvasRenderingContext2D.prototype.putImageData = draw;
                           requestAnimationFrame(() => done(performance.now() - before)); };
    if (shown.tagName === 'CANVAS') CanvasRenderingContext2D.prototype.putImageData = function (...a) {
        draw.apply(this, a); if (this.canvas === shown) finish(); };
    else watch.observe(shown, { subtree: true, childList: true, attributes: true });
    slider.value = Number(slider.min) + (Number(slider.max) - Number(slider.min)) * Math.random();
    slider.dispatchEvent(new Event('input')); })"""


def main():
    """Print the table"""
    print(f"{'part':28}{'first picture':>14}{'a move':>10}{'longest':>10}")
    with serve(LIVE.parent) as address, browser() as chromium:
        for name, choice, slider, shown in MOVES:
            page = chromium.new_context(viewport={"width": 900, "height": 900}).new_page()
            visit(page, address, name)
            first = page.evaluate("performance.now()")
            if choice:
                page.get_by_text(choice, exact=True).click()
                page.wait_for_timeout(4000)
            handles = [page.get_by_label(slider, exact=True).first.element_handle(), page.locator(shown).first.element_handle()]
            times = [page.evaluate(TIMED, handles) for _ in range(11)][1:]     # the first warms up
            print(f"{name + (f', {choice}' if choice else ''):28}{first:14.0f}{statistics.median(times):10.0f}{max(times):10.0f}")


if __name__ == "__main__": main()
