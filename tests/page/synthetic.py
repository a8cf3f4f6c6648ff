"""Forks, levels and a history that nobody ever had, the same in each run."""

from __future__ import annotations

import math
import random
import time
from typing import Any

Fork = dict[str, Any]

_NAMES = (
    "Ada Byron",
    "Grace Murray",
    "Zoë Åkesson",
    "Karl Jansky",
    "Hedy Kiesler",
    "Joan Clarke",
    "Mary Ross",
    "Emile Berliner",
    "Noor Khan",
    "",
)
_HOSTS = ("stt.example.net", "eu.stt.example.net:8443", "bot.example.org")
_DIRECTIONS = ("stereo", "stereo", "in", "both", "out")
FULL_SCALE = 32767


def fork(number: int, **fields: Any) -> Fork:
    """Return a fork of the interface, with fields of its own."""
    chance = random.Random(number)
    host = _HOSTS[number % len(_HOSTS)]
    age_s: float = fields.get("age_s", chance.uniform(5, 900))
    frames = int(age_s * 50)
    is_away = number % 23 == 7
    one = {
        "id": f"{number:08x}-0000-4000-8000-{chance.getrandbits(48):012x}",
        "channel": f"PJSIP/{100 + number % 900}-{number:08x}",
        "uniqueid": f"1790000000.{number}",
        "url": f"wss://{host}/v1/listen",
        "host": host,
        "direction": _DIRECTIONS[number % len(_DIRECTIONS)],
        "state": "reconnecting" if is_away else "streaming",
        "age_s": age_s,
        "requested_at": time.time() - age_s,
        "frames_in": frames,
        "frames_sent": frames - (170 if is_away else 1),
        "frames_dropped": 60 if number % 31 == 7 else 0,
        "backlog": 170 if is_away else 1,
        "rtt_ms": round(chance.uniform(3, 60), 1),
        "connects": False,
        "caller_number": f"+49 30 {1000000 + number * 7919 % 8999999}",
        "caller_name": _NAMES[number % len(_NAMES)],
        "profile": "",
        "format": "raw",
        "tap": "snoop",
        "sample_rate": 16000,
        **_HARMLESS,
    }
    if is_away:
        one |= {
            "waits_for": "the server",
            "last_error": "connection refused",
            "last_error_s": 1.2,
            "away_s": 3.4,
            "attempt": 4,
            "next_attempt_s": 2.0,
            "gaps": 1,
        }
    return one | fields


_HARMLESS = {
    "muted": "",
    "frames_missing": 0,
    "waits_for": "",
    "last_error": "",
    "last_error_s": None,
    "away_s": None,
    "attempt": 0,
    "next_attempt_s": None,
    "gaps": 0,
    "messages_ignored": 0,
    "messages_unused": 0,
    "keys": 0,
    "ending": "",
    "speaks": False,
    "frames_played": 0,
    "frames_cleared": 0,
    "frames_unplayed": 0,
    "underruns": 0,
    "commands_refused": 0,
}


def levels(one: Fork, now: float) -> list[int]:
    """Return [in_peak, in_rms, out_peak, out_rms] of two who speak in turn."""
    number = int(one["id"][:8], 16)
    phase = now / (3 + number % 5) + number
    turn = math.sin(phase)
    sides = (_speech(turn, now, number), _speech(-turn, now, number + 1))
    has_in, has_out = one["direction"] != "out", one["direction"] in ("out", "stereo")
    found = []
    for loud, is_there in zip(sides, (has_in, has_out), strict=True):
        found += [int(loud * 2.6), int(loud)] if is_there else [-1, -1]
    return [min(FULL_SCALE, level) for level in found]


def _speech(turn: float, now: float, number: int) -> float:
    if turn < 0:
        return 12.0  # a quiet line
    syllables = 0.5 + 0.5 * math.sin(now * 9 + number) * math.sin(now * 3.1 + number * 2)
    return 60 + 5200 * turn * syllables * syllables


TEXTS = (
    '{"type": "Results", "is_final": true, "channel": {"alternatives": '
    '[{"transcript": "Good morning, how can I help you?"}]}}',
    '{"type": "Results", "is_final": true, "channel": {"alternatives": '
    '[{"transcript": "I would like to move my appointment to Thursday."}]}}',
    '{"type": "Results", "is_final": true, "channel": {"alternatives": '
    '[{"transcript": "Thursday at ten is free. Shall I take it?"}]}}',
)


def timeline(one: Fork) -> list[dict[str, Any]]:
    """Return what has happened to a fork."""
    began = one["requested_at"]
    moments = [
        (0.0, "requested", "by AMI"),
        (0.18, "started", "audio flows to the server"),
        (4.2, "message", TEXTS[0]),
        (7.9, "message", TEXTS[1]),
        (11.0, "dtmf", "key 5, 120 ms"),
        (14.5, "reconnecting", "the server, attempt 1, connection reset by peer"),
        (15.6, "resumed", "the server, 420 ms dropped"),
        (19.3, "message", TEXTS[2]),
        (21.0, "mark", "played: greeting"),
    ]
    return [{"at": began + after, "kind": kind, "text": text} for after, kind, text in moments]


_ENDS = (
    ("hangup", False, ""),
    ("hangup", False, ""),
    ("stopped", False, "by the command line"),
    ("sink-refused", True, "the server answered 401 Unauthorized"),
    ("hangup", False, ""),
    ("sink-gone", True, "eu.stt.example.net:8443: no answer within 5 s"),
    ("leg-failed", True, "Asterisk refused ChanSpy: no such channel"),
)


def entry(number: int) -> dict[str, Any]:
    """Return an ended fork as the history has it."""
    one = fork(number + 5000)
    reason, failed, detail = _ENDS[number % len(_ENDS)]
    ended_at = time.time() - 40 - number * 97
    lasted = 0.0 if failed else random.Random(number).uniform(20, 700)
    kept = ("channel", "uniqueid", "caller_number", "caller_name", "url", "host", "direction")
    return {
        **{name: one[name] for name in (*kept, "profile", "format", "tap", "sample_rate")},
        "fork_id": one["id"],
        "requested_at": ended_at - lasted - 0.2,
        "started_at": None if failed else ended_at - lasted,
        "ended_at": ended_at,
        "reason": reason,
        "failed": failed,
        "detail": detail,
        "totals": {
            "frames_in": int(lasted * 50),
            "frames_sent": int(lasted * 50),
            "frames_dropped": 35 if number % 9 == 4 else 0,
            "reconnects": 1 if number % 9 == 4 else 0,
        },
        "timeline": [],
    }


def minutes(hours: int) -> list[dict[str, int]]:
    """Return the figures of the last hours: a working day, and a server that went away once."""
    now = int(time.time() // 60) * 60
    found = []
    for back in range(hours * 60 - 1, -1, -1):
        chance = random.Random(back)
        busy = 6 + 5 * math.sin(back / 55)
        is_away = 118 < back < 131
        found.append(
            {
                "at": now - back * 60,
                "started": max(0, round(chance.gauss(busy, 1.5))),
                "ended": max(0, round(chance.gauss(busy, 1.5))),
                "failed": chance.randrange(5) if is_away else int(chance.random() < 0.03),
                "refused": int(chance.random() < 0.01),
                "reconnects": chance.randrange(20) if is_away else int(chance.random() < 0.05),
                "frames_dropped": chance.randrange(900) if is_away else 0,
            }
        )
    return found


FINDINGS = (
    ("ok", "daemon: runs, 12 forks", ""),
    ("ok", "Asterisk: 22.10.1 at 127.0.0.1:5038", ""),
    (
        "FAIL",
        "manager.conf: the user may not write UserEvents",
        "Add `user` to write= of [audiofork] in manager.conf, then:\n"
        "    asterisk -rx 'manager reload'",
    ),
    ("warn", "URLs: audio may go to any host", "Name the hosts in [security] allowed_hosts."),
    ("skip", "audio: no call to try it with", ""),
)


def findings() -> list[dict[str, str]]:
    """Return what `check` finds."""
    return [
        {"status": status, "name": text.partition(":")[0], "text": text, "remedy": remedy}
        for status, text, remedy in FINDINGS
    ]
