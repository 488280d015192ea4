#!/usr/bin/env bash
# What `make test` runs inside the environment: the export leaves no difference, notebooks are clean and run, tests pass.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000} MPLBACKEND=agg

step() { printf '\n== %s\n' "$*"; }
before=$(mktemp) after=$(mktemp)
results=$(mktemp -d)
trap 'rm -rf "$before" "$after" "$results" _run' EXIT
fingerprint() { find consistency_models nbs README.md -type f ! -path '*/__pycache__/*' ! -path '*/.ipynb_checkpoints/*' -print0 | sort -z | xargs -0 cksum; }

step "export and clean leave no difference"
fingerprint > "$before"
nbdev_export
nbdev_clean
python tools/readme.py
fingerprint > "$after"
diff "$before" "$after" || { echo "run 'make export' and commit the result"; exit 1; }

step "every notebook runs, with the answers of its exercises"
python tools/answers.py _run
OMP_NUM_THREADS=1 nbdev_test --path _run --n_workers 2 --timing   # one thread for each worker: two cores in all

step "the GPU check, shortened, without the packages that a bare machine lacks"
python tools/gpu.py --quick --out "$results"

step "tests"
OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile tests
