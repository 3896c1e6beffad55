# What the scripts have in common that install programs for tests and benchmarks; to be sourced.
# Packages come by apt (as root), the rest is built with Go into $tools. No service is started. What
# is there already stays as it is; what cannot be had is named and left out.

PATH=$PATH:/usr/sbin:/sbin
export PATH

# $root, the folder of the repository, is set by the script that sources this one.
tools=${TEST_TOOLS:-$root/.tools/bin}
complete=yes

leave_out() {
    echo "${0##*/} leaves out $*" >&2
    complete=no
}

has() { command -v "$1" >/dev/null 2>&1; }

# missing_packages PROGRAM:PACKAGE...
missing_packages() {
    for pair in "$@"; do
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

# install_packages PROGRAM:PACKAGE...
install_packages() {
    packages=$(missing_packages "$@")
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
        leave_out "$(echo $packages): that takes root and apt"
        return 0
    fi
    start_no_services
    apt-get update -qq >&2 || echo "${0##*/}: apt-get update failed" >&2
    # Later releases keep Docker's command line in a package of its own.
    if apt-cache show docker-cli >/dev/null 2>&1; then
        packages=$(echo "$packages" | sed 's/^docker\.io$/docker.io docker-cli/')
    fi
    apt_install $packages || for package in $packages; do
        apt_install "$package" || true
    done
    packages=$(missing_packages "$@")
    [ -z "$packages" ] || leave_out "$(echo $packages): apt does not give it"
}

# go_is_at_least VERSION
go_is_at_least() {
    has go || return 1
    version=$(go env GOVERSION)
    printf '%s\n' "$1" "${version#go}" | sort -C -V
}

# build TAGS MODULE VERSION PACKAGE...
build() {
    tags=$1 module=$2 version=$3
    shift 3
    mkdir -p "$tools"
    for package in "$@"; do
        program=$tools/${package##*/}
        if go version -m "$program" 2>/dev/null | grep -qF "$version"; then
            continue
        fi
        CGO_ENABLED=0 GOBIN=$tools go install -tags "$tags" "$module/$package@$version" >&2 ||
            leave_out "${package##*/} $version: it did not build"
    done
}
