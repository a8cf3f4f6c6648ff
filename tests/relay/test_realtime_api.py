"""A fork to a server of OpenAI's Realtime API: a stand-in that takes each message strictly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from audiofork.link.dialogue import Dialogue
from audiofork.link.messages import (
    CommandAsked,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    Format,
    Handshake,
    ServerCommand,
    SinkMessage,
    SinkOpened,
    Streaming,
    Voice,
)
from testbed.blocks import decode, make_blocks
from testbed.realtime_api import Call, RealtimeApi, Turn
from testbed.speech_services import KEY
from tests.relay.peers import Leg, until
from tests.relay.pipeline_stage import IN
from tests.relay.relay_stage import RelayStage

ALL = tuple(ServerCommand)
SPEECH = [decode(block) for block in make_blocks(100, seed=16)]
SILENCE = [bytes(320)] * 10
HEADER_BYTES = 3


class Caller:
    """The caller of a fork, by its leg.

    Attributes:
        heard: The frames of 20 ms that it has heard, without silence.
    """

    def __init__(self, stage: RelayStage, fork_id: str, leg: Leg) -> None:
        self.stage = stage
        self.fork_id = fork_id
        self.heard: list[bytes] = []
        self._leg = leg
        self._listening = asyncio.create_task(self._listen())

    def say(self, *frames: bytes) -> None:
        self._leg.send_audio(*frames)

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await self._leg._reader.readexactly(HEADER_BYTES)
                frame = await self._leg._reader.readexactly(int.from_bytes(header[1:], "big"))
                if any(frame):
                    self.heard.append(frame)

    async def hang_up(self) -> ForkEnded:
        self.stage.worker.handle(EndFork(self.fork_id, EndReason.HANGUP))
        ended: ForkEnded = await self.stage.reported(ForkEnded, self.fork_id)
        await self._listening
        return ended

    @property
    def told(self) -> list[Any]:
        """What the readers of the fork's events are told."""
        return [json.loads(one.text) for one in self.stage.of(self.fork_id, SinkMessage)]


@contextlib.asynccontextmanager
async def call_to(stage: RelayStage, api: RealtimeApi, **wishes: Any) -> AsyncIterator[Caller]:
    """Have a caller talk to a server, which must have nothing to complain of in the end."""
    async with api:
        fork_id = stage.begin(
            f"ws://127.0.0.1:{api.port}/v1/realtime?model=gpt-realtime",
            Direction.IN,
            handshake=Handshake((("Authorization", f"Bearer {KEY}"),)),
            format=Format.OPENAI_REALTIME,
            **{"voice": Voice((IN,)), "commands": ALL, **wishes},
        )
        caller = Caller(stage, fork_id, await stage.attach(fork_id))
        yield caller
        await caller.hang_up()
    assert api.faults == []


async def test_caller_hears_what_the_model_says_and_its_transcript_is_told(
    relay: RelayStage,
) -> None:
    api = RealtimeApi(Turn(b"".join(SPEECH[:5]), "hello"))
    async with call_to(relay, api) as caller:
        caller.say(*SPEECH[50:55], *SILENCE)
        await until(lambda: len(caller.heard) >= 5)
        assert caller.heard == SPEECH[:5]
        await until(lambda: len(caller.told) >= 2)
        assert caller.told == [
            {"event": "transcript", "speaker": "caller", "text": "what the caller said"},
            {"event": "transcript", "speaker": "bot", "text": "hello"},
        ]
    assert api.caller_slin == b"".join((*SPEECH[50:55], *SILENCE))


async def test_server_of_the_beta_is_heard_too(relay: RelayStage) -> None:
    api = RealtimeApi(Turn(b"".join(SPEECH[:5]), "hello"), is_beta=True)
    async with call_to(relay, api) as caller:
        caller.say(*SPEECH[50:55], *SILENCE)
        await until(lambda: len(caller.heard) >= 5)
        await until(lambda: len(caller.told) >= 2)


async def test_session_that_transcribes_tells_what_is_said(relay: RelayStage) -> None:
    api = RealtimeApi()
    opening = Dialogue(opening='{"type": "transcription"}')
    async with call_to(relay, api, dialogue=opening, voice=None) as caller:
        caller.say(*SPEECH[50:55], *SILENCE)
        await until(lambda: caller.told)
        assert caller.told[0]["text"] == "what the caller said"


async def test_profile_greets_by_an_event_after_its_session(relay: RelayStage) -> None:
    api = RealtimeApi(Turn(b"".join(SPEECH[:5])))
    greeting = '[{"instructions": "Be\n  brief."}, {"type": "response.create"}]'
    async with call_to(relay, api, dialogue=Dialogue(opening=greeting)) as caller:
        caller.say(*SILENCE[:1])
        await until(lambda: len(caller.heard) >= 5)
    assert api.sessions[0]["instructions"] == "Be\n  brief."


async def test_caller_who_speaks_cuts_the_model_off_and_it_learns_what_was_heard(
    relay: RelayStage,
) -> None:
    """Also the next time, when what was said before counts no more."""
    api = RealtimeApi(*[Turn(b"".join(SPEECH))] * 3)
    async with call_to(relay, api) as caller:
        caller.say(*SPEECH[50:52], *SILENCE)
        for _ in range(2):
            caller.heard.clear()
            api.truncations.clear()
            await until(lambda: len(caller.heard) >= 3)
            caller.say(*SPEECH[50:52])
            await api.until(lambda: api.truncations)
            (cut,) = api.truncations
            assert cut.duration_ms == 2000
            # The last frame may not have come yet.
            assert 60 <= cut.audio_end_ms <= len(caller.heard) * 20 + 20
            caller.say(*SILENCE)


async def test_hang_up_of_the_model_comes_after_its_farewell(relay: RelayStage) -> None:
    api = RealtimeApi(Turn(b"".join(SPEECH[:5]), "bye", (Call("hang_up"),)))
    async with call_to(relay, api) as caller:
        caller.say(*SPEECH[50:55], *SILENCE)
        asked = await relay.reported(CommandAsked, caller.fork_id)
        assert asked.command is ServerCommand.HANGUP
        await until(lambda: caller.heard == SPEECH[:5])
    assert api.outputs == ["The call is being hung up."]
    assert caller.told[-1] == {"event": "tool_call", "name": "hang_up", "arguments": {}}


async def test_model_goes_on_after_a_tool_that_is_not_ours(relay: RelayStage) -> None:
    api = RealtimeApi(
        Turn(calls=(Call("order", {"size": 3}), Call("transfer", {}))),
        Turn(b"".join(SPEECH[:5]), "ordered"),
    )
    async with call_to(relay, api) as caller:
        caller.say(*SPEECH[50:55], *SILENCE)
        await until(lambda: caller.heard == SPEECH[:5])
    assert len(api.outputs) == 2
    assert api.responses_asked == 1
    assert {"event": "tool_call", "name": "order", "arguments": {"size": 3}} in caller.told


async def test_session_that_the_server_refuses_ends_the_fork_and_is_told(
    relay: RelayStage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets audio in a format that was not agreed on."""
    api = RealtimeApi(refusal="no such voice")
    async with api:
        fork_id = relay.begin(
            f"ws://127.0.0.1:{api.port}/v1/realtime?model=gpt-realtime",
            Direction.IN,
            handshake=Handshake((("Authorization", f"Bearer {KEY}"),)),
            format=Format.OPENAI_REALTIME,
        )
        leg = await relay.attach(fork_id)
        leg.send_audio(*SPEECH)
        ended = await relay.reported(ForkEnded, fork_id)
    assert ended.reason is EndReason.SINK_REFUSED
    assert ended.detail == "the server refuses the opening: invalid_value: no such voice"
    assert relay.of(fork_id, SinkOpened) == relay.of(fork_id, Streaming) == []
    assert len(api.faults) == 1, "the early close alone"
    assert "the server reports an error: invalid_value: no such voice" in caplog.text


async def test_server_that_comes_back_gets_a_session_anew(relay: RelayStage) -> None:
    api = RealtimeApi(*[Turn(b"".join(SPEECH))] * 2)
    async with call_to(relay, api, reconnect_attempts=5, reconnect_interval_s=0.1) as caller:
        caller.say(*SPEECH[50:52], *SILENCE)
        await until(lambda: len(caller.heard) >= 3)
        assert api.connection is not None
        api.connection.transport.abort()
        await until(lambda: len(api.sessions) == 2)
        api.faults.clear()  # of the connection that the test broke
        caller.say(*SPEECH[50:52], *SILENCE)
        await api.until(lambda: not api.turns)
    assert api.truncations == [], "of an item of the first session"
