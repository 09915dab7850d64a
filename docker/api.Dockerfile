# The API, the relay and the migrations: no torch, no model code.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN python requirements.py service telemetry > service.txt \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt -r service.txt
COPY README.md ./
COPY migrations ./migrations
COPY service ./service
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin sauscan \
 && install -d -o sauscan -g sauscan /data
COPY --from=build /venv /venv
WORKDIR /app
COPY alembic.ini ./
COPY migrations ./migrations
COPY docker/new_key.py docker/healthy.py ./docker/
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SAUSCAN_DATA_DIR=/data
USER sauscan
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "docker/healthy.py"]
CMD ["uvicorn", "service.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--no-server-header"]
