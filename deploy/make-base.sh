#!/bin/sh
# Prints a Debian 12 root filesystem as a tar archive, with all that the images need:
#
#   deploy/make-base.sh | docker import - berth-base
#   deploy/make-base.sh observability | docker import - berth-observability-base
#
# Packages come from where this machine's apt and pip get them. Numbers of users are fixed, because
# the containers share sockets and volumes.
set -eu

SLIM='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/* \
    "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/*'

case "${1-}" in
'')
    packages=btrfs-progs,ca-certificates,dnsmasq-base,libseccomp2
    hook='
        chroot "$1" groupadd --system --gid 960 berth
        user() { chroot "$root" useradd --system --uid "$1" --gid berth --home-dir /var/lib/berth --no-create-home --shell /usr/sbin/nologin "$2"; }
        root=$1
        user 960 berth
        user 961 berth-image
        install -d -o root -g 960 -m 0755 "$1/var/lib/berth" "$1/var/lib/berth/network"
        install -d -o 960 -g 960 -m 0750 "$1/var/lib/berth/gateway"
        install -d -o 961 -g 960 -m 0750 "$1/var/lib/berth/image"
        install -d -o root -g 960 -m 0750 "$1/var/lib/berth/instance"
        install -d -o root -g 960 -m 3770 "$1/run/berth"'
    ;;
observability)
    # rotel is an OpenTelemetry collector, Phoenix shows traces. pip of this machine fetches them for
    # Debian 12's Python; the new system's own installs them.
    packages=ca-certificates,libpython3.11,prometheus,python3-venv
    hook='
        python3 -m pip download --quiet --dest "$1/wheels" --only-binary=:all: --python-version 3.11 rotel arize-phoenix
        chroot "$1" python3 -m venv /opt/observability
        chroot "$1" /opt/observability/bin/pip install --quiet --no-index --find-links=/wheels rotel arize-phoenix
        rm -rf "$1/wheels"
        ln -s "$(chroot "$1" sh -c "echo /opt/observability/lib/python3*/site-packages/rotel/rotel-agent")" "$1/usr/bin/rotel"
        chroot "$1" useradd --system --uid 962 --no-create-home --shell /usr/sbin/nologin observability
        install -d -o 962 "$1/var/lib/phoenix" "$1/var/lib/prometheus"'
    ;;
*)
    echo "usage: $0 [observability]" >&2
    exit 64
    ;;
esac

exec mmdebstrap --mode=root --variant=minbase --quiet --include="$packages" \
    --customize-hook="set -e; $hook" --customize-hook="$SLIM" bookworm -
