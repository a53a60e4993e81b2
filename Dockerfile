# docker build --build-arg MEDVISION_GIT_HASH=$(git rev-parse --short=12 HEAD) -t medvision .
# docker run -p 127.0.0.1:8000:8000 -p 127.0.0.1:7860:7860 medvision
# With a GPU: build with --build-arg CUDA=yes, run with --gpus all (NVIDIA Container Toolkit).

FROM rust:1.95-bookworm AS build
ARG CUDA=no
ARG MEDVISION_GIT_HASH=unknown
WORKDIR /project
# libtorch first: it changes least, so that its layer is kept.
COPY scripts/get_libtorch.py scripts/libtorch.lock scripts/
RUN python3 scripts/get_libtorch.py --cuda ${CUDA}
COPY . .
RUN make build CUDA=${CUDA}
# Every library in one folder: they look for each other beside themselves.
RUN mkdir lib licences \
    && find .libtorch -path '*/lib/*' -name '*.so*' -exec cp {} lib/ \; \
    && cp -r .libtorch/*.dist-info licences/
RUN mkdir programs && find target/release -maxdepth 1 -type f -executable -exec cp {} programs/ \;

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home medvision
WORKDIR /opt/medvision
COPY --from=build /project/lib lib
COPY --from=build /project/licences licences
# All programs: `medvision pipeline` starts the others beside it.
COPY --from=build /project/programs bin
COPY models/qwen25-vl-nano models/qwen25-vl-nano
COPY models/qwen25-vl-nano-medical-lora models/qwen25-vl-nano-medical-lora
COPY LICENSE-MIT LICENSE-APACHE ./
ENV PATH=/opt/medvision/bin:$PATH
# Compiled CUDA kernels and the like, if any: the only place the program may write to.
ENV HOME=/tmp XDG_CACHE_HOME=/tmp
USER medvision
EXPOSE 8000 7860
HEALTHCHECK --interval=30s --timeout=3s --start-period=120s --retries=3 \
    CMD curl --fail --silent --show-error http://127.0.0.1:8000/health || exit 1
STOPSIGNAL SIGTERM
CMD ["server", "--host", "0.0.0.0", "--demo-port", "7860"]
