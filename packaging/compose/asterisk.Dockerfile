# Debian's Asterisk with the users and the dialplan of audiofork: the demo's, of compose.yaml. Stable releases have none.
FROM debian:sid-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends asterisk asterisk-core-sounds-en-wav \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 990 audiofork
COPY etc/asterisk/ /usr/share/audiofork/
COPY packaging/compose/extensions.conf packaging/compose/start packaging/compose/call /usr/share/audiofork/
ENTRYPOINT ["/usr/share/audiofork/start"]
