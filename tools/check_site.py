"""What is wrong with the rendered site: `python tools/check_site.py FOLDER` prints it, and fails if there is anything.

A badge that is no link, a picture without alt text, a link to a page or an anchor that is not there; and with a browser
a page that has to be scrolled sideways on a phone of 400 pixels or on a screen of 1,280. The workflow runs it on what Quarto renders, the tests on what another renderer makes
of the same pages.
"""

import contextlib
import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
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
        target = path if not place else (folder / place.lstrip("/") if place.startswith("/") else path.parent / place).resolve()
        if target.is_dir(): target = target / "index.html"
        if not target.exists(): wrong.append(f"dead link: {a['href']}")
        elif address.fragment and target in parsed:
            name = unquote(address.fragment)
            if not parsed[target].find(id=name) and not parsed[target].find(attrs={"name": name}):
                wrong.append(f"dead anchor: {a['href']}")
    return wrong


def serve(folder):
    """A server of the folder, in a thread"""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextlib.contextmanager
def browser():
    """A Chromium of the system, or the one that Playwright installed"""
    from playwright.sync_api import sync_playwright
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


def wide(folder, found):
    """Pages that are wider than the window, and what sticks out"""
    server, wrong = serve(folder), {path: [] for path in found}
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": WIDTHS[0], "height": 800})
        outside = lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort()
        page.route("**/*", outside)             # a badge that is slow to come changes nothing
        for path in found:
            page.goto(f"http://127.0.0.1:{server.server_port}/{path.relative_to(folder).as_posix()}", wait_until="load")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                found_width, widest = page.evaluate("""() => {
                    const over = e => e.getBoundingClientRect().right > innerWidth + 1;
                    const out = [...document.body.querySelectorAll('*')].filter(over).map(e => e.tagName + '.' + e.className);
                    return [document.documentElement.scrollWidth, out.slice(0, 3).join(', ')]; }""")
                if found_width > width: wrong[path].append(f"{found_width} pixels wide in a window of {width}: {widest}")
    server.shutdown()
    return wrong


def faults(folder, browser=True):
    """What is wrong, by page"""
    folder = Path(folder).resolve()
    parsed = pages(folder)
    found = {path: badges(page) + pictures(page) + links(folder, path, page, parsed) for path, page in parsed.items()}
    for path, more in (wide(folder, parsed) if browser else {}).items(): found[path] += more
    return {path.relative_to(folder).as_posix(): wrong for path, wrong in found.items() if wrong}


if __name__ == "__main__":
    wrong = faults(sys.argv[1])
    for path, said in wrong.items(): print(path, *said, sep="\n  ")
    sys.exit(f"{len(wrong)} pages have faults" if wrong else 0)
