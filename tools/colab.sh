#!/usr/bin/env bash
# An environment with Colab's versions of what shows widgets, in front of the packages of `.venv`: .venv/colab/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
versions="ipywidgets==7.7.1 ipykernel==6.17.1 ipython==7.34.0 traitlets==5.7.1"
[ "$(cat .venv/colab/versions 2> /dev/null)" = "$versions" ] && exit 0
python -m venv --clear --without-pip .venv/colab
python -m pip --python .venv/colab/bin/python install --quiet --disable-pip-version-check --no-deps $versions ipython-genutils backcall decorator pickleshare
packages() { "$1" -c "import sysconfig; print(sysconfig.get_path('purelib'))"; }
packages python > "$(packages .venv/colab/bin/python)/outer.pth"
echo "$versions" > .venv/colab/versions
