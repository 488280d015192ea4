"""What is wrong with the rendered site: `python tools/check_site.py FOLDER` prints it, and fails if there is anything.

A badge that is no link, a picture without alt text, a link to a page or an anchor that is not there; and with a
browser a page that has to be scrolled sideways on a phone of 400 pixels or on a screen of 1,280. The workflow runs it
on what Quarto renders, the tests on what another renderer makes of the same pages.
"""

import contextlib
import functools
import http.server
import sys
import threading
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from headless import browser

SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
BASE = SETTINGS["DEFAULT"]["doc_baseurl"]       # where the site lies; links of the page for what is not there begin so
WIDTHS = 400, 1280


def pages(folder):
    """The pages of the site, parsed"""
    return {p: BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for p in sorted(folder.rglob("*.html"))}


def badges(page):
    """Badges that lead nowhere"""
    found = page.find_all("img", src=lambda s: s and "colab-badge" in s)
    linked = lambda image: (a := image.find_parent("a")) and "colab.research" in a.get("href", "")
    return [f"badge without link: {image['src']}" for image in found if not linked(image)]


def pictures(page):
    """Pictures that say nothing to those who cannot see them; decorations are marked so"""
    hidden = lambda image: image.get("role") == "presentation" or image.get("aria-hidden") == "true"
    return [f"no alt text: {image.get('src', '')[:80]}" for image in page.find_all("img")
            if not hidden(image) and not (image.get("alt") or "").strip()]


def links(folder, path, page, parsed):
    """Links within the site that lead to no page, no file or no heading"""
    wrong = []
    for a in page.find_all("a", href=True):
        address = urlsplit(a["href"])
        if address.scheme or address.netloc: continue
        place = unquote(address.path)
        start = folder if place.startswith("/") else path.parent
        target = (start / place.removeprefix(BASE).lstrip("/")).resolve() if place else path
        if target.is_dir(): target = target / "index.html"
        if not target.exists(): wrong.append(f"dead link: {a['href']}")
        elif address.fragment and target in parsed and not parsed[target].find(id=unquote(address.fragment)):
            wrong.append(f"dead anchor: {a['href']}")
    return wrong


@contextlib.contextmanager
def serve(folder):
    """The address of a server of the folder, also below the path that the site has"""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
        def translate_path(self, path): return super().translate_path(path.removeprefix(BASE))
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{server.server_port}"
        finally: server.shutdown()


WIDE = """() => {
    const over = e => e.getBoundingClientRect().right > innerWidth + 1;
    const out = [...document.body.querySelectorAll('*')].filter(over).map(e => e.tagName + '.' + e.className);
    return [document.documentElement.scrollWidth, out.slice(0, 3).join(', ')]; }"""


def wide(folder, found):
    """Pages that are wider than the window, and what sticks out"""
    wrong = {path: [] for path in found}
    with serve(folder) as address, browser() as chromium:
        page = chromium.new_page(viewport={"width": WIDTHS[0], "height": 800})
        # a badge that is slow to come changes nothing; what renders formulas has to come
        far = lambda request: request.resource_type == "image" and not request.url.startswith(address)
        page.route("**/*", lambda route: route.abort() if far(route.request) else route.continue_())
        for path in found:
            page.goto(f"{address}/{path.relative_to(folder).as_posix()}", wait_until="load")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                needed, widest = page.evaluate(WIDE)
                if needed > width: wrong[path].append(f"{needed} pixels wide in a window of {width}: {widest}")
    return wrong


def faults(folder):
    """What is wrong, by page"""
    folder = Path(folder).resolve()
    parsed = pages(folder)
    found = {path: badges(page) + pictures(page) + links(folder, path, page, parsed) for path, page in parsed.items()}
    for path, more in wide(folder, parsed).items(): found[path] += more
    return {path.relative_to(folder).as_posix(): wrong for path, wrong in found.items() if wrong}


if __name__ == "__main__":
    wrong = faults(sys.argv[1])
    for path, said in wrong.items(): print(path, *said, sep="\n  ")
    sys.exit(f"{len(wrong)} pages have faults" if wrong else 0)
