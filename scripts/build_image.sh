#!/bin/sh
# Builds the image from the Dockerfile with docker, podman or buildah.
#
#   scripts/build_image.sh          its last stage, from target/dist (`make image`): under a minute
#   scripts/build_image.sh full     all of it: compiles everything once more (`make image-full`); the programs' symbols
#                                   go to target/image-symbols
#
# Variables: IMAGE=name (medvision), ENGINE=docker|podman|buildah, CUDA=yes|no (full), DIST=folder (target/dist).
# BASES=emulated takes the base images of scripts/emulate_base_images.sh and makes them if they are missing.
set -eu
cd "$(dirname "$0")/.."

case ${1:-} in
'') bases=debian ;;
full) bases="debian rust" ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

ENGINE=$(scripts/container_engine.sh)
export ENGINE
set -- build --build-arg "MEDVISION_GIT_HASH=$(git describe --always --dirty --abbrev=12 --exclude="*")"
# Of the others, buildah keeps no layers by itself, and the format that they prefer has no health check.
[ "$ENGINE" = docker ] || set -- "$@" --layers --format docker
if [ "${BASES:-}" = emulated ]; then
    # shellcheck disable=SC2086 # one word a base
    scripts/emulate_base_images.sh $bases
    # Under their names without a digest, which nothing but the original has.
    for base in RUST_IMAGE DEBIAN_IMAGE; do
        set -- "$@" --build-arg "$(sed -n "s/^ARG \($base=[^@]*\).*/\1/p" Dockerfile)"
    done
    # Machines without a registry are rarely allowed a network of their own for a build step.
    [ "$ENGINE" = docker ] || set -- "$@" --pull=never --network host
fi
if [ "$bases" = debian ]; then
    dist=${DIST:-target/dist}
    [ -x "$dist/bin/medvision" ] || { echo "$dist/bin/medvision is missing: run make dist" >&2; exit 1; }
    set -- "$@" --build-context "dist=$dist"
else
    set -- "$@" --build-arg "CUDA=${CUDA:-no}"
fi
"$ENGINE" "$@" --tag "${IMAGE:-medvision}" .
[ "$bases" = debian ] || "$ENGINE" "$@" --target symbols --output type=local,dest=target/image-symbols .
