#!/bin/sh
# Makes the Dockerfile's two base images, under the names that it uses, on a machine that reaches no image registry.
#
#   scripts/emulate_base_images.sh              both: about 3 minutes
#   scripts/emulate_base_images.sh debian       the one that the image runs on: 1 minute
#   scripts/emulate_base_images.sh rust         the one that it is compiled in
#
# They resemble the originals as far as the Dockerfile needs: debian is debootstrap's minimal bookworm without manuals and
# translations; rust is that plus compiler, make, git, python3 and this machine's Rust toolchain. To test with; a release
# is built on the originals. Where there is an image of that name already, nothing is done; its file system is kept in
# .cache/base_images/, so that it is made once.
#
# Needs root, Debian's mirror, debootstrap, and docker, podman or buildah (ENGINE=name chooses). Debian on this machine, or
# debootstrap with Debian's keys. Where podman cannot use the defaults: BUILDAH_ISOLATION=chroot.
set -eu
cd "$(dirname "$0")/.."

ENGINE=$(scripts/container_engine.sh)
CACHE=$PWD/.cache/base_images

# The Dockerfile's name for a base, without a digest.
name_of() {
    sed -n "s/^ARG $1=\([^@]*\).*/\1/p" Dockerfile
}

there() {
    "$ENGINE" inspect --type image "$1" >/dev/null 2>&1
}

# build NAME FOLDER [FLAG...]: an image from the Dockerfile on standard input.
build() {
    name=$1 folder=$2
    shift 2
    # Neither exists for docker, which neither pulls what is here nor needs the machine's own network.
    [ "$ENGINE" = docker ] || set -- "$@" --pull=never --network host
    "$ENGINE" build --quiet "$@" --tag "$name" --file - "$folder"
}

debian() {
    name=$(name_of DEBIAN_IMAGE)
    ! there "$name" || return 0
    if ! [ -e "$CACHE/debian.tar" ]; then
        mkdir -p "$CACHE"
        work=$(mktemp -d "$CACHE/new.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        debootstrap --variant=minbase bookworm "$work/root"
        cat >"$work/root/etc/apt/sources.list" <<EOF
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
EOF
        # As the original: no package files and lists, no manuals and translations; licences stay.
        (
            cd "$work/root"
            rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/*
            rm -rf usr/share/man usr/share/info usr/share/locale usr/share/groff usr/share/lintian
            find usr/share/doc -mindepth 1 ! -type d ! -name copyright -delete
            find usr/share/doc -mindepth 1 -type d -empty -delete
        )
        tar -C "$work/root" --numeric-owner -cf "$work/debian.tar" .
        mv "$work/debian.tar" "$CACHE/debian.tar"
        rm -rf "$work"
        trap - EXIT
    fi
    build "$name" "$CACHE" <<'EOF'
FROM scratch
ADD debian.tar /
CMD ["bash"]
EOF
}

rust() {
    name=$(name_of RUST_IMAGE)
    ! there "$name" || return 0
    toolchain=$(rustc --print sysroot)
    wanted=${name##*:}
    case $(rustc --version) in
    "rustc ${wanted%%-*}"*) ;;
    *)
        echo "$(rustc --version) is here, $name is wanted: rustup toolchain install ${wanted%%-*}" >&2
        exit 1
        ;;
    esac
    # Where the registries stand behind a certificate of their own, the image must know it, too.
    build "$name" "$toolchain" --build-context certificates=/etc/ssl/certs <<EOF
FROM $(name_of DEBIAN_IMAGE)
RUN apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates curl g++ git make pkg-config python3 \\
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=certificates ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY bin /usr/local/rust/bin
COPY lib /usr/local/rust/lib
ENV CARGO_HOME=/usr/local/cargo SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt
ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
EOF
}

[ $# -gt 0 ] || set -- debian rust
for base in "$@"; do
    case $base in
    debian) debian ;;
    rust)
        debian
        rust
        ;;
    *)
        sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
done
