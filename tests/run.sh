#!/usr/bin/env bash
# What `make test` runs inside the environment: the export leaves no difference, notebooks are clean and run, tests pass.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE MPLBACKEND=agg

step() { printf '\n== %s\n' "$*"; }
before=$(mktemp) after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
fingerprint() { find consistency_models nbs README.md -type f ! -path '*/__pycache__/*' ! -path '*/.ipynb_checkpoints/*' -print0 | sort -z | xargs -0 cksum; }

step "export and clean leave no difference"
fingerprint > "$before"
nbdev_export
nbdev_clean
python tests/readme.py
python tests/stubs.py
fingerprint > "$after"
diff "$before" "$after" || { echo "run 'make export' and commit the result"; exit 1; }

step "every notebook runs"
OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing   # one thread for each worker: two cores in all

step "tests"
python -m pytest -q tests
