#!/usr/bin/env bash
# Find a browser for the tests of the widgets and of the site, or install one: Debian's Chromium for root, else that of
# Playwright. The site's tests fetch ONNX Runtime Web with npm.
set -euo pipefail
install() { apt-get update -qq; apt-get install -y -qq --no-install-recommends "$@" > /dev/null; }
debian() { [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; }
found() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

command -v npm > /dev/null || { debian && install npm; } || { echo "install Node.js, which brings npm: https://nodejs.org"; exit 1; }
found > /dev/null || { debian && install chromium fonts-dejavu-core; } || python -m playwright install chromium
