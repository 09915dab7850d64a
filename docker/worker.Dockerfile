# The scanner. PyPI's torch brings its own CUDA libraries, so the image needs none: the host's driver comes in
# through the NVIDIA container toolkit. For a CPU-only image, several GB smaller, name torch's index of CPU wheels:
#   --build-arg TORCH_OPTIONS="--index-url ..."
FROM python:3.11-slim-bookworm AS build
ARG TORCH_OPTIONS=""
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt $TORCH_OPTIONS torch
RUN python requirements.py engine service worker telemetry > worker.txt \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt -r worker.txt
COPY README.md ./
COPY service ./service
COPY worker ./worker
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin sauscan \
 && install -d -o sauscan -g sauscan /data
COPY --from=build /venv /venv
WORKDIR /app
COPY docker/worker-entrypoint.sh ./docker/
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SAUSCAN_DATA_DIR=/data \
    HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER sauscan
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
  CMD ["sh", "-c", "celery -A worker.celery_app inspect ping -d worker@$(hostname) --timeout 10"]
ENTRYPOINT ["sh", "docker/worker-entrypoint.sh"]
