"""All metrics: their names, kinds and labels; docs/metrics.md has them as a table."""

from __future__ import annotations

from collections.abc import Iterable

from audiofork.doors.exposition import Kind, Metric
from audiofork.errors import Refusal
from audiofork.forks.events import AttackKind
from audiofork.forks.lifecycle import ForkState
from audiofork.link.messages import Direction, EndReason

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
STATES = tuple(state for state in ForkState if state is not ForkState.ENDED)
_P = "audiofork_"


def _words(words: type[EndReason | Refusal | AttackKind | Direction]) -> tuple[str, ...]:
    return tuple(word.value for word in words)


# --- The daemon and Asterisk ---

BUILD = Metric(
    _P + "build_info", GAUGE, "1, with the versions of audiofork and Python.",
    {"version": (), "python": ()},
)  # fmt: skip
ASTERISK = Metric(
    _P + "asterisk_info", GAUGE, "1, with the version of Asterisk; absent while it is unknown.",
    {"version": ()},
)  # fmt: skip
AMI_UP = Metric(_P + "ami_up", GAUGE, "1 while the daemon is logged in to Asterisk's AMI, else 0.")
AMI_RTT = Metric(
    _P + "ami_rtt_seconds", GAUGE,
    "The round trip of the latest ping to AMI; absent while there is none.",
)  # fmt: skip
AMI_CONNECTS = Metric(_P + "ami_connects_total", COUNTER, "Logins to AMI.")
ARI_UP = Metric(
    _P + "ari_up", GAUGE,
    "1 while the daemon is connected to ARI, else 0; absent where [ari] is not used.",
)  # fmt: skip
ARI_RTT = Metric(
    _P + "ari_rtt_seconds", GAUGE,
    "How long ARI took to answer the latest request; absent while there is none.",
)  # fmt: skip
ARI_CONNECTS = Metric(_P + "ari_connects_total", COUNTER, "Connects to ARI.")
LOOP_LAG = Metric(
    _P + "loop_lag_seconds", HISTOGRAM,
    "How late the daemon's event loop calls a timer of once a second.",
)  # fmt: skip
ATTACKS = Metric(
    _P + "attacks_total", COUNTER, "Attacks that were noticed, and had no effect.",
    {"kind": _words(AttackKind)},
)  # fmt: skip

# --- Forks ---

FORKS = Metric(
    _P + "forks", GAUGE, "Forks that exist.",
    {"state": tuple(state.value for state in STATES), "direction": _words(Direction)},
)  # fmt: skip
REQUESTED = Metric(
    _P + "forks_requested_total", COUNTER, "Starts that were granted, and forks resumed."
)
STARTED = Metric(
    _P + "forks_started_total", COUNTER, "Forks whose first frame was sent to the server."
)
FAILED = Metric(
    _P + "forks_failed_total", COUNTER, "Forks that ended before that, by a failure."
)  # fmt: skip
ENDED = Metric(
    _P + "forks_ended_total", COUNTER, "Forks that have ended, with those that failed.",
    {"reason": _words(EndReason)},
)  # fmt: skip
REFUSED = Metric(
    _P + "requests_refused_total", COUNTER, "Valid requests that were not granted.",
    {"reason": _words(Refusal)},
)  # fmt: skip
START = Metric(
    _P + "start_seconds", HISTOGRAM,
    "From the request to the first frame that was sent to the server.",
)  # fmt: skip
LEGS_LEFT = Metric(
    _P + "legs_left", GAUGE,
    "Legs of ended forks that Asterisk cannot end, as their channels have no media.",
)  # fmt: skip
LEGS_LOST = Metric(
    _P + "legs_lost_total", COUNTER, "Legs that were lost during a call, or did not come back."
)

# --- Audio ---

FRAMES_IN = Metric(_P + "frames_in_total", COUNTER, "Frames of 20 ms that Asterisk has brought.")
FRAMES_SENT = Metric(_P + "frames_sent_total", COUNTER, "Those that were sent to servers.")
FRAMES_DROPPED = Metric(
    _P + "frames_dropped_total", COUNTER, "Those that were dropped, as a server was away or slow."
)
FRAMES_MISSING = Metric(
    _P + "frames_missing_total", COUNTER, "Frames that Asterisk should have brought, and did not."
)
FRAMES_WAITING = Metric(
    _P + "frames_waiting", GAUGE, "Frames that wait for their servers now, of all forks."
)
LATENCY = Metric(
    _P + "latency_seconds", HISTOGRAM,
    "From the read of a frame to its acknowledgement by the server's TCP; two frames a second of "
    "each fork are measured.",
)  # fmt: skip
UNACKED = Metric(
    _P + "unacked_bytes", GAUGE, "Bytes that the servers' TCP has not acknowledged, of all forks."
)
RTT_MAX = Metric(
    _P + "server_rtt_max_seconds", GAUGE,
    "The greatest round trip to a server, as TCP measures it; 0: there is none.",
)  # fmt: skip
RECONNECTS = Metric(
    _P + "server_reconnects_total", COUNTER, "Servers that were connected again after a loss."
)
RETRIES = Metric(
    _P + "server_retries_total", COUNTER,
    "Attempts to connect that failed, and losses, after which another attempt follows.",
)  # fmt: skip
PLAYED = Metric(
    _P + "playout_frames_total", COUNTER,
    "Frames of the servers' audio: played to a party, cleared by the server before, or left "
    "unplayed.",
    {"fate": ("played", "cleared", "unplayed")},
)  # fmt: skip
UNDERRUNS = Metric(
    _P + "playout_underruns_total", COUNTER,
    "How often a server's audio came too late to be played without a gap.",
)  # fmt: skip
COMMANDS_REFUSED = Metric(
    _P + "commands_refused_total", COUNTER, "What servers have asked for, and are not allowed to."
)
IGNORED = Metric(
    _P + "messages_ignored_total", COUNTER, "Texts of servers beyond the limit per second."
)
UNUSED = Metric(
    _P + "messages_unused_total", COUNTER,
    "Messages of servers that nothing came of, such as those of another format.",
)  # fmt: skip

# --- Relays and processes ---

RELAYS = Metric(
    _P + "relays", GAUGE,
    "Relay processes, in a cluster relay hosts, that accept legs, and those that do not.",
    {"state": ("up", "down")},
)  # fmt: skip
RELAY_FORKS = Metric(
    _P + "relay_forks", GAUGE,
    "Forks of each relay process, or of this daemon on each relay host; `worker` is its number, or "
    "the host's name.",
    {"worker": ()},
)  # fmt: skip
RELAY_RTT = Metric(
    _P + "relay_rtt_seconds", GAUGE,
    "How long the event loop of a relay process took to answer a ping; absent with [relay] "
    "workers = 1.",
    {"worker": ()},
)  # fmt: skip
RELAY_CPU = Metric(
    _P + "relay_cpu_seconds_total", COUNTER,
    "CPU time of a relay process and those before it; absent with [relay] workers = 1.",
    {"worker": ()},
)  # fmt: skip
RELAY_MEMORY = Metric(
    _P + "relay_resident_memory_bytes", GAUGE,
    "Resident memory of a relay process; absent with [relay] workers = 1.",
    {"worker": ()},
)  # fmt: skip
RELAYS_LOST = Metric(
    _P + "relays_lost_total", COUNTER, "How often a fork has lost its relay process."
)

# --- The cluster: absent without one ---

CONTROLLER = Metric(
    _P + "controller_info", GAUGE, "1, with the names of this controller and of its Asterisk.",
    {"controller": (), "asterisk": ()},
)  # fmt: skip
LEADS = Metric(
    _P + "leads", GAUGE, "1 while this controller leads; 0 while it stands by, or waits."
)
EPOCH = Metric(
    _P + "epoch", GAUGE, "The number of its leadership, which is greater than each before."
)
HOSTS = Metric(
    _P + "relay_hosts", GAUGE, "Relay hosts of the cluster.",
    {"state": ("open", "draining", "dead")},
)  # fmt: skip
HOST_FORKS = Metric(
    _P + "relay_host_forks", GAUGE, "Forks on each relay host, of each Asterisk.", {"host": ()}
)
HOST_CAPACITY = Metric(
    _P + "relay_host_capacity", GAUGE, "The most forks that each relay host takes.", {"host": ()}
)
HOST_CPU = Metric(
    _P + "relay_host_cpu_ratio", GAUGE,
    "The part of a core that the process of each relay host used lately.",
    {"host": ()},
)  # fmt: skip

OF_CLUSTER = (CONTROLLER, LEADS, EPOCH, HOSTS, HOST_FORKS, HOST_CAPACITY, HOST_CPU)

# --- The daemon's own process ---

CPU = Metric("process_cpu_seconds_total", COUNTER, "CPU time of the daemon's own process.")
MEMORY = Metric("process_resident_memory_bytes", GAUGE, "Its resident memory.")
VIRTUAL = Metric("process_virtual_memory_bytes", GAUGE, "Its virtual memory.")
FILES = Metric("process_open_fds", GAUGE, "Its open file descriptors.")
MOST_FILES = Metric("process_max_fds", GAUGE, "How many it may have open; absent: unlimited.")
STARTED_AT = Metric(
    "process_start_time_seconds", GAUGE, "When it was started, in seconds since 1970."
)

# The same for each Asterisk that a controller serves.
OF_CONTROLLER = (
    *(BUILD, CONTROLLER, HOSTS, HOST_FORKS, HOST_CAPACITY, HOST_CPU),
    *(CPU, MEMORY, VIRTUAL, FILES, MOST_FILES, STARTED_AT, LOOP_LAG),
)
METRICS = tuple(one for one in list(globals().values()) if isinstance(one, Metric))


def as_markdown(metrics: Iterable[Metric] = METRICS) -> str:
    """Return the table for docs/metrics.md."""
    lines = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for one in metrics:
        labels = "; ".join(
            f"`{name}`: {', '.join(values)}" if values else f"`{name}`"
            for name, values in one.labels.items()
        )
        lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.text} |")
    return "\n".join(lines) + "\n"
