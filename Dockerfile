# docker build --build-arg MEDVISION_GIT_HASH=$(git rev-parse --short=12 HEAD) -t medvision .
# docker run -p 127.0.0.1:8000:8000 -p 127.0.0.1:7860:7860 -v "$PWD/models:/models:ro" medvision
# With a GPU: build with --build-arg CUDA=yes, run with --gpus all (NVIDIA Container Toolkit).
#
# The last stage alone, in seconds, from programs that are built already: `make image`.

# scripts/pin_base_images.py adds the digests; a release is built with them.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
ARG CUDA=no
ARG MEDVISION_GIT_HASH=unknown
WORKDIR /project
# libtorch first: it changes least, so that its layer is kept.
COPY scripts/get_libtorch.py scripts/libtorch.lock scripts/
RUN python3 scripts/get_libtorch.py --cuda ${CUDA}
COPY . .
RUN make dist CUDA=${CUDA}

# Symbols of the programs, to keep beside a release: docker build --target symbols --output DIR .
FROM scratch AS symbols
COPY --from=build /project/target/dist-symbols /

# What the image takes over: --build-context dist=DIR replaces this stage by a folder of `make dist`.
FROM scratch AS dist
COPY --from=build /project/target/dist /

FROM ${DEBIAN_IMAGE} AS runtime
# tini is process 1: it ends on SIGTERM with the program's exit code and reaps orphans. The certificates are for downloads.
# Versions are those of the base's day: Debian's mirrors drop superseded ones, so that a pinned version ends every later build.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libstdc++6 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /tmp/* \
    && install -d -o 10001 -g 10001 /models \
    && install -d /app \
    && ln -s /models /app/models
WORKDIR /opt/medvision
# Largest and rarest to change first.
COPY --from=dist lib lib
COPY --from=dist share share
COPY --from=dist licences licences
COPY --from=dist bin bin
# Fails here, not where it is deployed, if the programs do not fit this system.
RUN ["bin/medvision", "--version"]
# The project folder, whose models are the volume. Where that holds none, the embedded model of the installation is used.
WORKDIR /app
# MVP_GENERATE_API_KEY is a switch, no secret.
# hadolint ignore=DL3064
ENV PATH=/opt/medvision/bin:$PATH \
    MVP_ROOT=/app \
    MVP_GENERATE_API_KEY=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp
USER 10001:10001
EXPOSE 8000 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 CMD ["medvision", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["server", "--host", "0.0.0.0", "--demo-port", "7860"]
