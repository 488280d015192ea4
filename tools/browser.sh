#!/usr/bin/env bash
# Find a browser for the tests of the widgets, or install one: Debian's Chromium for root, else that of Playwright.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do command -v "$name" > /dev/null && exit 0; done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core > /dev/null
else
    python -m playwright install chromium
fi
