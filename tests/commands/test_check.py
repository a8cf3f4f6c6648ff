"""The check against a feigned Asterisk: the faults that a real one cannot be made to show.

Those that it can are in tests/system/test_check.py; the audio is in test_check_audio.py.
"""

from __future__ import annotations

import resource
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from audiofork.asterisk.taps.choice import NOT_BY_CHANSPY
from audiofork.asterisk.taps.ways import Site, known_faults, ways_for
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.commands import check_port
from audiofork.commands.check import Check, load, load_each, site_if_all_works, taps_of
from audiofork.commands.check_dialplan import VERSION
from audiofork.commands.findings import Finding, Mark
from audiofork.doors.control_answers import ControlAnswers
from audiofork.doors.control_socket import ControlSocket
from audiofork.errors import ConfigError, DaemonUnreachable
from testbed.daemon import ETC
from tests.asterisk.test_ari import PASSWORD, answer, silence
from tests.commands.checked import (
    NARROWBAND,
    SnoopedAri,
    SpiedAsterisk,
    ari_section,
    asterisk_section,
    configured,
    denied,
    dialplan_of,
    failures,
    findings_of,
    shipped_rows,
    version_of,
)
from tests.control_plane import FakeAsterisk, response

pytestmark = pytest.mark.usefixtures("short")


# --- All is well ---------------------------------------------------------------------------------


async def test_asterisk_as_it_should_be_has_no_fault(asterisk: SpiedAsterisk) -> None:
    outcome, findings = await findings_of(configured(asterisk))
    assert failures(findings) == []
    assert outcome == 0
    subjects = [finding.text.partition(":")[0] for finding in findings]
    assert subjects == [
        *("daemon", "open files", "URLs", "ARI", "login", "rights", "clock"),
        *("requests", "dialplan", "caller data", "AudioSocket", "audio", "keys (DTMF)"),
        *("hangups", "forks"),
    ]


async def test_asterisk_with_ari_as_it_should_be_has_no_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    outcome, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert failures(findings) == []
    assert outcome == 0
    assert [finding.text.partition(":")[0] for finding in findings] == [
        *(
            "daemon",
            "open files",
            "URLs",
            "ARI",
            "login",
            "rights",
            "clock",
            "requests",
            "dialplan",
        ),
        *(
            "caller data",
            "AudioSocket",
            "audio",
            "snoop at 8000 Hz",
            "snoop at 16000 Hz",
            "keys (DTMF)",
            "hangups",
            "forks",
        ),
    ]
    assert PASSWORD not in str(findings)


async def test_running_daemons_application_is_not_taken_from_it(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    settings = configured(asterisk, ari=ari_section(ari, "app = ours\n"))
    await findings_of(settings)
    assert ari.apps == ["ours-check"]
    assert [asked for asked in ari.asked if "ours" in asked.replace("ours-check", "")] == []


async def test_keys_that_are_not_told_of_are_warned_of(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.commands.probe.EVENT_TIMEOUT_S", 0.2)
    asterisk.tells_of_keys = False
    outcome, findings = await findings_of(configured(asterisk))
    (found,) = [finding for finding in findings if finding.text.startswith("keys (DTMF): ")]
    assert (found.mark, outcome) == (Mark.WARN, 0)
    assert "read = user,call,dtmf" in found.remedy


async def test_keys_that_cannot_be_tried_are_no_fault(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["PlayDTMF"] = denied
    outcome, findings = await findings_of(configured(asterisk))
    (found,) = [finding for finding in findings if finding.text.startswith("keys (DTMF): ")]
    assert (found.mark, outcome) == (Mark.SKIP, 0)
    assert "Permission denied" in found.text


async def test_profiles_are_named_and_one_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    ini = tmp_path / "audiofork.ini"
    ini.write_text("[control]\nsocket =\n[profile:b]\nurl = ws://h/\n[profile:a]\nurl = ws://h/\n")
    findings: list[Finding] = []
    settings, unread = load(ini)
    await Check(settings, findings.append, unread=unread).run()
    assert "profiles: a b" in [finding.text for finding in findings]
    (tmp_path / "profiles.d").mkdir()
    (tmp_path / "profiles.d/c.ini").write_text("[front]\n")
    findings.clear()
    settings, unread = load(ini)
    await Check(settings, findings.append, unread=unread).run()
    (told,) = [text for text in failures(findings) if text.startswith("profiles: ")]
    assert told.startswith(f"profiles: {tmp_path}/profiles.d/c.ini:1: expected [profile:NAME]")


def test_secrets_of_each_asterisk_are_read_for_its_own_check_alone(tmp_path: Path) -> None:
    ini = tmp_path / "audiofork.ini"
    (tmp_path / "secret").write_text("s3cret\n")
    of_b = f"[asterisk b]\nport = 2\nsecret_file = {tmp_path}/secret\n"
    ini.write_text(
        "[cluster]\nservers = nats://a:1\nasterisk = a\n"
        f"[asterisk]\nsecret_file = {tmp_path}/none\n{of_b}[ari b]\npassword_file = /none\n"
    )
    (first, of_first, unread_first), (second, of_second, unread_second) = load_each(ini)
    assert (first, second) == ("a", "b")
    assert (of_first.asterisk.port, of_second.asterisk.port) == (5038, 2)
    assert (of_first.asterisk.secret, of_second.asterisk.secret) == ("", "s3cret")
    assert unread_first == {
        "asterisk": f"{ini}:5: [asterisk] secret_file: {tmp_path}/none: No such file or directory"
    }
    assert list(unread_second) == ["ari"]
    assert [name for name, _, _ in load_each(ini, "b")] == ["b"]
    with pytest.raises(ConfigError, match="there is no Asterisk 'c'; it has a, b"):
        load_each(ini, "c")
    ini.write_text(f"[cluster]\nservers = nats://a:1\n{of_b}")
    ((name, alone, unread),) = load_each(ini)
    assert (name, alone.asterisk.port, alone.asterisk.secret, unread) == ("", 2, "s3cret", {})


async def test_profile_that_cannot_be_used_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^\[profile:a\] url: "):
        Check(configured(**{"profile:a": "url = http://h/\n"}), print)


@pytest.mark.slow
def test_module_costs_a_daemon_without_ari_no_aiohttp() -> None:
    modules = "audiofork.commands.check, audiofork.daemon"
    code = f"import sys; import {modules}; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


# --- The way to Asterisk -------------------------------------------------------------------------


async def test_port_without_a_listener_is_unreachable() -> None:
    outcome, findings = await findings_of(configured())
    assert outcome == 4
    assert failures(findings)[0].startswith("Asterisk at 127.0.0.1:9: ")
    assert "manager.conf: enabled = yes" in findings[-1].remedy


async def test_peer_that_answers_nothing_is_unreachable(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.asterisk.ami.ACTION_TIMEOUT_S", 0.05)
    asterisk.answers["Login"] = lambda action: None
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 4
    assert "Login: no answer within" in failures(findings)[0]


async def test_asterisk_that_goes_meanwhile_is_unreachable(asterisk: SpiedAsterisk) -> None:
    def drop(action: dict[str, str]) -> None:
        asterisk.connections[-1].drop()

    asterisk.answers["Getvar"] = drop
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 4
    assert "the connection to Asterisk was lost" in failures(findings)[0]


async def test_certificate_that_is_not_trusted_is_unreachable_and_names_ca_file() -> None:
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server_tls)
    asterisk = FakeAsterisk(server_tls)
    await asterisk.start()
    text = f"port = {asterisk.port}\nsecret = x\ntls = yes\n"
    outcome, findings = await findings_of(configured(asterisk=text))
    await asterisk.stop()
    assert outcome == 4
    assert "certificate" in failures(findings)[0]
    assert "ca_file" in findings[-1].remedy


async def test_secret_that_no_line_can_hold_is_not_quoted(asterisk: SpiedAsterisk) -> None:
    text = f"port = {asterisk.port}\nsecret = {'x' * 1100}\n"
    outcome, findings = await findings_of(configured(asterisk=text))
    assert outcome == 4
    assert "Secret is longer than 1024 bytes" in failures(findings)[0]
    assert "xxx" not in str(findings)


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ("Authentication failed", "compare [asterisk] username and secret"),
        ("Login Already In Use", "write allowmultiplelogin = yes"),
    ],
)
async def test_login_that_is_refused_gets_the_advice_that_fits(
    asterisk: SpiedAsterisk, refusal: str, advice: str
) -> None:
    asterisk.answers["Login"] = lambda action: response(action, f"Message: {refusal}", ok=False)
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 1
    assert failures(findings) == [f"login: Asterisk refused the login of audiofork: {refusal}"]
    assert advice in findings[-1].remedy


async def test_missing_secret_is_a_fault_without_a_login(asterisk: SpiedAsterisk) -> None:
    text = f"port = {asterisk.port}\n"
    outcome, findings = await findings_of(configured(asterisk=text))
    assert outcome == 1
    assert failures(findings) == ["login: no secret is configured"]
    assert "AUDIOFORK_ASTERISK_SECRET_FILE" in findings[-1].remedy
    assert asterisk.actions == []


# --- The front -----------------------------------------------------------------------------------


NO_DAEMON = "socket = /nonexistent/control.sock\n"


async def test_port_of_the_front_that_another_program_has_is_a_fault(
    asterisk: SpiedAsterisk,
) -> None:
    front = f"listen = 127.0.0.1:{asterisk.port}\n"
    outcome, findings = await findings_of(configured(asterisk, front=front, control=NO_DAEMON))
    assert outcome == 1
    assert failures(findings) == [
        f"AMI front: cannot listen on 127.0.0.1:{asterisk.port}: Address already in use (another "
        "program listens there; as root, ss -ltnp shows which)"
    ]


async def test_port_of_the_front_that_is_free_is_said_to_be(asterisk: SpiedAsterisk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome, findings = await findings_of(
        configured(asterisk, front=f"listen = 127.0.0.1:{port}\n", control=NO_DAEMON)
    )
    assert outcome == 0
    assert f"AMI front: 127.0.0.1:{port} is free for it" in [one.text for one in findings]


async def test_port_of_the_front_is_left_alone_where_a_daemon_may_run(
    asterisk: SpiedAsterisk,
) -> None:
    front = f"listen = 127.0.0.1:{asterisk.port}\n"
    outcome, findings = await findings_of(configured(asterisk, front=front))
    assert outcome == 0
    assert not any(one.text.startswith("AMI front") for one in findings)


# --- ARI -----------------------------------------------------------------------------------------


async def ari_fault(asterisk: SpiedAsterisk, section: str, /, **sections: str) -> Finding:
    """Return the only fault, which is of ARI; all that AMI gives is checked all the same."""
    outcome, findings = await findings_of(configured(asterisk, ari=section, **sections))
    assert outcome == 1
    (found,) = [finding for finding in findings if finding.mark is Mark.FAIL]
    subjects = [finding.text.partition(":")[0] for finding in findings]
    assert "audio" in subjects
    assert not any(subject.startswith("snoop at") for subject in subjects)
    assert PASSWORD not in str(findings)
    return found


async def test_ari_that_is_not_configured_is_no_fault_and_says_how_to_have_it(
    asterisk: SpiedAsterisk,
) -> None:
    _, findings = await findings_of(configured(asterisk))
    assert findings[3].mark is Mark.SKIP
    assert findings[3].text == ("ARI: not configured ([ari] url): legs come by ChanSpy, at 8000 Hz")
    assert findings[-1].text == (
        "forks: in by chanspy, both by chanspy; out and stereo are refused, so is the mute of one "
        "side"
    )
    assert "\n  [ari]\n  url = http://127.0.0.1:8088/ari\n  password_file = " in findings[-1].remedy


async def test_ari_that_is_not_wanted_is_left_alone(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    text = asterisk_section(asterisk, "tap = chanspy\n")
    outcome, findings = await findings_of(configured(asterisk=text, ari=ari_section(ari)))
    assert outcome == 0
    assert findings[3].mark is Mark.SKIP
    assert findings[3].text == (
        "ARI: not used ([asterisk] tap = chanspy): legs come by ChanSpy, at 8000 Hz"
    )
    assert ari.asked == []


@pytest.mark.parametrize("rate", [16000, 0])
async def test_wideband_without_ari_is_a_fault_that_names_both(
    asterisk: SpiedAsterisk, rate: int
) -> None:
    websocket = f"sample_rate = {rate}\n"
    found = await ari_fault(asterisk, "", websocket=websocket)
    assert found.text == (
        f"ARI: not configured ([ari] url), but [websocket] sample_rate = {rate} needs it"
    )
    assert "url = http://" in found.remedy
    assert "set [websocket] sample_rate = 8000" in found.remedy
    text = asterisk_section(asterisk, "tap = chanspy\n")
    found = await ari_fault(asterisk, "", websocket=websocket, asterisk=text)
    assert found.text.startswith("ARI: not used ([asterisk] tap = chanspy), but [websocket] sa")


async def test_missing_password_is_a_fault_without_a_login(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    section = ari_section(ari).replace(PASSWORD, "")
    found = await ari_fault(asterisk, section)
    assert found.text == "ARI: no password is configured"
    assert "AUDIOFORK_ARI_PASSWORD_FILE" in found.remedy
    assert ari.asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "lines"),
    [
        ("http://127.0.0.1:9/ari", ["bindaddr = 127.0.0.1", "bindport = 9"]),
        ("http://localhost:9/ari", ["bindaddr = 127.0.0.1", "bindport = 9"]),
        ("https://127.0.0.1:9/ari", ["tlsenable = yes", "tlsbindaddr = 127.0.0.1:9"]),
        ("https://[::1]:9/ari", ["tlsenable = yes", "tlsbindaddr = [::1]:9"]),
    ],
)
async def test_ari_that_does_not_listen_is_a_fault_with_the_lines_of_http_conf(
    asterisk: SpiedAsterisk, url: str, lines: list[str]
) -> None:
    found = await ari_fault(asterisk, f"url = {url}\npassword = {PASSWORD}\n")
    assert found.text == f"ARI at {url}: Connection refused (no program listens there)"
    assert "hand, in http.conf" in found.remedy
    for line in ("[general]", "enabled = yes", *lines, 'asterisk -rx "module reload http"'):
        assert f"\n  {line}\n" in found.remedy


async def test_ari_that_does_not_answer_is_a_fault(
    asterisk: SpiedAsterisk, ari: SnoopedAri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.asterisk.ari.REQUEST_TIMEOUT_S", 0.05)
    ari.answers["/ari/channels/audiofork-check"] = silence
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text.endswith("/ari: no answer within 0.05 s")
    assert "hand, in http.conf" in found.remedy


async def test_neither_asterisk_nor_ari_there_is_unreachable() -> None:
    ari = "url = http://127.0.0.1:9/ari\npassword = x\n"
    outcome, findings = await findings_of(configured(ari=ari))
    assert outcome == 4
    assert len(failures(findings)) == 2


@pytest.mark.parametrize(
    ("status", "message", "text", "lines"),
    [
        (
            401,
            "Authentication required",
            "ARI: Asterisk's REST interface refused audiofork: Authentication required",
            ["[audiofork]", "type = user", "read_only = no", "password = (that of [ari])"],
        ),
        (
            403,
            "Write access denied",
            "ARI: Asterisk's REST interface refused audiofork: Write access denied",
            ["[audiofork]", "read_only = no"],
        ),
        (404, "Not Found", "404: Not Found", ["[general]", "enabled = yes"]),
        (
            404,
            "Resource not found",
            "404: Resource not found",
            ['asterisk -rx "module load res_ari_channels.so"'],
        ),
        (500, "Failed", "500: Failed", ["enabled = yes"]),
    ],
    ids=["login", "read-only", "off", "module", "other"],
)
async def test_ari_that_refuses_is_a_fault_with_the_lines_of_ari_conf(
    asterisk: SpiedAsterisk,
    ari: SnoopedAri,
    status: int,
    message: str,
    text: str,
    lines: list[str],
) -> None:
    refusal = answer(status, f'{{"message": "{message}"}}')
    ari.answers["/ari/channels/audiofork-check"] = refusal
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text.endswith(text)
    assert "ari.conf" in found.remedy
    for line in (*lines, 'asterisk -rx "module reload res_ari.so"'):
        assert f"\n  {line}\n" in f"{found.remedy}\n"
    assert ("type = user" in found.remedy) == (status == 401)


@pytest.mark.parametrize("path", ["/ari/events", "/ari/applications/audiofork-check/eventFilter"])
async def test_link_that_does_not_come_up_is_a_fault_that_names_the_modules(
    asterisk: SpiedAsterisk, ari: SnoopedAri, path: str
) -> None:
    ari.answers[path] = answer(404, '{"message": "Resource not found"}')
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text.startswith("snoop: no connection to ARI at http://127.0.0.1:")
    assert 'asterisk -rx "module load res_ari_events.so"' in found.remedy
    assert 'asterisk -rx "module load res_ari_applications.so"' in found.remedy


async def test_snoop_that_is_refused_is_said_once_for_both_rates(
    asterisk: SpiedAsterisk, ari: SnoopedAri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.asterisk.taps.snoop.ENTER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(ari, "send", nothing)
    found = await ari_fault(asterisk, ari_section(ari))
    assert found.text == "snoop: ARI: the leg did not enter audiofork-check in time"
    assert 'asterisk -rx "module load app_stasis.so"' in found.remedy


async def nothing(*_: object) -> None: ...


# --- What legs by ARI are sent to ----------------------------------------------------------------


@pytest.mark.parametrize("tap", ["auto", "chanspy"])
@pytest.mark.parametrize(
    ("context", "lacks", "what"),
    [
        ("audiofork-leg", ["wide"], "has no extension wide"),
        ("audiofork-leg", ["narrow", "wide", "music", "player"], "is missing"),
        (
            "audiofork",
            ["clean"],
            "has no extension clean; a bare Gosub into audiofork ends the call",
        ),
        ("audiofork", ["start", "mute"], "has no extension start and mute; a bare"),
        ("audiofork", [], "is missing; a bare Gosub into audiofork ends the call"),
    ],
)
async def test_missing_part_of_the_dialplan_is_a_fault_by_each_tap(
    asterisk: SpiedAsterisk, ari: SnoopedAri, tap: str, context: str, lacks: list[str], what: str
) -> None:
    rows = [
        row
        for row in shipped_rows()
        if row["Context"] != context or (lacks and row["Extension"] not in lacks)
    ]
    asterisk.answers["ShowDialPlan"] = dialplan_of(shipped=rows)
    text = asterisk_section(asterisk, f"tap = {tap}\n")
    outcome, findings = await findings_of(configured(asterisk=text, ari=ari_section(ari)))
    (found,) = (finding for finding in findings if finding.mark is Mark.FAIL)
    assert outcome == 1
    assert found.text.startswith(f"dialplan: the context {context} {what}")
    assert "Run audiofork setup" in found.remedy
    assert "\n  #include extensions_audiofork.conf\n" in found.remedy
    assert found.remedy.endswith('\n  asterisk -rx "dialplan reload"')
    # Where legs by ARI cannot come, none is asked for.
    assert bool(ari.apps) == (tap == "auto" and context == "audiofork")


async def test_missing_context_is_a_fault_also_while_ari_is_away(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["ShowDialPlan"] = dialplan_of(shipped=[])
    ari = "url = http://127.0.0.1:9/ari\npassword = x\n"
    _, findings = await findings_of(configured(asterisk, ari=ari))
    assert failures(findings)[1:] == [
        "dialplan: the context audiofork is missing, the context audiofork-leg is missing; "
        "a bare Gosub into audiofork ends the call"
    ]


@pytest.mark.parametrize(
    ("was", "is_now", "mark", "told", "remedy"),
    [
        ("version,1,NoOp(6)", "version,1,NoOp(0)", Mark.FAIL, "is older (version 0)", "setup"),
        ("version,1,NoOp(6)", "version,1,NoOp(x)", Mark.FAIL, "is older (version 0)", "setup"),
        ("version,1,NoOp(6)", "other,1,NoOp(6)", Mark.FAIL, "is older (version 0)", "setup"),
        ("version,1,NoOp(6)", "version,1,NoOp(7)", Mark.FAIL, "is newer (version 7)", "restart"),
        ("Wait(0.02)", "Wait(0.5)", Mark.WARN, "has been edited", "put the shipped file"),
        ("Dial(${AUDIOFORK_LEG})", "Dial(x)", Mark.WARN, "has been edited", "put the shipped file"),
        ("(late)", "(later)", Mark.WARN, "has been edited", "put the shipped file"),
    ],
)
async def test_dialplan_other_than_the_shipped_is_told(
    asterisk: SpiedAsterisk, was: str, is_now: str, mark: Mark, told: str, remedy: str
) -> None:
    shipped = (ETC / "asterisk/extensions_audiofork.conf").read_text()
    assert was in shipped
    rows = shipped_rows(shipped.replace(was, is_now))
    asterisk.answers["ShowDialPlan"] = dialplan_of(shipped=rows)
    outcome, findings = await findings_of(configured(asterisk))
    (found,) = (one for one in findings if one.text.startswith("dialplan: "))
    assert found.text.startswith(f"dialplan: extensions_audiofork.conf {told}")
    assert found.mark is mark
    assert remedy in found.remedy
    assert outcome == (1 if mark is Mark.FAIL else 0)


async def test_shipped_dialplan_is_known_as_it_is(asterisk: SpiedAsterisk) -> None:
    """After a change of the file: raise the number in its extension `version`, and VERSION."""
    _, findings = await findings_of(configured(asterisk))
    text = f"dialplan: audiofork and audiofork-leg are there, as shipped (version {VERSION})"
    assert Finding(Mark.OK, text) in findings
    assert (
        f"exten => version,1,NoOp({VERSION})\n"
        in (ETC / "asterisk/extensions_audiofork.conf").read_text()
    )


async def test_asterisk_without_dialplan_exists_is_a_fault(asterisk: SpiedAsterisk) -> None:
    time_of = asterisk.answers["Getvar"]
    assert callable(time_of)
    asterisk.answers["Getvar"] = lambda action: (
        response(action, "Value: ") if "DIALPLAN" in action["variable"] else time_of(action)
    )
    _, findings = await findings_of(configured(asterisk))
    assert failures(findings) == [
        "dialplan: Asterisk does not know DIALPLAN_EXISTS(), so no guarded Gosub forks"
    ]


async def test_dialplan_that_may_not_be_looked_into_is_tried(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    asterisk.answers["ShowDialPlan"] = denied
    ari.ends = {"wide"}
    outcome, findings = await findings_of(configured(asterisk, ari=ari_section(ari)))
    assert outcome == 1
    assert Finding(Mark.SKIP, "dialplan: to look into it needs write = reporting") in findings
    assert failures(findings) == ["snoop at 16000 Hz: the leg ended before it connected"]


# --- What callers could add to requests ----------------------------------------------------------


async def test_caller_data_in_a_request_is_warned_of_with_what_to_do(
    asterisk: SpiedAsterisk,
) -> None:
    lines = [
        "NoOp(${EXTEN})",
        "Gosub(audiofork,start,1(ws://h/?to=${EXTEN},D(in)))",
        "UserEvent(AudioFork,WsServer: ws://h/?to=${URIENCODE(${EXTEN})})",
    ]
    asterisk.answers["ShowDialPlan"] = dialplan_of(*lines)
    outcome, findings = await findings_of(configured(asterisk))
    (found,) = (finding for finding in findings if finding.mark is Mark.WARN)
    assert found.text == (
        "caller data: context calls, extension _X., priority 2: EXTEN stands bare in Gosub"
    )
    assert "URIENCODE(${EXTEN})" in found.remedy
    assert outcome == 0


async def test_caller_data_in_many_requests_is_warned_of_ten_times(asterisk: SpiedAsterisk) -> None:
    lines = ["Gosub(audiofork,start,1(ws://h/${EXTEN}))"] * 12
    asterisk.answers["ShowDialPlan"] = dialplan_of(*lines)
    _, findings = await findings_of(configured(asterisk))
    found = [finding for finding in findings if finding.mark is Mark.WARN]
    assert len(found) == 10
    assert found[-1].text.endswith(" (and 2 more)")
    assert [bool(finding.remedy) for finding in found] == [False] * 9 + [True]


async def test_events_that_a_caller_could_forge_are_a_fault(asterisk: SpiedAsterisk) -> None:
    asterisk.is_unfiltered = True
    outcome, findings = await findings_of(configured(asterisk))
    assert failures(findings) == [
        "requests: events with an empty line in a value are not held back"
    ]
    assert outcome == 1


async def test_dialplan_that_may_not_be_looked_into_is_said(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["ShowDialPlan"] = denied
    outcome, findings = await findings_of(configured(asterisk))
    texts = [finding.text for finding in findings if finding.mark is Mark.SKIP]
    assert any(text.startswith("caller data: the dialplan cannot be looked") for text in texts)
    assert outcome == 0


# --- What forks get ------------------------------------------------------------------------------


async def told_of_forks(
    asterisk: SpiedAsterisk, version: str = "22.5.2", more: str = "", /, ari: str = ""
) -> Finding:
    """Return the line that says it, the last one."""
    asterisk.answers["CoreSettings"] = version_of(version)
    text = asterisk_section(asterisk, more)
    _, findings = await findings_of(configured(asterisk=text, ari=ari))
    assert [one.text for one in findings if one.text.startswith("forks: ")] == [findings[-1].text]
    return findings[-1]


async def test_all_directions_are_had_by_ari(asterisk: SpiedAsterisk, ari: SnoopedAri) -> None:
    found = await told_of_forks(asterisk, ari=ari_section(ari))
    text = "forks: in by snoop, out by snoop, both by snoop, stereo by snoop"
    assert found == Finding(Mark.OK, text)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "20.7.0",
            Finding(
                Mark.OK, "forks: in by chanspy, out by chanspy, both by chanspy, stereo by chanspy"
            ),
        ),
        (
            "20.5.0",
            Finding(
                Mark.SKIP,
                "forks: in by chanspy, both by chanspy; out and stereo are refused, so is the mute "
                "of one side",
            ),
        ),
    ],
)
async def test_without_ari_what_is_had_at_a_narrowband_site_depends_on_the_version(
    asterisk: SpiedAsterisk, version: str, expected: Finding
) -> None:
    found = await told_of_forks(asterisk, version, NARROWBAND)
    assert (found.mark, found.text) == (expected.mark, expected.text)
    assert bool(found.remedy) == (found.mark is Mark.SKIP)


async def test_directions_that_ari_would_bring_are_refused_while_it_cannot(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    ari.ends = {"narrow"}
    found = await told_of_forks(asterisk, ari=ari_section(ari))
    assert found == Finding(
        Mark.SKIP,
        "forks: in by chanspy, both by chanspy; out and stereo are refused, so is the mute of one "
        "side",
    )


async def test_nothing_is_had_where_ari_is_required_and_cannot(
    asterisk: SpiedAsterisk, ari: SnoopedAri
) -> None:
    ari.ends = {"wide"}
    found = await told_of_forks(asterisk, "22.5.2", "tap = snoop\n", ari=ari_section(ari))
    assert found.mark is not Mark.OK
    assert found.text == (
        "forks: in and out and both and stereo are refused, so is the mute of one side"
    )


@pytest.mark.parametrize(("version", "count"), [("22.10.1", 0), ("22.11.0-rc1", 1), ("20.7.0", 2)])
async def test_known_faults_of_the_version_follow_the_login_and_are_no_failures(
    asterisk: SpiedAsterisk, version: str, count: int
) -> None:
    faults = known_faults(Version.parse(version))
    assert len(faults) == count
    asterisk.answers["CoreSettings"] = version_of(version)
    outcome, findings = await findings_of(configured(asterisk))
    assert (outcome, failures(findings)) == (0, [])
    texts = [finding.text for finding in findings]
    login = texts.index(f"login: audiofork, Asterisk {version}")
    assert texts[login + 1 : login + 1 + len(faults)] == [
        f"Asterisk {version}: {fault}" for fault in faults
    ]
    assert sum(text.startswith("Asterisk ") for text in texts) == len(faults)
    assert {findings[login + 1 + n].mark for n in range(len(faults))} <= {Mark.SKIP}


async def test_version_that_is_not_told_has_no_known_faults(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["CoreSettings"] = denied
    _, findings = await findings_of(configured(asterisk))
    assert "login: audiofork, Asterisk (version unknown)" in [one.text for one in findings]
    assert not [one for one in findings if one.text.startswith("Asterisk ")]


# --- Only the ways to get audio -------------------------------------------------------------------


async def test_taps_are_those_of_the_version_that_is_asked_for(asterisk: SpiedAsterisk) -> None:
    asterisk.answers["CoreSettings"] = version_of("20.13.0")
    settings = configured(asterisk)
    lines = await taps_of(settings)
    assert lines == ways_for(site_if_all_works(settings, Version.parse("20.13.0")))
    assert lines[0].startswith("Asterisk 20.13.0; ")
    assert [action["action"] for action in asterisk.actions] == ["Login", "CoreSettings"]


async def test_taps_of_a_version_that_is_not_told_are_those_of_the_latest(
    asterisk: SpiedAsterisk,
) -> None:
    asterisk.answers["CoreSettings"] = denied
    settings = configured(asterisk)
    assert await taps_of(settings) == ways_for(site_if_all_works(settings, UNKNOWN))


async def test_taps_without_asterisk_raise_why() -> None:
    with pytest.raises(ConnectionRefusedError):
        await taps_of(configured())


@pytest.mark.parametrize(
    ("more", "url", "site"),
    [
        ("", "", ("set up [ari] (audiofork check says how)", "", False)),
        ("", "http://127.0.0.1:8088/ari", ("", "", False)),
        (
            "tap = chanspy\n" + NARROWBAND,
            "http://127.0.0.1:8088/ari",
            ("[asterisk] tap = chanspy rules ARI out", "", True),
        ),
        (
            "tap = snoop\n",
            "http://127.0.0.1:8088/ari",
            ("", NOT_BY_CHANSPY, False),
        ),
    ],
)
def test_site_is_what_is_configured(more: str, url: str, site: tuple[str, str, bool]) -> None:
    settings = configured(asterisk=more, ari=f"url = {url}\npassword = x\n" if url else "")
    assert site_if_all_works(settings, UNKNOWN) == Site(UNKNOWN, *site)


# --- This machine --------------------------------------------------------------------------------


async def test_listen_address_of_another_machine_is_a_fault(asterisk: SpiedAsterisk) -> None:
    settings = configured(asterisk, audiosocket="listen = 192.0.2.1:9093\n")
    outcome, findings = await findings_of(settings)
    assert outcome == 1
    assert failures(findings)[0].startswith("AudioSocket: cannot listen on 192.0.2.1:9093: ")


@pytest.mark.parametrize("path", ["", "{}/c.sock"], ids=["no socket", "socket"])
async def test_port_of_another_program_is_a_fault(
    asterisk: SpiedAsterisk, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_port, "ANSWER_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        control = f"socket = {path.format(tmp_path)}\n"
        settings = configured(asterisk, audiosocket=f"listen = {listen}\n", control=control)
        outcome, findings = await findings_of(settings)
    assert outcome == 1
    assert failures(findings) == [
        f"AudioSocket: a program listens on {listen}, and a daemon of this Asterisk does not say "
        "that it is"
    ]


@pytest.mark.parametrize("closed", [False, True], ids=["no socket", "a socket closed to us"])
async def test_daemon_of_the_port_that_cannot_be_asked_is_a_fault_unless_it_is_not_for_us(
    asterisk: SpiedAsterisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    def refuse(path: Path, _asterisk: str) -> None:
        cause = PermissionError() if closed else FileNotFoundError()
        raise DaemonUnreachable(f"no daemon at {path}") from cause

    async def is_the_daemon(*_: object) -> check_port.Reached:
        return check_port.Reached.YES

    monkeypatch.setattr("audiofork.commands.check.Client", refuse)
    monkeypatch.setattr(check_port.Knocking, "knock", is_the_daemon)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = configured(
            asterisk, audiosocket=f"listen = {listen}\n", control=f"socket = {tmp_path}/c.sock\n"
        )
        _, findings = await findings_of(settings)
    text = f"daemon: one listens on {listen}, but not on [control] socket {tmp_path}/c.sock"
    assert failures(findings) == ([] if closed else [text])


async def test_who_has_the_port_is_not_told_while_requests_do_not_come(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.commands.probe.EVENT_TIMEOUT_S", 0.1)
    asterisk.answers["UserEvent"] = response
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = configured(asterisk, audiosocket=f"listen = {listen}\n")
        _, findings = await findings_of(settings)
    (found,) = (one for one in findings if one.text.startswith("AudioSocket: a program"))
    assert found.mark is Mark.SKIP
    assert "read = user is missing" in failures(findings)[0]


async def test_too_low_a_file_limit_is_a_fault_with_the_number_to_set(
    asterisk: SpiedAsterisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 4399))
    outcome, findings = await findings_of(configured(asterisk))
    assert outcome == 1
    assert failures(findings) == [
        "open files: a process started here may have 4399, max_forks = 1000 takes 4400"
    ]
    assert "LimitNOFILE=4400" in findings[1].remedy


@pytest.mark.parametrize("limit", [4400, resource.RLIM_INFINITY])
async def test_file_limit_that_is_enough_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, limit))
    _, findings = await findings_of(configured(asterisk="port = 9\n"))
    assert findings[1].mark is Mark.OK


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("", "URLs: audio may go to *://127.0.0.1 *://[::1] *://localhost"),
        ("allow_urls =\n", "URLs: audio may go to nobody"),
        ("allow_urls = @*\n[profile:a]\nurl = ws://h/\n", "URLs: audio may go to profiles alone"),
    ],
)
async def test_hosts_that_audio_may_go_to_are_named(section: str, text: str) -> None:
    _, findings = await findings_of(configured(security=section))
    assert (findings[2].mark, findings[2].text) == (Mark.OK, text)


async def test_url_patterns_that_name_no_host_are_warned_of() -> None:
    _, findings = await findings_of(configured(security="allow_urls = wss://*\n"))
    assert (findings[2].mark, findings[2].text) == (Mark.WARN, "URLs: audio may go to any host")
    assert "[security] allow_urls = wss://" in findings[2].remedy


async def test_running_daemon_is_counted_and_its_own_limit_is_looked_at(tmp_path: Path) -> None:
    async def nothing(*_: object) -> list[str]:
        return []

    control = ControlSocket(tmp_path / "c.sock", ControlAnswers(nothing, nothing))  # type: ignore[arg-type]
    await control.start()
    _, findings = await findings_of(configured(control=f"socket = {tmp_path}/c.sock\n"))
    await control.close()
    assert findings[0].text == "daemon: runs, 0 forks"
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert findings[1].text.startswith(f"open files: the daemon may have {soft}")


async def test_daemon_that_does_not_run_is_no_fault(tmp_path: Path) -> None:
    _, findings = await findings_of(configured(control=f"socket = {tmp_path}/c.sock\n"))
    assert findings[0].mark is Mark.SKIP


@pytest.mark.parametrize(("ahead_s", "which"), [(-10, "behind"), (10, "ahead of")])
async def test_clock_that_differs_is_a_fault(
    asterisk: SpiedAsterisk, ahead_s: float, which: str
) -> None:
    outcome, findings = await findings_of(configured(asterisk), lambda: time.time() + ahead_s)
    assert outcome == 1
    assert failures(findings)[0].startswith("clock: ")
    assert f" s {which} Asterisk's" in failures(findings)[0]


@pytest.mark.parametrize("ahead_s", [-1.4, 1.4])
async def test_clock_that_differs_by_less_than_asterisk_tells_is_no_fault(
    asterisk: SpiedAsterisk, ahead_s: float
) -> None:
    _, findings = await findings_of(configured(asterisk), lambda: time.time() + ahead_s)
    assert failures(findings) == []


def test_configuration_that_the_daemon_could_not_use_is_refused(tmp_path: Path) -> None:
    settings = configured(websocket=f"ca_list_file = {tmp_path}/none.pem\n")
    with pytest.raises(ConfigError):
        Check(settings, print)
