# syntax=docker/dockerfile:1
# One image for producer, worker and migration; the command says which.
FROM python:3.13-slim AS build
# The CPU build is small; docker-compose.yml names another one for GPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/nocturne
ENV PATH=/opt/nocturne/bin:$PATH
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY models models
COPY migrations migrations
COPY worker worker
COPY producer producer
RUN pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.13-slim
# A CPU worker compiles its kernels for the processor it runs on, when it starts there for the first time.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 nocturne && mkdir /models /data && chown nocturne /models /data
COPY --from=build /opt/nocturne /opt/nocturne
ENV PATH=/opt/nocturne/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
USER nocturne
WORKDIR /data
VOLUME /models
CMD ["worker", "start"]
