#!/usr/bin/env bash
# The site, in _docs: the live parts, then nbdev and Quarto, then what is wrong with the result.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v quarto > /dev/null || { echo "install Quarto 1.7 first: https://quarto.org/docs/download"; exit 1; }
python tools/live.py
touch README.md CONTRIBUTING.md     # newer than their notebooks, so that nbdev does not write its own
nbdev_docs
python tools/check_site.py _docs
echo "look at it with: python -m http.server --directory _docs"
