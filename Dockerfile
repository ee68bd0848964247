# syntax=docker/dockerfile:1
# One image for producer, worker and migration; the command says which.
# The digest names the image for all platforms; .github/dependabot.yml proposes its security fixes.
FROM python:3.13.15-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS base

FROM base AS build
# The CPU build is small; docker-compose.yml names another one for GPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/nocturne
ENV PATH=/opt/nocturne/bin:$PATH
COPY requirements-image.txt constraints.txt ./
# Every wheel by its hash, then torch, whose index has builds of its own, by its version; the project asks for nothing more.
RUN pip install --no-cache-dir --only-binary=:all: --require-hashes --requirement requirements-image.txt
RUN pip install --no-cache-dir --only-binary=:all: --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY migrations migrations
COPY worker worker
COPY producer producer
RUN pip install --no-cache-dir --no-index --no-deps --no-build-isolation . && pip check

FROM base
# A CPU worker compiles its kernels for the processor it runs on, in /cache, when it starts: those of the machine that
# builds the image may be illegal on the one that runs it.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 nocturne && mkdir /models /data /cache && chown nocturne /models /data /cache \
    && chmod 700 /cache
COPY --from=build /opt/nocturne /opt/nocturne
# What is written at run time is in /cache, /models and /tmp; the rest of the file system may be read-only.
ENV PATH=/opt/nocturne/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor CUDA_CACHE_PATH=/cache/cuda
USER nocturne
WORKDIR /data
VOLUME /models
CMD ["worker", "start"]
