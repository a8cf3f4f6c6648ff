import dataclasses
import json

import pytest

from audiofork.asterisk.channels import Target
from audiofork.config import ProfileConfig, Proxy
from audiofork.errors import ConfigError, RequestRefused
from audiofork.forks.options import parse_options
from audiofork.forks.profiles import Profiles, filled
from audiofork.forks.requests import StartFork
from audiofork.link.dialogue import PLAIN_DIALOGUE, Dialogue
from audiofork.link.messages import EndReason, Format
from tests.control_plane import NAME, UNIQUEID, Rig

URL = "wss://speech.example.net/live?key=S3CRET"
SPEECH = ProfileConfig(
    url=URL,
    options="D(stereo)x(json)F(100)",
    token="t0ken",
    headers=("X-Site: 7", "X-Two:2"),
    params="lang=de&model=a",
)


def request(url: str = "@speech", options: str = "", **params: str) -> StartFork:
    return StartFork(Target(NAME), url, parse_options(options), options_text=options, params=params)


def test_profile_gives_url_options_headers_token_and_parameters() -> None:
    applied = Profiles({"speech": SPEECH}).apply(request())
    assert (applied.url, applied.profile) == (URL, "speech")
    assert (applied.options.direction, applied.options.format) == ("stereo", Format.JSON)
    assert applied.options.handshake.headers == (
        ("Authorization", "Bearer t0ken"),
        ("X-Site", "7"),
        ("X-Two", "2"),
    )
    assert applied.params == {"lang": "de", "model": "a"}


def test_what_the_request_has_is_added_and_goes_first() -> None:
    given = request(options="D(in)H(X-Call:1)A(mine)", lang="fr", ticket="9")
    applied = Profiles({"speech": SPEECH}).apply(given)
    assert (applied.options.direction, applied.options.frame_ms) == ("in", 100)
    assert applied.options.handshake.headers[0] == ("Authorization", "Bearer mine")
    assert ("X-Call", "1") in applied.options.handshake.headers
    assert applied.params == {"lang": "fr", "model": "a", "ticket": "9"}
    assert applied.options_text == given.options_text, "what the journal keeps"


@pytest.mark.parametrize(
    ("proxy", "login", "expected"),
    [
        (None, "", None),
        (Proxy(), "", Proxy()),
        (Proxy("http", "h", 1), "", Proxy("http", "h", 1)),
        (Proxy("http", "h", 1, "a:b"), "pbx:s3cret", Proxy("http", "h", 1, "pbx:s3cret")),
    ],
)
def test_proxy_and_status_callback_of_a_profile_are_those_of_its_forks(
    proxy: Proxy | None, login: str, expected: Proxy | None
) -> None:
    callback = "https://h/?key=s3cret"
    section = ProfileConfig(url=URL, proxy=proxy, proxy_login=login, status_callback=callback)
    applied = Profiles({"speech": section}).apply(request())
    assert applied.proxy == expected
    assert applied.status_callback == callback
    assert "s3cret" not in repr(applied)


@pytest.mark.parametrize(
    ("header", "options", "sent"),
    [
        ("Authorization: Token {token}", "", [("Authorization", "Token t0ken"), ("X-A", "1")]),
        ("X-Key: {token}", "A(mine)", [("Authorization", "Bearer mine"), ("X-Key", "t0ken")]),
        ("Authorization: {token}", "A(mine)", [("Authorization", "Bearer mine")]),
        ("", "H(authorization:mine)", [("authorization", "mine")]),
        ("", "H(x-a:2)", [("Authorization", "Bearer t0ken"), ("x-a", "2")]),
    ],
)
def test_token_is_sent_in_the_header_of_the_profile_unless_the_request_has_one(
    header: str, options: str, sent: list[tuple[str, str]]
) -> None:
    section = ProfileConfig(url=URL, token="t0ken", token_header=header, headers=("X-A: 1",))
    handshake = Profiles({"speech": section}).apply(request(options=options)).options.handshake
    assert [one for one in handshake.headers if one in sent] == sent
    names = [name.lower() for name, _ in handshake.headers]
    assert len(set(names)) == len(names)


def test_request_without_a_profile_comes_back_as_it_is() -> None:
    given = request("ws://h/@speech")
    assert Profiles({"speech": SPEECH}).apply(given) == given


@pytest.mark.parametrize(
    ("url", "hint"),
    [("@speach", "; did you mean @speech?"), ("@", ""), ("@x\x1b", ""), ("@speech/x", "")],
)
def test_profile_that_there_is_not_is_refused_with_the_nearest(url: str, hint: str) -> None:
    with pytest.raises(RequestRefused, match=r"^WsServer: no section \[profile:") as caught:
        Profiles({"speech": SPEECH}).apply(request(url))
    assert hint in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (ProfileConfig(), "url: expected the URL of a server, ws:// or wss://, got nothing"),
        (ProfileConfig(url="http://h/"), "url: the scheme must be ws or wss"),
        (ProfileConfig(url="ws://{exten}/"), "url: a field may stand in the path"),
        (ProfileConfig(url="ws://h/{nobody}"), "url: no field {nobody}"),
        (ProfileConfig(url="ws://h/", options="Z"), "options: unknown option 'Z'"),
        (ProfileConfig(url="ws://h/", headers=("S3CRET",)), "headers: expected name:value"),
        (ProfileConfig(url="ws://h/", headers=("Host: S3CRET",)), "headers: expected no header"),
        (ProfileConfig(url="ws://h/", token="S3 CRET"), "token: expected a token without blanks"),
        (
            ProfileConfig(url="ws://h/", token="S3CRET", token_header="X-Key: {toke}"),
            "token_header: expected name: value with {token} in it",
        ),
        (
            ProfileConfig(url="ws://h/", token="S3CR\u00c9T", token_header="X-Key: {token}"),
            "token_header: expected printable ASCII alone as the value of X-Key",
        ),
        (
            ProfileConfig(url="ws://h/", token_header="X-Key: {token}"),
            "token_header: expected token or token_file beside it, got neither",
        ),
        (
            ProfileConfig(url="ws://h/", token="S3CRET", headers=("authorization: x",)),
            "headers: expected no header that the token is sent in",
        ),
        (ProfileConfig(url="ws://h/", params="S3CRET"), "params: expected name=value"),
        (
            ProfileConfig(url="ws://h/", commands=("transfer",)),
            "transfer_to: expected places, since commands has transfer; got nothing",
        ),
        (ProfileConfig(url="ws://h/", options="A(x)H(Authorization:y)"), "options: A and"),
    ],
)
def test_profile_that_cannot_be_used_is_an_error_of_the_configuration(
    section: ProfileConfig, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Profiles({"speech": section})
    assert str(caught.value).startswith(f"[profile:speech] {told}")
    assert "S3CRET" not in str(caught.value)


def test_fields_in_texts_are_escaped_as_in_json_and_other_braces_left_alone() -> None:
    dialogue = Dialogue(
        opening='{"from": "{caller_name}", "n": {"a": 1}, "x": "{nobody}"}', closing="bye {exten}"
    )
    told = filled(dialogue, {"caller_name": 'Zoë "Z"\r\n\\', "exten": "1"})
    assert json.loads(told.opening) == {
        "from": 'Zoë "Z"\r\n\\',
        "n": {"a": 1},
        "x": "{nobody}",
    }
    assert told.closing == "bye 1"


def test_dialogue_is_the_profiles_with_a_wait_only_after_a_closing_text() -> None:
    sections = {
        "all": ProfileConfig(
            url=URL,
            opening="hello",
            opening_answer="Started",
            closing="bye",
            closing_answer="End",
            full_messages=True,
        ),
        "open": ProfileConfig(url=URL, opening="hello"),
        "plain": ProfileConfig(url=URL),
    }
    profiles = Profiles(sections)
    told = {name: profiles.dialogue_of(profiles.apply(request(f"@{name}"))) for name in sections}
    assert told["all"] == Dialogue(
        opening="hello",
        opening_answer="Started",
        closing="bye",
        closing_answer="End",
        closing_wait_s=ProfileConfig.closing_wait,
        full_messages=True,
    )
    assert told["open"] == Dialogue(opening="hello")
    assert told["plain"] == profiles.dialogue_of(request("ws://h/")) == PLAIN_DIALOGUE


# --- In the registry -----------------------------------------------------------------------------


async def test_fork_to_a_profile_shows_its_name_alone(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    rig.profiles.configure({"speech": SPEECH})
    rig.forks.security = type(rig.forks.security)(allow_urls=())
    fork_id = await rig.start(wsserver="@speech")
    assert rig.spec.url == URL
    assert rig.variables["AUDIOFORK_WSSERVER"] == "@speech"
    assert [view.url for view in await rig.forks.views()] == ["@speech"]
    assert rig.journal.entries[fork_id].url == "@speech"
    await rig.ended(fork_id, EndReason.STOPPED)
    assert rig.last_event[1]["WsServer"] == "@speech"
    everything = f"{caplog.text}{rig.ami.events}{rig.variables}{rig.spec!r}"
    assert "S3CRET" not in everything
    assert "t0ken" not in everything


@pytest.mark.parametrize(("patterns", "granted"), [("PJSIP/*", True), ("PJSIP/trunk-* X/*", False)])
async def test_profile_is_for_its_channels_alone(rig: Rig, patterns: str, granted: bool) -> None:
    section = ProfileConfig(url=URL, channels=tuple(patterns.split()))
    rig.profiles.configure({"speech": section})
    await rig.request(channel=NAME, wsserver="@speech")
    assert bool(rig.sent) is granted
    if not granted:
        assert rig.last_event[1]["Reason"] == "WsServer: @speech is not for this channel"


async def test_fields_of_the_call_are_filled_in_also_without_metadata(rig: Rig) -> None:
    rig.ami.values_of[UNIQUEID] = {"CALLERID(num)": '7"'}
    section = ProfileConfig(
        url="ws://h/{uniqueid}", opening='{"from": "{caller_number}"}', closing="bye"
    )
    rig.profiles.configure({"speech": section})
    await rig.start(wsserver="@speech")
    assert rig.spec.url == f"ws://h/{UNIQUEID}"
    dialogue = rig.spec.dialogue
    assert (dialogue.opening, dialogue.closing) == ('{"from": "7\\""}', "bye")
    assert rig.spec.metadata is None


# --- The format of all forks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "default", "expected"),
    [
        ("", Format.RAW, Format.RAW),
        ("", Format.TWILIO, Format.TWILIO),
        ("x(raw)", Format.TWILIO, Format.RAW),
        ("x(json)c(ulaw)", Format.TWILIO, Format.JSON),
        ("c(ulaw)L(16000)", Format.JSON, Format.JSON),
    ],
)
def test_format_is_that_of_option_x_or_the_configured_one(
    options: str, default: Format, expected: Format
) -> None:
    applied = Profiles({}, default).apply(request("ws://h/", options))
    assert applied.options.format is expected
    assert applied.options.tells_of_call is (expected is not Format.RAW)


def test_format_of_a_profile_goes_before_the_configured_one() -> None:
    profiles = Profiles({"speech": SPEECH, "plain": ProfileConfig(url=URL)}, Format.TWILIO)
    assert profiles.apply(request()).options.format is Format.JSON
    assert profiles.apply(request("@plain")).options.format is Format.TWILIO


def test_parameters_are_sent_by_the_configured_format() -> None:
    given = request("ws://h/", "", ticket="7")
    assert Profiles({}, Format.JSON).apply(given).params == {"ticket": "7"}
    with pytest.raises(RequestRefused, match=r"^Params: they are sent to the server with option M"):
        Profiles({}).apply(given)


@pytest.mark.parametrize(
    ("options", "why"),
    [("L(16000)", "has only 8000 Hz, leave L out"), ("c(ulaw)", "has a codec of its own, leave")],
)
def test_option_that_the_configured_format_cannot_carry_is_refused_naming_its_place(
    options: str, why: str
) -> None:
    with pytest.raises(RequestRefused) as caught:
        Profiles({}, Format.TWILIO).apply(request("ws://h/", options))
    assert str(caught.value).startswith(f"Options: [websocket] format = twilio {why}")
    assert str(caught.value).endswith(", or name another format by option x")


# --- x(openai-realtime) --------------------------------------------------------------------------

BOT = ProfileConfig(url=URL, options="x(openai-realtime)", opening='{"instructions": "Be brief."}')


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"opening": '{"audio": 7}'}, "opening: x(openai-realtime) expects session.audio to be a"),
        ({"opening": "hello"}, "opening: x(openai-realtime) expects JSON; expecting value at line"),
        ({"closing": "bye"}, "closing: x(openai-realtime) has its own, leave it out"),
        ({"opening_answer": "a"}, "opening_answer: x(openai-realtime) has its own"),
        ({"full_messages": True}, "full_messages: x(openai-realtime) has its own"),
        (
            {"options": "x(openai-realtime)D(stereo)"},
            "options: x(openai-realtime) has one",
        ),
    ],
)
def test_profile_of_a_speech_api_that_cannot_be_used_is_an_error_of_the_configuration(
    changes: dict[str, object], why: str
) -> None:
    Profiles({"bot": BOT})
    with pytest.raises(ConfigError) as caught:
        Profiles({"bot": dataclasses.replace(BOT, **changes)})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"[profile:bot] {why}")


def test_request_for_a_speech_api_with_the_texts_of_another_is_refused() -> None:
    other = ProfileConfig(url=URL, opening="hello")
    profiles = Profiles({"other": other})
    with pytest.raises(RequestRefused, match=r"^WsServer: @other: opening: x\(openai-realtime\) e"):
        profiles.apply(request("@other", "x(openai-realtime)"))
    with pytest.raises(RequestRefused, match=r"^WsServer: @other: opening: x\(openai-realtime\) e"):
        Profiles({"other": other}, Format.OPENAI_REALTIME).apply(request("@other"))
    profiles.apply(request("@other", "x(json)"))
