#!/bin/sh
# Installs the real programs that tests/clients and the benchmarks start, on Debian or Ubuntu:
# what is packaged with apt (as root), the rest built with Go into .tools/bin of this repository.
# Starts no service. What is there already stays as it is; what cannot be had is named and left
# out, which is an error only in CI.
set -eu

CRANE=v0.22.1
CONTAINERD=v2.4.2
GO_AT_LEAST=1.24

# program:package
PACKAGED="docker-registry:docker-registry skopeo:skopeo podman:podman containerd:containerd
dockerd:docker.io docker:docker.io runc:runc crun:crun busybox:busybox-static unshare:util-linux
nginx:nginx-light wrk:wrk"

here=$(dirname "$0")
tools=${TEST_TOOLS:-$(cd "$here/../.." && pwd)/.tools/bin}
PATH=$PATH:/usr/sbin:/sbin
export PATH

complete=yes
leave_out() {
    echo "install.sh leaves out $*" >&2
    complete=no
}

has() { command -v "$1" >/dev/null 2>&1; }

missing_packages() {
    for pair in $PACKAGED; do
        has "${pair%:*}" || echo "${pair#*:}"
    done | sort -u
}

# Packages of daemons start them, which would take the ports and sockets that tests want.
start_no_services() {
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2
}

install_packages() {
    packages=$(missing_packages)
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
        leave_out "$(echo $packages): that takes root and apt"
        return 0
    fi
    start_no_services
    apt-get update -qq >&2 || echo "install.sh: apt-get update failed" >&2
    # Later releases keep Docker's command line in a package of its own.
    if apt-cache show docker-cli >/dev/null 2>&1; then
        packages=$(echo "$packages" | sed 's/^docker\.io$/docker.io docker-cli/')
    fi
    apt_install $packages || for package in $packages; do
        apt_install "$package" || true
    done
    packages=$(missing_packages)
    [ -z "$packages" ] || leave_out "$(echo $packages): apt does not give it"
}

go_is_new_enough() {
    has go || return 1
    version=$(go env GOVERSION)
    printf '%s\n' "$GO_AT_LEAST" "${version#go}" | sort -C -V
}

# build MODULE VERSION PACKAGE...
build() {
    module=$1 version=$2
    shift 2
    for package in "$@"; do
        program=$tools/${package##*/}
        if go version -m "$program" 2>/dev/null | grep -qF "$version"; then
            continue
        fi
        CGO_ENABLED=0 GOBIN=$tools go install -tags "no_btrfs no_devmapper no_zfs" \
            "$module/$package@$version" >&2 || leave_out "${package##*/} $version: it did not build"
    done
}

build_programs() {
    if ! go_is_new_enough; then
        leave_out "crane and containerd 2: that takes Go $GO_AT_LEAST"
        return 0
    fi
    mkdir -p "$tools"
    build github.com/google/go-containerregistry "$CRANE" cmd/crane
    build github.com/containerd/containerd/v2 "$CONTAINERD" \
        cmd/containerd cmd/ctr cmd/containerd-shim-runc-v2
}

install_packages
build_programs
[ "$complete" = yes ] || [ "${CI:-}" != true ]
