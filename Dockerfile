# p2pl in a container: both commands, CPU only. `docker compose up` starts a tracker and three peers.
FROM python:3.11-slim

# Nothing below needs root; the volume takes over the owner of the folder that it is mounted on.
RUN useradd --uid 1000 --create-home peer && mkdir /app /runs && chown peer /app /runs
WORKDIR /app
COPY --chown=1000 . .
USER 1000
ENV PATH=/app/.venv/bin:$PATH HF_HUB_OFFLINE=1
# Compiled here, or every new container would do it at its start.
RUN scripts/setup demo && .venv/bin/python -m compileall -q .venv/lib

# Peers are reached here; a tracker is on 8000.
EXPOSE 7000 8000
STOPSIGNAL SIGINT
CMD ["p2pl", "--help"]
