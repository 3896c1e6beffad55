#!/bin/sh
# Installs the peers that mirror is measured beside, and wrk, on Debian or Ubuntu (see
# tests/real/installing.sh). One that cannot be had is shown as failing by the benchmark.
set -eu

DISTRIBUTION=v3.1.2
ZOT=v2.1.22
DRAYAGE=0.2.9
GO_AT_LEAST=1.26

PACKAGED="docker-registry:docker-registry nginx:nginx-light wrk:wrk"

root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/real/installing.sh"

build_programs() {
    if ! go_is_at_least "$GO_AT_LEAST"; then
        leave_out "distribution 3 and zot: that takes Go $GO_AT_LEAST"
        return 0
    fi
    build "" github.com/distribution/distribution/v3 "$DISTRIBUTION" cmd/registry
    # As zot's own Makefile builds it, with the one extension that makes it a cache.
    GOEXPERIMENT=jsonv2
    export GOEXPERIMENT
    build sync zotregistry.dev/zot/v2 "$ZOT" cmd/zot
}

# A program of Rust in a wheel; the command that the package declares for itself does not find it.
install_drayage() {
    if "$tools/drayage" --version 2>/dev/null | grep -qF "$DRAYAGE"; then
        return 0
    fi
    wheel=$(mktemp -d)
    mkdir -p "$tools"
    if "${PYTHON:-python3}" -m pip install --quiet --no-deps --target "$wheel" \
        "drayage==$DRAYAGE" >&2 && cp "$wheel/bin/drayage" "$tools/drayage"; then
        chmod 755 "$tools/drayage"
    else
        leave_out "drayage $DRAYAGE: pip does not give it"
    fi
    rm -rf "$wheel"
}

install_packages $PACKAGED
build_programs
install_drayage
