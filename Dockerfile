# The daemon, without root and with a root file system that may be read-only: `docker compose up` shows it at work.
#
#     docker build -t audiofork .
#     docker run --network container:asterisk --env AUDIOFORK_ASTERISK_SECRET=... audiofork
#
# Each option of audiofork.ini is an environment variable: [ari] url is AUDIOFORK_ARI_URL. On the network of
# Asterisk's container, or of the host, the defaults are right: AMI, ARI and the audio stay on 127.0.0.1.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY . /src
RUN python -m venv /opt/audiofork \
 && AUDIOFORK_PURE=0 /opt/audiofork/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[cluster]' \
 && /opt/audiofork/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim
RUN groupadd --system --gid 990 audiofork \
 && useradd --system --uid 990 --gid audiofork --home-dir / --no-create-home --shell /usr/sbin/nologin audiofork \
 && install -d -o audiofork -g audiofork -m 750 /run/audiofork \
 && install -d -o audiofork -g audiofork -m 700 /var/lib/audiofork /recordings
COPY --from=build /opt/audiofork /opt/audiofork
COPY etc/audiofork.ini /etc/audiofork/audiofork.ini
ENV PATH=/opt/audiofork/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER audiofork
# The journal, by which a new container resumes the forks of the old one (if that is stopped: with
# AUDIOFORK_DAEMON_ON_STOP=keep); the recordings of `audiofork receive`.
VOLUME /var/lib/audiofork /recordings
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
  CMD ["audiofork", "list", "--socket", "/run/audiofork/control.sock"]
ENTRYPOINT ["audiofork"]
CMD ["run"]
