#!/bin/sh
# Prints the container engine to use: $ENGINE, else the first that works of docker, podman and buildah.
set -eu

if [ -n "${ENGINE:-}" ]; then
    echo "$ENGINE"
elif command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    echo docker
elif command -v podman >/dev/null; then
    echo podman
elif command -v buildah >/dev/null; then
    echo buildah
else
    echo "no container engine: install docker or podman (on Debian: apt-get install podman)" >&2
    exit 1
fi
