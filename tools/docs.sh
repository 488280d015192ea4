#!/usr/bin/env bash
# The site, in _docs: the live parts, then nbdev and Quarto. nbdev writes README.md and CONTRIBUTING.md too, with links
# that lead nowhere on GitHub: ours are put back.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v quarto > /dev/null || { echo "install Quarto 1.7 first: https://quarto.org/docs/download"; exit 1; }
python tools/live.py
kept=$(mktemp -d)
cp README.md CONTRIBUTING.md "$kept"
trap 'cp "$kept"/*.md . && rm -rf "$kept"' EXIT
nbdev_docs
python tools/check_site.py _docs
echo "look at it with: python -m http.server --directory _docs"
