#!/usr/bin/env bash
# Pin everything anew: run.txt (what the project needs to build and run) and dev.txt (what its tests and checks add).
# Needs uv on the PATH.  Files name no package index: pip's own settings choose one, the hashes say what is accepted.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    uv pip compile "$@" --quiet --universal --python-version 3.12 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-header --no-annotate
}

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
compile pyproject.toml requirements/build.in --output-file "$fresh/run.txt"

# dev.txt holds only what run.txt does not, at versions that agree with it.
known=()
while read -r name; do known+=(--no-emit-package "$name"); done < <(sed -n 's/^\([a-z0-9-]*\)==.*/\1/p' "$fresh/run.txt")
compile pyproject.toml requirements/build.in --group dev --constraint "$fresh/run.txt" "${known[@]}" \
    --output-file "$fresh/dev.txt"

{ echo "# Made by requirements/compile.sh from pyproject.toml and build.in."; cat "$fresh/run.txt"; } > requirements/run.txt
{
    echo "# Made by requirements/compile.sh from pyproject.toml: the group dev, without what run.txt already pins."
    echo "-r run.txt"
    grep -v '^#' "$fresh/dev.txt"
} > requirements/dev.txt
