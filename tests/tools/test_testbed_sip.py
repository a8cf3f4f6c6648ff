import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice, pairwise, takewhile
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import uvloop

from testbed import sip
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report, slin_blocks
from testbed.rtp import (
    SLIN,
    SLIN16,
    ULAW,
    Codec,
    Pacer,
    Packet,
    Playback,
    RtpPort,
    Sdp,
    SdpError,
    schedule,
    sent_indices,
    swap_bytes,
)
from testbed.sip import (
    Call,
    CallRefused,
    Message,
    NoResponse,
    Refused,
    SipParseError,
    SipUser,
    TransferRefused,
    param,
    uri_of,
)

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


# --- messages

INVITE = (
    b"INVITE sip:600@127.0.0.1:5060 SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 127.0.0.1:40000;rport;branch=z9hG4bKabc\r\n"
    b"Via: SIP/2.0/UDP 127.0.0.1:40001;branch=z9hG4bKdef\r\n"
    b'From: "A; B" <sip:a@127.0.0.1;transport=udp>;tag=11\r\n'
    b"To: <sip:600@127.0.0.1>\r\n"
    b"Call-ID: x@y\r\n"
    b"CSeq: 7 INVITE\r\n"
    b"Content-Length: 4\r\n"
    b"\r\nbody"
)


def test_message_round_trip() -> None:
    assert Message.parse(INVITE).encode() == INVITE


def test_message_parts() -> None:
    message = Message.parse(INVITE + b"beyond the body")
    assert not message.is_response
    assert message.transaction == ("z9hG4bKabc", "INVITE")
    assert len(message.all("via")) == 2
    assert param(message.header("From"), "tag") == "11"
    assert uri_of(message.header("From")) == "sip:a@127.0.0.1;transport=udp"
    assert param(message.header("To"), "tag") == ""
    assert message.header("Expires", "none") == "none"
    assert message.body == b"body"


def test_message_compact_header_names() -> None:
    compact = INVITE.replace(b"From:", b"f:").replace(b"Call-ID", b"i")
    message = Message.parse(compact.replace(b"Content-Length", b"l"))
    assert (message.header("Call-ID"), message.body) == ("x@y", b"body")
    assert param(message.header("From"), "tag") == "11"


def test_response_status() -> None:
    response = Message.parse(b"SIP/2.0 486 Busy Here\r\nCSeq: 1 INVITE\r\n\r\n")
    assert response.is_response
    assert (response.status, response.reason, response.method) == (486, "Busy Here", "INVITE")


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\r\n\r\n", id="keepalive"),
        pytest.param(b"\xff" * 50, id="noise"),
        pytest.param(INVITE[:-1], id="body-cut-short"),
        pytest.param(INVITE[:60], id="header-cut-short"),
        pytest.param(INVITE.replace(b"Length: 4", b"Length: x"), id="length-no-number"),
        pytest.param(INVITE.replace(b"Call-ID:", b"Call-ID"), id="no-colon"),
    ],
)
def test_message_malformed_is_refused(datagram: bytes) -> None:
    with pytest.raises(SipParseError):
        Message.parse(datagram)


def test_response_malformed_status_is_refused() -> None:
    with pytest.raises(SipParseError):
        _ = Message.parse(b"SIP/2.0 abc\r\n\r\n").status


# --- session descriptions


def test_sdp_round_trip() -> None:
    sdp = Sdp("127.0.0.1", 4000, ((0, "PCMU", 8000), (97, "L16", 8000)))
    assert Sdp.parse(sdp.encode()) == sdp


def test_sdp_static_payload_type_needs_no_rtpmap() -> None:
    sdp = Sdp.parse(b"c=IN IP4 10.0.0.1\r\nm=audio 5000 RTP/AVP 8 0 101\r\n")
    assert sdp == Sdp("10.0.0.1", 5000, ((0, "PCMU", 8000),))


def test_sdp_choose_takes_the_payload_type_of_the_peer() -> None:
    sdp = Sdp("127.0.0.1", 4000, ((118, "L16", 16000), (120, "L16", 8000), (0, "PCMU", 8000)))
    assert sdp.choose([ULAW, SLIN]) == SLIN._replace(payload_type=120)
    assert sdp.choose([ULAW, SLIN, SLIN16]) == SLIN16._replace(payload_type=118)
    assert sdp.choose([ULAW]) == ULAW


def test_sdp_without_use_is_refused() -> None:
    with pytest.raises(SdpError):
        Sdp.parse(b"v=0\r\n")
    with pytest.raises(SdpError, match="PCMU"):
        Sdp("127.0.0.1", 4000, ((8, "PCMA", 8000),)).choose([ULAW])


# --- RTP


def test_swap_bytes_makes_samples_big_endian_and_back() -> None:
    assert swap_bytes(b"\x01\x02\xff\x00") == b"\x02\x01\x00\xff"
    assert swap_bytes(b"\x02\x01\x00\xff") == b"\x01\x02\xff\x00"


@pytest.mark.parametrize("codec", [ULAW, SLIN, SLIN16])
def test_timestamps_count_samples_of_the_codec(run: Run, codec: Codec) -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.settimeout(1)
            port = RtpPort("127.0.0.1", codec)
            port.remote = listener.getsockname()
            for frame in (1, 2):
                port.send(bytes(codec.frame_bytes), frame, marker=False)
            first, second = (Packet.parse(listener.recv(2048)) for _ in range(2))
            samples = (second.timestamp - first.timestamp) & 0xFFFFFFFF
            assert samples == codec.sample_rate // 50
            assert len(first.payload) == samples * (1 if codec is ULAW else 2)
            port.close()

    run(scenario())


def test_packet_round_trip() -> None:
    wire = bytes.fromhex("80 80 fffe 00000140 12345678 aabb")
    packet = Packet(0, True, 0xFFFE, 320, 0x12345678, b"\xaa\xbb")
    assert Packet.parse(wire) == packet
    assert packet.encode() == wire


def test_packet_skips_csrc_extension_and_padding() -> None:
    header = bytes.fromhex("b1 00 0001 00000000 00000001")
    extra = bytes.fromhex("00000002 bede0001 11223344")
    assert Packet.parse(header + extra + b"audio" + b"\0\0\3").payload == b"audio"


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        ("80 00 0001", "expected at least 12 bytes, got 4"),
        ("00" * 12, "expected RTP version 2, got 0"),
        ("9000000100000000" + "00000001", "header extension is cut short"),
        ("a0000001 00000000 00000001 ff", "header ends at byte 12, payload at -242"),
    ],
    ids=["short", "version-0", "no-extension", "padding-too-long"],
)
def test_packet_malformed_is_refused(wire: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        Packet.parse(bytes.fromhex(wire))


def test_schedule_without_jitter_is_every_20_ms() -> None:
    slots = list(islice(schedule(), 100))
    assert [slot.send_ms for slot in slots] == [20 * n for n in range(100)]
    assert [slot.marker for slot in slots] == [True] + [False] * 99


@pytest.mark.parametrize("jitter_ms", [5, 30, 200])
def test_schedule_jitter_is_monotone_never_early_and_bounded(jitter_ms: int) -> None:
    slots = list(islice(schedule(jitter_ms=jitter_ms, seed=1), 2000))
    late_ms = [slot.send_ms - 20 * slot.frame for slot in slots]
    assert all(0 <= late <= jitter_ms for late in late_ms)
    assert max(late_ms) > 0.9 * jitter_ms
    assert all(before.send_ms <= after.send_ms for before, after in pairwise(slots))


def test_schedule_depends_on_the_seed_alone() -> None:
    once, again, other = (list(islice(schedule(jitter_ms=80, seed=s), 50)) for s in (1, 1, 2))
    assert once == again
    assert once != other


def test_schedule_dtx_skips_frames_and_marks_the_resumption() -> None:
    slots = schedule(talk_ms=60, silent_ms=40)
    first = list(takewhile(lambda slot: slot.frame < 10, slots))
    assert [(slot.frame, slot.send_ms, slot.marker) for slot in first] == [
        (0, 0, True),
        (1, 20, False),
        (2, 40, False),
        (5, 100, True),
        (6, 120, False),
        (7, 140, False),
    ]
    assert sent_indices(10, 60, 40) == [0, 1, 2, 5, 6, 7]


def test_schedule_dtx_without_talk_is_refused() -> None:
    with pytest.raises(ValueError, match="talk_ms: expected at least 20, got 0"):
        next(schedule(silent_ms=500))


def test_play_on_the_wire(run: Run) -> None:
    """Sequence numbers have no gap, timestamps jump over silence, nothing is early."""

    async def scenario() -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(1)
        port, pacer = RtpPort("127.0.0.1", ULAW), Pacer()
        port.remote = listener.getsockname()
        slots = schedule(talk_ms=40, silent_ms=40)
        payloads = make_blocks(6)
        playback = Playback(port, payloads, slots, loop=False)
        start_s = monotonic()
        pacer.add(playback)
        assert await playback.done == 4
        assert monotonic() - start_s >= 0.100
        packets = [Packet.parse(listener.recv(2048)) for _ in range(4)]
        assert [packet.payload for packet in packets] == [payloads[n] for n in (0, 1, 4, 5)]
        assert [packet.marker for packet in packets] == [True, False, True, False]
        first = packets[0]
        sequences = [(packet.sequence - first.sequence) & 0xFFFF for packet in packets]
        timestamps = [(packet.timestamp - first.timestamp) & 0xFFFFFFFF for packet in packets]
        assert sequences == [0, 1, 2, 3]
        assert timestamps == [0, 160, 640, 800]
        assert {packet.ssrc for packet in packets} == {first.ssrc}
        pacer.close()
        port.close()
        listener.close()

    run(scenario())


# --- two users, no Asterisk between them


def test_call_carries_audio_exactly_both_ways(run: Run) -> None:
    async def scenario() -> None:
        mine, theirs = make_blocks(10, seed=1), make_blocks(10, seed=2)
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True, record=True) as b,
            SipUser("a", b.address) as a,
        ):
            there = await a.call("600", record=True)
            here = await b.incoming()
            assert set(await asyncio.gather(there.play(mine), here.play(theirs))) == {10}
            await asyncio.gather(there.wait_received(10), here.wait_received(10))
            assert [payload for _, payload in here.received] == mine
            assert there.received_audio() == b"".join(theirs)
            slin = [decode(block) for block in mine]
            assert report(find_blocks(decode(here.received_audio()), slin), 10).intact
            await there.hangup()

    run(scenario())


@pytest.mark.parametrize("by", ["caller", "callee"])
def test_hangup_ends_both_sides_and_frees_their_sockets(run: Run, by: str) -> None:
    async def scenario() -> None:
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True) as b,
            SipUser("a", b.address) as a,
        ):
            there = await a.call("600")
            here = await b.incoming()
            assert (a.calls, b.calls) == ([there], [here])
            talking = there.talk()
            await here.wait_received(1)
            await (there if by == "caller" else here).hangup()
            await there.wait_ended()
            await here.wait_ended()
            assert (a.calls, b.calls) == ([], [])
            assert await talking >= 1
            await there.hangup()  # does nothing
            for call in (there, here):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(("127.0.0.1", call.rtp.port))
            with pytest.raises(ConnectionError):
                there.talk()
            with pytest.raises(ConnectionError):
                await there.wait_received(10**6)

    run(scenario())


def test_close_hangs_up_all_calls(run: Run) -> None:
    async def scenario() -> None:
        async with SipUser("b", ("127.0.0.1", 9), answer=Call.talk) as b:
            async with SipUser("a", b.address) as a:
                calls = await asyncio.gather(*(a.call(str(number)) for number in range(20)))
                others = [await b.incoming() for _ in calls]
                await asyncio.gather(*(call.wait_received(2) for call in calls))
            assert all(call.ended.is_set() for call in [*calls, *others])
            await a.close()  # does nothing

    run(scenario())


def test_recording_is_off_unless_asked_for(run: Run) -> None:
    async def scenario() -> None:
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True) as b,
            SipUser("a", b.address) as a,
        ):
            there = await a.call("600")
            here = await b.incoming()
            await there.play(make_blocks(2))
            await here.wait_received(2)
            assert here.received == []
            here.recording = True
            await there.play(make_blocks(1))
            await here.wait_received(3)
            assert len(here.received) == 1

    run(scenario())


def test_play_twice_at_once_is_refused_but_not_after_cancelling(run: Run) -> None:
    async def scenario() -> None:
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True) as b,
            SipUser("a", b.address) as a,
        ):
            call = await a.call("600")
            talking = call.talk()
            with pytest.raises(RuntimeError, match="already playing"):
                call.talk()
            talking.cancel()
            assert await call.play(make_blocks(2)) == 2

    run(scenario())


@pytest.mark.parametrize("codec", [SLIN, SLIN16], ids=["8000", "16000"])
def test_linear_call(run: Run, codec: Codec) -> None:
    async def scenario() -> None:
        codecs = (ULAW, SLIN, SLIN16)
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True, codecs=codecs) as b,
            SipUser("a", b.address) as a,
        ):
            call = await a.call("600", codec=codec)
            assert (await b.incoming()).rtp.codec == call.rtp.codec == codec

    run(scenario())


def test_call_without_a_common_codec_is_refused(run: Run) -> None:
    async def scenario() -> None:
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True) as b,
            SipUser("a", b.address) as a,
        ):
            with pytest.raises(CallRefused, match="488"):
                await a.call("600", codec=SLIN)
            assert not b.calls

    run(scenario())


def test_call_refused(run: Run) -> None:
    async def scenario() -> None:
        async with (
            SipUser("b", ("127.0.0.1", 9)) as b,
            SipUser("a", b.address) as a,
        ):
            with pytest.raises(CallRefused, match="INVITE refused: 486 Busy Here") as refusal:
                await a.call("600")
            assert (refusal.value.status, refusal.value.reason) == (486, "Busy Here")
            assert not a.calls

    run(scenario())


def test_requests_that_are_not_served_are_refused(run: Run) -> None:
    async def scenario() -> None:
        async with (
            SipUser("b", ("127.0.0.1", 9), answer=True) as b,
            SipUser("a", b.address) as a,
        ):
            with pytest.raises(Refused, match="REGISTER refused: 481"):
                await a.register()
            call = await a.call("600")
            with pytest.raises(TransferRefused, match="REFER refused: 405"):
                await call.refer("601")

    run(scenario())


# --- a peer that is a bare socket


class BarePeer(asyncio.DatagramProtocol):
    """Collects what it is sent, and answers by hand."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.sender = ("", 0)

    async def open(self) -> tuple[str, int]:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        host, port = self.transport.get_extra_info("sockname")
        return host, port

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.sender = addr
        self.messages.put_nowait(Message.parse(data))

    async def expect(self, start: str) -> Message:
        async with asyncio.timeout(2):
            message = await self.messages.get()
        assert message.start_line.startswith(start)
        return message

    def reply(self, request: Message, status: str, body: bytes = b"") -> None:
        names = ("Via", "From", "Call-ID", "CSeq")
        headers = [(name, request.header(name)) for name in names]
        headers.append(("To", request.header("To") + ";tag=peer"))
        self.send(Message(f"SIP/2.0 {status}", headers, body))

    def request(self, dialog: Message, method: str, body: bytes = b"", **extra: str) -> None:
        """Send a request within the dialog that an INVITE of the user's began."""
        headers = [
            ("Via", f"SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK{method}{len(body)}"),
            ("From", dialog.header("To") + ";tag=peer"),
            ("To", dialog.header("From")),
            ("Call-ID", dialog.header("Call-ID")),
            ("CSeq", f"9 {method}"),
            *extra.items(),
        ]
        self.send(Message(f"{method} sip:a@127.0.0.1 SIP/2.0", headers, body))

    def send(self, message: Message) -> None:
        self.transport.sendto(message.encode(), self.sender)


SDP = Sdp("127.0.0.1", 4000, ((0, "PCMU", 8000),)).encode()
MOVED = Sdp("127.0.0.1", 4002, ((0, "PCMU", 8000),)).encode()


async def answered(peer: BarePeer, user: SipUser) -> tuple[Call, Message]:
    calling = asyncio.create_task(user.call("600"))
    invite = await peer.expect("INVITE")
    peer.reply(invite, "200 OK", SDP)
    await peer.expect("ACK")
    return await calling, invite


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip, "T1_S", 0.01)


def test_invite_is_repeated_until_a_response_comes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)

    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            calling = asyncio.create_task(user.call("600"))
            invite = await peer.expect("INVITE")
            assert await peer.expect("INVITE") == invite
            assert await peer.expect("INVITE") == invite
            peer.reply(invite, "100 Trying")
            peer.reply(invite, "183 Session Progress")
            peer.reply(invite, "200 OK", SDP)
            while (message := await peer.messages.get()).method != "ACK":
                assert message == invite
            ack = message
            assert param(ack.header("To"), "tag") == "peer"
            peer.reply(invite, "200 OK", SDP)  # as if the ACK had been lost
            assert await peer.expect("ACK") == ack
            await calling
            await call_ends(peer, user)
        peer.transport.close()

    run(scenario())


async def call_ends(peer: BarePeer, user: SipUser) -> None:
    (call,) = user.calls
    hanging_up = asyncio.create_task(call.hangup())
    peer.reply(await peer.expect("BYE"), "200 OK")
    await hanging_up


def test_hangup_without_an_answer_ends_the_call_all_the_same(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            call, _ = await answered(peer, user)
            with pytest.raises(NoResponse, match=r"BYE: no final response within 0\.02 s"):
                await call.hangup(timeout_s=0.02)
            assert call.ended.is_set()
            assert not user.calls
        peer.transport.close()

    run(scenario())


def test_only_audio_of_the_call_counts_as_received(run: Run) -> None:
    """Asterisk sends RTCP to the port after a call's own, which may be another call's."""

    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open(), record=True) as user:
            call, _ = await answered(peer, user)
            call.recording = True
            for wire in ["", "80c80006" + "00" * 24, "8065" + "00" * 11, "bf00" + "00" * 10]:
                peer.transport.sendto(bytes.fromhex(wire), ("127.0.0.1", call.rtp.port))
            audio = Packet(0, False, 1, 160, 1, b"\x55" * 160).encode()
            peer.transport.sendto(audio, ("127.0.0.1", call.rtp.port))
            await call.wait_received(2)
            assert [payload for _, payload in call.received] == [b"\x55" * 160]
            with pytest.raises(TimeoutError):
                await call.wait_received(3, timeout_s=0.01)
            with pytest.raises(TimeoutError):
                await call.wait_ended(timeout_s=0.01)
            call._end()
        peer.transport.close()

    run(scenario())


def test_user_that_is_not_open(run: Run) -> None:
    async def scenario() -> None:
        user = SipUser("a", ("127.0.0.1", 9))
        await user.close()
        with pytest.raises(ConnectionError, match="not started, or closed"):
            await user.call("600")
        with pytest.raises(ConnectionError, match="not started, or closed"):
            await user.register()

    run(scenario())


def test_register_and_unregister(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            registering = asyncio.create_task(user.register())
            request = await peer.expect("REGISTER")
            assert request.header("Expires") == "3600"
            peer.reply(request, "200 OK")
            await registering
            closing = asyncio.create_task(user.close())
            request = await peer.expect("REGISTER")
            assert request.header("Expires") == "0"
            peer.reply(request, "200 OK")
            await closing
        peer.transport.close()

    run(scenario())


def test_refusal_is_acknowledged_each_time(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            calling = asyncio.create_task(user.call("600"))
            invite = await peer.expect("INVITE")
            for _ in range(2):
                peer.reply(invite, "404 Not Found")
                ack = await peer.expect("ACK")
                assert ack.branch == invite.branch
            with pytest.raises(CallRefused, match="404"):
                await calling
        peer.transport.close()

    run(scenario())


def test_call_not_answered_in_time_is_cancelled(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            calling = asyncio.create_task(user.call("600", timeout_s=0.3))
            invite = await peer.expect("INVITE")
            peer.reply(invite, "180 Ringing")
            cancel = await peer.expect("CANCEL")
            assert cancel.branch == invite.branch
            peer.reply(cancel, "200 OK")
            peer.reply(invite, "487 Request Terminated")
            await peer.expect("ACK")
            with pytest.raises(NoResponse, match=r"INVITE: no final response within 0\.3 s"):
                await calling
        peer.transport.close()

    run(scenario())


def test_call_answered_after_giving_up_is_hung_up(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            calling = asyncio.create_task(user.call("600", timeout_s=0.05))
            invite = await peer.expect("INVITE")
            with pytest.raises(NoResponse):
                await calling
            peer.reply(invite, "200 OK", SDP)
            await peer.expect("ACK")
            await peer.expect("BYE")
            assert not user.calls
        peer.transport.close()

    run(scenario())


def test_answer_without_usable_audio_is_hung_up(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            calling = asyncio.create_task(user.call("600"))
            peer.reply(await peer.expect("INVITE"), "200 OK")
            await peer.expect("ACK")
            await peer.expect("BYE")
            with pytest.raises(SdpError):
                await calling
        peer.transport.close()

    run(scenario())


def test_close_during_a_call_attempt(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            calling = asyncio.create_task(user.call("600"))
            await peer.expect("INVITE")
        with pytest.raises(ConnectionError):
            await calling
        peer.transport.close()

    run(scenario())


def test_answer_is_repeated_until_the_ack_comes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)

    async def scenario() -> None:
        peer = BarePeer()
        await peer.open()
        async with SipUser("a", ("127.0.0.1", 9), answer=True) as user:
            peer.sender = user.address
            invite = Message.parse(INVITE)
            invite.body = SDP
            peer.send(invite)
            ok = await peer.expect("SIP/2.0 200 OK")
            peer.send(invite)
            for _ in range(3):
                assert await peer.expect("SIP/2.0 200 OK") == ok
            assert len(user.calls) == 1
            assert (await user.incoming()).remote == invite.header("From")
            headers = [(name, ok.header(name)) for name in ("From", "To", "Call-ID")]
            via = ("Via", "SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bKack")
            peer.send(Message("ACK sip:a SIP/2.0", [via, *headers, ("CSeq", "7 ACK")]))
            (call,) = user.calls
            call._end()
        peer.transport.close()

    run(scenario())


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
def test_audio_follows_the_peer(run: Run, method: str) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            call, invite = await answered(peer, user)
            assert call.rtp.remote == ("127.0.0.1", 4000)
            peer.request(invite, method, MOVED)
            response = await peer.expect("SIP/2.0 200 OK")
            assert call.rtp.remote == ("127.0.0.1", 4002)
            assert Sdp.parse(response.body).port == call.rtp.port
            await call_ends(peer, user)
        peer.transport.close()

    run(scenario())


def test_audio_follows_an_answer_in_the_ack(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            call, invite = await answered(peer, user)
            peer.request(invite, "INVITE")
            assert Sdp.parse((await peer.expect("SIP/2.0 200 OK")).body).port == call.rtp.port
            peer.request(invite, "ACK", MOVED)
            peer.request(invite, "UPDATE")
            assert (await peer.expect("SIP/2.0 200 OK")).body == b""
            assert call.rtp.remote == ("127.0.0.1", 4002)
            await call_ends(peer, user)
        peer.transport.close()

    run(scenario())


def test_requests_outside_calls(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        await peer.open()
        async with SipUser("a", ("127.0.0.1", 9)) as user:
            peer.sender = user.address
            dialog = Message.parse(INVITE)
            peer.transport.sendto(b"noise", user.address)
            for method, status in [("OPTIONS", 200), ("CANCEL", 200), ("BYE", 481), ("INFO", 481)]:
                peer.request(dialog, method)
                assert (await peer.expect("SIP/2.0")).status == status
        peer.transport.close()

    run(scenario())


@pytest.mark.parametrize("bye_first", [False, True])
def test_transfer_waits_for_its_outcome(run: Run, bye_first: bool) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            call, invite = await answered(peer, user)
            transfer = asyncio.create_task(call.refer("601"))
            refer = await peer.expect("REFER")
            host, port = user.server
            assert refer.header("Refer-To") == f"<sip:601@{host}:{port}>"
            peer.reply(refer, "202 Accepted")
            if bye_first:
                peer.request(invite, "BYE")
                await peer.expect("SIP/2.0 200 OK")
            peer.request(invite, "NOTIFY", b"SIP/2.0 100 Trying\r\n", Event="refer")
            await peer.expect("SIP/2.0 200 OK")
            assert not transfer.done()
            peer.request(invite, "NOTIFY", b"SIP/2.0 200 OK\r\n", Event="refer")
            await peer.expect("SIP/2.0 200 OK")
            if not bye_first:
                peer.reply(await peer.expect("BYE"), "200 OK")
            await transfer
            assert call.ended.is_set()
        peer.transport.close()

    run(scenario())


def test_transfer_that_fails_later(run: Run) -> None:
    async def scenario() -> None:
        peer = BarePeer()
        async with SipUser("a", await peer.open()) as user:
            call, invite = await answered(peer, user)
            other, _ = await answered(peer, user)
            transfer = asyncio.create_task(call.refer_replaces(other))
            refer = await peer.expect("REFER")
            replaces = f"Replaces={other.call_id}%3Bto-tag%3Dpeer%3Bfrom-tag%3D{other.local_tag}>"
            assert refer.header("Refer-To").endswith(replaces)
            peer.reply(refer, "202 Accepted")
            peer.request(invite, "NOTIFY", b"SIP/2.0 503 Service Unavailable\r\n", Event="refer")
            with pytest.raises(TransferRefused, match="503 Service Unavailable"):
                await transfer
            call._end()
            other._end()
        peer.transport.close()

    run(scenario())


# --- a real Asterisk

DIALPLAN = """
[testbed]
exten => echo,1,Answer()
 same => n,Echo()

exten => play,1,Answer()
 same => n,Playback(${FILE})
"""


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    with Asterisk(dialplan=DIALPLAN) as one:
        yield one


@pytest.mark.asterisk
@pytest.mark.parametrize(("codec", "native"), [(ULAW, "ulaw"), (SLIN, "slin"), (SLIN16, "slin16")])
def test_channel_has_the_codec_of_the_call(
    run: Run, asterisk: Asterisk, codec: Codec, native: str
) -> None:
    async def scenario() -> None:
        async with (
            SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as user,
            AmiClient(asterisk) as ami,
        ):
            await user.call("echo", codec=codec)
            event = await ami.wait_event(lambda headers: headers.get("Event") == "Newchannel")
            formats = await ami.variable(event["Channel"], "CHANNEL(audionativeformat)")
            assert formats == f"({native})"

    run(scenario())


@pytest.mark.asterisk
@pytest.mark.parametrize("codec", [SLIN, SLIN16], ids=["8000", "16000"])
def test_echo_gives_linear_blocks_back_bit_exact(
    run: Run, asterisk: Asterisk, codec: Codec
) -> None:
    async def scenario() -> None:
        blocks = slin_blocks(50, sample_rate=codec.sample_rate)
        async with SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as user:
            call = await user.call("echo", codec=codec, record=True)
            await call.play([swap_bytes(block) for block in blocks])
            await call.wait_received(50)
            heard = swap_bytes(call.received_audio())
            assert report(find_blocks(heard, blocks), 50).intact
            assert {len(payload) for _, payload in call.received} == {codec.frame_bytes}

    run(scenario())


@pytest.mark.asterisk
@pytest.mark.parametrize(("codec", "extension"), [(SLIN, "sln"), (SLIN16, "sln16")])
def test_linear_blocks_of_a_file_are_heard_bit_exact(
    run: Run, asterisk: Asterisk, tmp_path: Path, codec: Codec, extension: str
) -> None:
    """Echo() would give any bytes back; a file tells that they are samples of this order."""
    blocks = slin_blocks(50, sample_rate=codec.sample_rate)
    (tmp_path / f"known.{extension}").write_bytes(b"".join(blocks))

    async def scenario() -> None:
        async with SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as user:
            async with AmiClient(asterisk) as ami:
                await ami.action("Setvar", Variable="FILE", Value=str(tmp_path / "known"))
            call = await user.call("play", codec=codec, record=True)
            await call.wait_ended()
            heard = swap_bytes(call.received_audio())
            assert report(find_blocks(heard, blocks), 50).intact

    run(scenario())
