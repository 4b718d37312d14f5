# The project with its environment, for Docker, Kubernetes and `ray up`.
#
#   docker build --tag stop:cuda .
#   docker build --tag stop:cpu --build-arg TORCH_INDEX=ADDRESS .
#
# CUDA 13 comes with PyTorch's wheels; the machine brings the driver, 580 or newer, and NVIDIA's
# container toolkit.
# For a smaller image without CUDA, give the address of PyTorch's index of CPU wheels, which
# pytorch.org names under "Get started". Without it the image is larger, and runs on a CPU as well.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The compiler is for --compile (torch.compile); rsync, ssh and procps are for `ray up`; wget for the
# probes of KubeRay before 1.6; the verbs for NCCL over InfiniBand, which else uses TCP.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git ibverbs-providers libibverbs1 \
    openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# Not root, which limits the rights of a malicious video. KubeRay and `ray up` start Ray in a login
# shell, which resets PATH: hence the profile.
RUN useradd --create-home --uid 1000 --shell /bin/bash stop \
    && echo 'export PATH=/home/stop/venv/bin:$PATH' > /etc/profile.d/stop.sh
USER stop
WORKDIR /home/stop/stop
ENV PATH=/home/stop/venv/bin:$PATH
RUN python -m venv /home/stop/venv && mkdir -p /home/stop/.ray

# Slow and rarely changing layers come first. Wheels with `+cpu` count as newer than those without.
ARG TORCH_INDEX=
COPY --chown=stop constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision

COPY --chown=stop . ./
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[pipelines]"

# The commit that is recorded with results; the image has no git history.
ARG GIT_COMMIT=unknown
ENV STOP_GIT_COMMIT=${GIT_COMMIT} \
    MLFLOW_DISABLE_TELEMETRY=true \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

CMD ["python", "pipelines/benchmark.py"]
