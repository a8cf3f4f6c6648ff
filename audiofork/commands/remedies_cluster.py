"""What to do about the faults of a cluster that the command `check` finds."""

from __future__ import annotations

CLIENT = (
    "Run pip install 'audiofork[cluster]' in the environment that audiofork was installed into. "
    "The Debian package and the container image have the client."
)
FILES = (
    "[cluster] nkey_file or credentials_file names the key of this host, made for NATS; the "
    "daemon's user has to be able to read it, and nobody else: install -m 640 -g audiofork. "
    "ca_file names the authority of the NATS servers' certificates."
)
UNREACHABLE = (
    "Is nats-server running there (systemctl status nats-server, its log), does it listen on an "
    "address that this host reaches and not on 127.0.0.1 alone, and is no firewall between? "
    "[cluster] servers names it as nats://HOST:PORT or tls://HOST:PORT."
)
LOGIN = (
    "The server knows neither our key nor anybody without one. [cluster] nkey_file or "
    "credentials_file must be that of a user in its configuration; nats-server --signal reload "
    "makes it read that again."
)
TLS = (
    "tls:// is for a server whose configuration has tls, with a certificate for the name in "
    "[cluster] servers, by an authority that [cluster] ca_file names."
)
OPEN = (
    "Whoever reaches the server, or sees the network, could order forks in the relay hosts' name, "
    "and so hear calls. Give the NATS servers TLS and each host a key of its own, as the shipped "
    "etc/nats/audiofork.conf does, or keep them on a network of these hosts alone."
)
JETSTREAM = (
    "nats-server.conf needs jetstream { store_dir: ... }, and our account may have to be allowed "
    "it. Of several servers more than half have to be there."
)
STORING = (
    "Make room: is the disk of its store_dir full (df), or the max_file of jetstream { } in "
    "nats-server.conf, or the limit of our account, used up? Until then no controller keeps its "
    "lead. If NATS still cannot write with room there, systemctl restart nats-server."
)
CHECK_KEY = (
    "Only this check needs to write that key: the shipped etc/nats/audiofork.conf lets controllers."
)
NOT_RENEWED = (
    "Faults of NATS and JetStream above say why; else the log of that controller does "
    "(journalctl -u audiofork-control). Until then no fork can start."
)
NO_LEASES = (
    "Where NATS lets controllers make no buckets: audiofork buckets, with the key of a user who "
    "may. Else the log of that controller says why it cannot (journalctl -u audiofork-control)."
)
RIGHTS = (
    "The permissions of our user in the NATS server's configuration lack what it says; the shipped "
    "etc/nats/audiofork.conf has what each role needs."
)
REPLICAS = (
    "There must be as many NATS servers, and they must know each other (cluster in "
    "nats-server.conf). Then systemctl restart audiofork-control; or audiofork buckets, where NATS "
    "lets controllers make no buckets."
)
AWAY = (
    "See to that server before another fails: as soon as half of those that keep the bucket are "
    "away, no fork can start. If it is there, its log says whom it cannot reach."
)
ONE_SERVER = (
    "If that server is away, running forks go on and none can start. With three servers set "
    "[cluster] replicas = 3 on the hosts of controllers, and systemctl restart audiofork-control; "
    "or audiofork buckets, where NATS lets controllers make no buckets."
)
START_CONTROLLER = (
    "systemctl start audiofork-control, beside the Asterisk; systemctl status audiofork-control "
    "says why one does not lead. Until then no fork can start, and relay hosts end the forks "
    "that they have after [relay] orphan_timeout."
)
STAND_BY = (
    "If it dies no fork can start, and the others end after [relay] orphan_timeout. Let "
    "audiofork-control run on a second host, with the same [cluster] servers and asterisk, and a "
    "login to the same Asterisk."
)
START_RELAY = (
    "systemctl start audiofork-relay-host@relay on each host that is to relay, with the same "
    "[cluster] servers in /etc/audiofork/relay.ini. Until then forks are refused."
)
REGISTERING = (
    "Forks do not need it: controllers that have just come hear of the relay host a moment later. "
    "A relay host of this version registers where its user in the NATS server's configuration may "
    "publish to $KV.audiofork-hosts.NAME, as in the shipped etc/nats/audiofork.conf, and the "
    "bucket audiofork-hosts is there: controllers make it, or audiofork buckets, where NATS lets "
    "them make none."
)
SILENT = (
    "It has died, or is cut off; forks that it had live on others. On that host: systemctl status "
    "'audiofork-relay-host@*'."
)
SAME_NAME = (
    "Each host needs a name of its own: [cluster] name, by default that of the machine up to its "
    "first dot."
)
SAME_ADDRESS = (
    "Each relay host needs an address of its own, [audiosocket] listen or advertise: Asterisk's "
    "legs for one would come to the other."
)
VERSION = (
    "While hosts are upgraded one after the other it is so. Else install the same version, and "
    "restart the service there."
)
CLOCK = (
    "Nothing in the cluster depends on it, but times in logs and histories cannot be compared. "
    "timedatectl set-ntp true, on both."
)
FULL = "Add a relay host, or raise [cluster] capacity there, if its cores allow it."
NO_SPARE = (
    "Forks of a relay host that dies begin again on the others, as far as these have room. Add a "
    "relay host, or raise [cluster] capacity, if the cores allow it."
)
NOT_REACHED = (
    "On that relay host [audiosocket] listen must be an address that Asterisk's machine reaches, "
    "not 127.0.0.1, or advertise must be one that leads there; no firewall may be between. "
    "audiofork check --relay -c /etc/audiofork/relay.ini there says more."
)
NOT_IT = (
    "Is [audiosocket] advertise there its own address? [audiosocket] allow there must have the "
    "address that Asterisk connects from; the relay host's log names connections that it refuses."
)
NO_ANSWER = (
    "Its log says whether it is connected to this Asterisk, and which relay hosts do not answer "
    "it: NATS may not allow it to order forks of them."
)
TWO_DAEMONS = (
    "Each request would be carried out twice. Stop audiofork.service where a controller runs; "
    "controllers of one Asterisk have the same [cluster] asterisk and the same [cluster] servers."
)
LOOPBACK = (
    "That is right where Asterisk is on this machine. Else set [audiosocket] listen to this host's "
    "address on a private network, and allow to Asterisk's."
)
ALLOW = (
    "Set [audiosocket] allow to the addresses of the Asterisks. A stranger without the UUID of a "
    "leg gets nowhere, but needs not even be heard."
)
NOT_HEARD = (
    "ss -ltnp, as root, shows which program it is. If it is the relay host: its log says whether "
    "it is connected to NATS, and with which name. If it is another: stop it, or choose another "
    "port in [audiosocket] listen."
)
OTHER_ADDRESS = (
    "Changes to [audiosocket] take effect at the next start, at which forks move to other relay "
    "hosts: systemctl restart 'audiofork-relay-host@*'."
)
