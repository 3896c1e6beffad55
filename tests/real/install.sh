#!/bin/sh
# Installs the real programs that tests/clients starts, on Debian or Ubuntu (see installing.sh). That
# one is missing is an error only in CI.
set -eu

CRANE=v0.22.1
CONTAINERD=v2.4.2
GO_AT_LEAST=1.24

PACKAGED="docker-registry:docker-registry skopeo:skopeo podman:podman containerd:containerd
dockerd:docker.io docker:docker.io runc:runc crun:crun busybox:busybox-static unshare:util-linux"

root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/tests/real/installing.sh"

build_programs() {
    if ! go_is_at_least "$GO_AT_LEAST"; then
        leave_out "crane and containerd 2: that takes Go $GO_AT_LEAST"
        return 0
    fi
    build "" github.com/google/go-containerregistry "$CRANE" cmd/crane
    build "no_btrfs no_devmapper no_zfs" github.com/containerd/containerd/v2 "$CONTAINERD" \
        cmd/containerd cmd/ctr cmd/containerd-shim-runc-v2
}

install_packages $PACKAGED
build_programs
[ "$complete" = yes ] || [ "${CI:-}" != true ]
