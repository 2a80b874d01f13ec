# telecine with PyTorch's CUDA runtime.
#
#   docker build -t telecine .
#   docker run --gpus all --ipc host -v "$PWD/my_videos:/data:ro" -v "$PWD/runs:/runs" telecine \
#       train --data /data --output_dir /runs/first
#
# `--ipc host`: processes that read clips hand them over in shared memory.
FROM pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime

WORKDIR /opt/telecine
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
# The image's PyTorch is kept: it satisfies the requirement.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[train,diffusers]' \
    && useradd --uid 10001 --create-home telecine
USER 10001
WORKDIR /home/telecine
RUN telecine weights fetch
ENTRYPOINT ["telecine"]
