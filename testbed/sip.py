"""Implements a small SIP user agent for tests, demo and benchmarks: calls over UDP on one host.

    async with SipUser("caller", ("127.0.0.1", 5060), record=True) as caller:
        call = await caller.call("600")
        await call.play(make_blocks(100))
        await call.hangup()

It speaks what Asterisk's chan_pjsip needs and no more (RFC 3261, 3515, 3891):
no authentication, no proxies (Record-Route is ignored), no TCP, no early media.
"""

import asyncio
import logging
import random
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Self
from urllib.parse import quote

from testbed.blocks import make_blocks
from testbed.rtp import (
    PTIME_MS,
    ULAW,
    Codec,
    Pacer,
    Playback,
    Received,
    RtpPort,
    Sdp,
    SdpError,
    Slot,
    schedule,
)

log = logging.getLogger(__name__)

Address = tuple[str, int]
DialogKey = tuple[str, str]  # Call-ID, our tag
TransactionKey = tuple[str, str]  # branch, method

# RFC 3261, section 17.1.1.1
T1_S = 0.5
T2_S = 4.0
GIVE_UP_S = 64 * T1_S

KEPT_REPLIES = 4096  # to retransmitted messages; 100 calls need far fewer
SIP_BUFFER_BYTES = 1024 * 1024  # a burst of some hundred messages of about 1 kB
CLOSE_TIMEOUT_S = 1.0
NOT_OPEN = "sip user is not started, or closed"
HOST = "127.0.0.1"
ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, REFER, NOTIFY"
COMPACT = {
    "v": "via",
    "f": "from",
    "t": "to",
    "i": "call-id",
    "m": "contact",
    "c": "content-type",
    "l": "content-length",
    "o": "event",
    "r": "refer-to",
}


class SipError(Exception):
    """Base of the errors of a call."""


class SipParseError(SipError):
    """A datagram is not a SIP message."""


class NoResponse(SipError, TimeoutError):
    """The peer gave no final response in time."""

    def __init__(self, method: str, timeout_s: float) -> None:
        super().__init__(f"{method}: no final response within {timeout_s:g} s")


class Refused(SipError):
    """The peer answered a request with a status of 300 or more."""

    def __init__(self, method: str, status: int, reason: str) -> None:
        super().__init__(f"{method} refused: {status} {reason}")
        self.status = status
        self.reason = reason


class CallRefused(Refused):
    """The call was not answered."""


class TransferRefused(Refused):
    """The transfer was refused, or did not succeed."""


@dataclass
class Message:
    """A SIP request or response, with no I/O."""

    start_line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    @classmethod
    def parse(cls, datagram: bytes) -> "Message":
        """Take a datagram apart; compact header names become long ones.

        Raises:
            SipParseError: It is not SIP, or its body is cut short.
        """
        head, separator, body = datagram.partition(b"\r\n\r\n")
        start_line, *lines = head.decode("utf-8", "replace").split("\r\n")
        if not separator or "SIP/2.0" not in start_line:
            raise SipParseError(f"expected a SIP message, got {datagram[:40]!r}")
        message = cls(start_line, [_header(line) for line in lines])
        length = message.header("Content-Length", str(len(body)))
        if not length.isdecimal() or int(length) > len(body):
            raise SipParseError(f"expected a body of {length} bytes, got {len(body)}")
        message.body = body[: int(length)]
        return message

    def encode(self) -> bytes:
        headers = [(name, text) for name, text in self.headers if name.lower() != "content-length"]
        lines = [self.start_line, *(f"{name}: {text}" for name, text in headers)]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body

    def header(self, name: str, default: str = "") -> str:
        """The first header of this name."""
        return next(iter(self.all(name)), default)

    def all(self, name: str) -> list[str]:
        return [text for header, text in self.headers if header.lower() == name.lower()]

    @property
    def is_response(self) -> bool:
        return self.start_line.startswith("SIP/2.0 ")

    @property
    def method(self) -> str:
        """Of a request, or of the request that a response belongs to."""
        return self.header("CSeq").rpartition(" ")[2]

    @property
    def status(self) -> int:
        return status_of(self.start_line)[0]

    @property
    def reason(self) -> str:
        return status_of(self.start_line)[1]

    @property
    def branch(self) -> str:
        """Names the transaction; of the topmost Via."""
        return param(self.header("Via"), "branch")

    @property
    def transaction(self) -> TransactionKey:
        return self.branch, self.method


def _header(line: str) -> tuple[str, str]:
    name, colon, text = line.partition(":")
    if not colon:
        raise SipParseError(f"expected a header, got {line!r}")
    name = name.strip()
    return COMPACT.get(name.lower(), name), text.strip()


def status_of(status_line: str) -> tuple[int, str]:
    """Split a status line, which is also what the body of a NOTIFY about a transfer is."""
    match = re.match(r"SIP/2\.0 (\d{3}) ?([^\r\n]*)", status_line)
    if match is None:
        raise SipParseError(f"expected a status line, got {status_line[:40]!r}")
    return int(match[1]), match[2]


def param(header: str, name: str) -> str:
    """A parameter of a header, such as the tag of From; empty if it has none."""
    match = re.search(rf";\s*{name}=([^;,\s]+)", header.rpartition(">")[2])
    return match[1] if match else ""


def uri_of(header: str) -> str:
    """The URI of a From, To or Contact header, with its own parameters if in brackets."""
    match = re.search(r"<([^>]+)>", header)
    return match[1] if match else header.partition(";")[0].strip()


def _new_id() -> str:
    return f"{random.getrandbits(64):016x}"


_TALK = make_blocks(50)


class _Repeat:
    """Sends at once, then after T1 and at doubled distances, until stopped or given up."""

    def __init__(self, send: Callable[[], None]) -> None:
        self._send = send
        self._interval_s = T1_S
        self._end_s = monotonic() + GIVE_UP_S
        self._loop = asyncio.get_running_loop()
        send()
        self._timer = self._loop.call_later(T1_S, self._again)

    def stop(self) -> None:
        self._timer.cancel()

    def _again(self) -> None:
        if monotonic() > self._end_s:
            return
        self._send()
        self._interval_s = min(2 * self._interval_s, T2_S)
        self._timer = self._loop.call_later(self._interval_s, self._again)


class _Exchange:
    """A request of ours, repeated until the first response, done with the final one."""

    def __init__(
        self,
        request: Message,
        send: Callable[[], None],
        on_final: Callable[[Message], None] | None,
    ) -> None:
        self.request = request
        self.done: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.heard = False  # any response at all
        self._on_final = on_final
        self._repeat = _Repeat(send)

    def on_response(self, response: Message) -> None:
        self.heard = True
        self._repeat.stop()
        if response.status < 200 or self.done.done():
            return
        # Called here rather than by the awaiting task: the peer's next request
        # may be read before that task runs, and must find the call as it is now.
        try:
            if self._on_final is not None:
                self._on_final(response)
        except SdpError as exc:
            self.done.set_exception(exc)
        else:
            self.done.set_result(response)

    def stop(self) -> None:
        """Stop sending it; a response may still come."""
        self._repeat.stop()


class Call:
    """One call of a SipUser, which makes it, owns it, and is told when it ends.

    ended is set once, by hangup() or by the peer's BYE; the audio socket is
    free from then on, and what was received can still be read.
    """

    def __init__(
        self,
        user: "SipUser",
        peer: Address,
        remote: str,
        *,
        call_id: str,
        codecs: Sequence[Codec],
        record: bool,
    ) -> None:
        self.ended = asyncio.Event()
        self.established = False
        self.remote = remote  # name and URI of the other party, as in From and To
        self.call_id = call_id
        self.local_tag = _new_id()
        self.remote_tag = param(remote, "tag")
        self.rtp = RtpPort(HOST, codecs[0], record=record)
        self._codecs = codecs
        self._user = user
        self._peer = peer
        self._target_uri = uri_of(remote)
        self._sequence = 0
        self._offers = 0  # besides the first
        self._answering: _Repeat | None = None
        self._playback: Playback | None = None

    # Audio

    @property
    def received(self) -> list[Received]:
        """Payloads in the order of arrival, while recording is on."""
        return self.rtp.received

    @property
    def recording(self) -> bool:
        return self.rtp.recording

    @recording.setter
    def recording(self, on: bool) -> None:
        self.rtp.recording = on

    def received_audio(self) -> bytes:
        """All recorded payloads in one piece, in the codec of the call."""
        return b"".join(payload for _, payload in self.received)

    async def wait_received(self, count: int, timeout_s: float = 15) -> None:
        """Wait until this many audio packets have arrived since the call began.

        Raises:
            TimeoutError: Fewer arrived in time.
            ConnectionError: The call ended before.
        """
        await self.rtp.wait_received(count, timeout_s)

    def play(
        self,
        packets: Sequence[bytes],
        *,
        jitter_ms: float = 0,
        seed: int = 0,
        talk_ms: int = 0,
        silent_ms: int = 0,
        loop: bool = False,
    ) -> asyncio.Future[int]:
        """Send payloads of 20 ms, one every 20 ms from now on; see rtp.schedule.

        Args:
            packets: Payloads in the codec of the call; kept, not copied.
            jitter_ms: Largest random delay of a packet; timestamps stay ideal.
            seed: Of the random delays.
            talk_ms: Length of each talking part, if silent_ms is not 0.
            silent_ms: Length of each silent part, whose packets are skipped.
            loop: Start again after the last one, for ever.

        Returns:
            A future: the number of packets sent, once the last one is sent or
            the call has ended. Cancel it to stop.
        """
        slots = schedule(jitter_ms=jitter_ms, seed=seed, talk_ms=talk_ms, silent_ms=silent_ms)
        return self._play(packets, slots, loop=loop)

    def talk(self) -> asyncio.Future[int]:
        """Send noise until the call ends, for load; only in calls that use µ-law.

        Begins within 20 ms: calls that began together must not send all at once.
        """
        return self._play(_TALK, schedule(), loop=True, delay_ms=random.uniform(0, PTIME_MS))

    def _play(
        self, packets: Sequence[bytes], slots: Iterator[Slot], *, loop: bool, delay_ms: float = 0
    ) -> asyncio.Future[int]:
        if self.ended.is_set():
            raise ConnectionError("call ended")
        if self._playback is not None and not self._playback.done.done():
            raise RuntimeError("already playing: await or cancel the first play")
        self._playback = Playback(self.rtp, packets, slots, loop=loop)
        self._user._pacer.add(self._playback, delay_ms)
        return self._playback.done

    # Signalling

    async def wait_ended(self, timeout_s: float = 15) -> None:
        """Wait until either side has hung up.

        Raises:
            TimeoutError: The call is still up.
        """
        async with asyncio.timeout(timeout_s):
            await self.ended.wait()

    async def hangup(self, timeout_s: float = 10) -> None:
        """Send BYE and wait for its answer; does nothing when the call has ended.

        Raises:
            NoResponse: No answer came; the call is over here all the same.
        """
        if self.ended.is_set():
            return
        try:
            await self._ask(self._request("BYE"), timeout_s)
        finally:
            self._end()

    async def offer(
        self, codec: Codec | None = None, *, hold: bool = False, timeout_s: float = 15
    ) -> None:
        """Send a new offer (re-INVITE): another codec, or to put the other party on hold.

        Raises:
            Refused: The peer does not take it.
            NoResponse: No answer came in time.
        """
        if codec is not None:
            self._codecs = (codec,)
            self.rtp.codec = codec
        self._offers += 1
        direction = "sendonly" if hold else "sendrecv"
        body = replace(self.rtp.sdp(HOST), direction=direction, version=1 + self._offers)
        response = await self._ask(self._request("INVITE", body.encode()), timeout_s)
        sequence = int(response.header("CSeq").split()[0])
        self._user._send_ack(response, self._request("ACK", sequence=sequence), self._peer)
        if response.status >= 300:
            raise Refused("INVITE", response.status, response.reason)
        self._adopt_sdp(response.body)

    async def refer(self, extension: str, timeout_s: float = 15) -> None:
        """Blind transfer: have the peer send the other party to an extension, then hang up.

        Asterisk refuses with 400 until it has joined the two parties, and reports
        success only when the other party sends audio: let both talk first.

        Raises:
            TransferRefused: Now, or by the outcome reported later.
            NoResponse: The outcome was not reported in time.
        """
        await self._refer(f"<{self._user._uri(extension)}>", timeout_s)

    async def refer_replaces(self, other: "Call", timeout_s: float = 15) -> None:
        """Attended transfer: join the other party with that of another call, then hang up.

        Asterisk hangs up the other call itself.

        Raises:
            TransferRefused: Now, or by the outcome reported later.
            NoResponse: The outcome was not reported in time.
        """
        # RFC 3891, section 3: the tags as the receiver of Replaces sees them.
        dialog = f"{other.call_id};to-tag={other.remote_tag};from-tag={other.local_tag}"
        target = uri_of(other.remote)
        await self._refer(f"<{target}?Replaces={quote(dialog, safe='')}>", timeout_s)

    async def _refer(self, refer_to: str, timeout_s: float) -> None:
        outcome: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        request = self._request("REFER")
        request.headers += [("Refer-To", refer_to), ("Referred-By", f"<{self._user.uri}>")]
        self._user._transfers[self._key] = outcome
        try:
            response = await self._ask(request, timeout_s)
            if response.status >= 300:
                raise TransferRefused("REFER", response.status, response.reason)
            await asyncio.wait([outcome], timeout=timeout_s)
        finally:
            del self._user._transfers[self._key]
        if not outcome.done():
            raise NoResponse("REFER", timeout_s)
        status, reason = outcome.result()
        if status >= 300:
            raise TransferRefused("REFER", status, reason)
        await self.hangup()

    @property
    def _key(self) -> DialogKey:
        return self.call_id, self.local_tag

    def _request(self, method: str, body: bytes = b"", *, sequence: int | None = None) -> Message:
        if sequence is None:
            self._sequence += 1
            sequence = self._sequence
        to = f"<{uri_of(self.remote)}>" + (f";tag={self.remote_tag}" if self.remote_tag else "")
        request = self._user._request(
            method,
            self._target_uri,
            to=to,
            tag=self.local_tag,
            call_id=self.call_id,
            sequence=sequence,
        )
        if body:
            request.headers.append(("Content-Type", "application/sdp"))
            request.body = body
        return request

    async def _ask(self, request: Message, timeout_s: float) -> Message:
        return await self._user._ask(request, self._peer, timeout_s)

    def _sdp(self) -> bytes:
        return self.rtp.sdp(HOST).encode()

    def _adopt_sdp(self, body: bytes) -> None:
        """Send audio where the peer now wants it, in the codec it now wants."""
        sdp = Sdp.parse(body)
        self.rtp.codec = sdp.choose(self._codecs)
        self.rtp.remote = sdp.host, sdp.port

    def _adopt_target(self, message: Message) -> None:
        contact = message.header("Contact")
        if contact:
            self._target_uri = uri_of(contact)

    def _on_invite_final(self, response: Message) -> None:
        """Complete the call with an ACK, or end it."""
        if response.status >= 300:
            self._end()
            return
        self.remote_tag = param(response.header("To"), "tag")
        self._adopt_target(response)
        sequence = int(response.header("CSeq").split()[0])
        self._user._send_ack(response, self._request("ACK", sequence=sequence), self._peer)
        if self.ended.is_set():  # answered after we had given up
            self._bye()
            return
        try:
            self._adopt_sdp(response.body)
        except SdpError:
            self._bye()
            raise
        self.established = True

    def _answer(self, request: Message) -> None:
        """Answer an INVITE, first or later, with 200 until the ACK arrives."""
        response = self._user._response(request, 200, "OK", self.local_tag, self._sdp())
        datagram = self._user._keep(request, response)
        self._stop_answering()
        self._answering = _Repeat(lambda: self._user._send(datagram, self._peer))
        self.established = True

    def _stop_answering(self) -> None:
        if self._answering is not None:
            self._answering.stop()

    def _on_ack(self, request: Message) -> None:
        self._stop_answering()
        if request.body:  # answers the offer we made in our 200
            self._adopt_sdp(request.body)

    def _bye(self) -> None:
        """Hang up without waiting for the answer."""
        self._user._start_exchange(self._request("BYE"), self._peer)
        self._end()

    def _end(self) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        self._stop_answering()
        if self._playback is not None:
            self._playback.finish()
        self.rtp.close()
        self._user._dialogs.pop(self._key, None)


class SipUser(asyncio.DatagramProtocol):
    """A SIP phone with any number of lines, on one UDP socket of 127.0.0.1.

    Args:
        username: User part of From and Contact, as it stands in a URI.
        display_name: What stands before the URI in From.
        server: Host and port that new requests go to.
        answer: What to do with incoming calls: refuse them with 486, answer
            them at once, or answer them at once and call this with each.
        codecs: What incoming calls may use.
        record: Whether incoming calls keep the audio they receive.
    """

    def __init__(
        self,
        username: str,
        server: Address,
        *,
        answer: Callable[[Call], object] | bool = False,
        codecs: Sequence[Codec] = (ULAW,),
        record: bool = False,
        display_name: str = "",
    ) -> None:
        self.username = username
        self._display_name = display_name
        self.server = server
        self.uri = self._uri(username)
        self.address: Address = (HOST, 0)  # port known once started
        self._on_call = answer
        self._codecs = codecs
        self._record = record
        self._transport: asyncio.DatagramTransport | None = None
        self._pacer = Pacer()
        self._incoming: asyncio.Queue[Call] = asyncio.Queue()
        self._dialogs: dict[DialogKey, Call] = {}
        self._exchanges: dict[TransactionKey, _Exchange] = {}
        self._transfers: dict[DialogKey, asyncio.Future[tuple[int, str]]] = {}
        self._kept: OrderedDict[TransactionKey, bytes] = OrderedDict()
        self._registration_id = _new_id()
        self._registration_sequence = 0
        self._registered = False

    async def start(self) -> None:
        """Open the SIP socket, on a free port."""
        loop = asyncio.get_running_loop()
        sip_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sip_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SIP_BUFFER_BYTES)
        sip_socket.bind((HOST, 0))
        self.address = HOST, sip_socket.getsockname()[1]
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sip_socket)

    async def close(self) -> None:
        """Hang up all calls, unregister, and free all sockets; a silent peer costs 1 s."""
        if self._transport is None:
            return
        await asyncio.gather(
            *(call.hangup(CLOSE_TIMEOUT_S) for call in self.calls),
            self._unregister(),
            return_exceptions=True,
        )
        for call in list(self._dialogs.values()):
            call._end()
        for exchange in self._exchanges.values():
            exchange.stop()
            exchange.done.cancel()
        self._exchanges.clear()
        self._pacer.close()
        self._transport.close()
        self._transport = None
        # The transport frees its socket in the next turn of the loop.
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def ringing(self) -> list[Call]:
        """Calls that are not answered yet; they may have audio already."""
        return [call for call in self._dialogs.values() if not call.established]

    @property
    def calls(self) -> list[Call]:
        """The calls that are up, oldest first."""
        return [call for call in self._dialogs.values() if call.established]

    async def incoming(self, timeout_s: float = 15) -> Call:
        """The next incoming call that was answered.

        Raises:
            TimeoutError: None came in time.
        """
        async with asyncio.timeout(timeout_s):
            return await self._incoming.get()

    async def register(self, expires_s: int = 3600, timeout_s: float = 15) -> None:
        """Tell the server where to send calls for us; close() takes it back.

        Raises:
            Refused: The server does not know us.
            NoResponse: The server did not answer.
        """
        self._registration_sequence += 1
        host, port = self.server
        request = self._request(
            "REGISTER",
            f"sip:{host}:{port}",
            to=f"<{self.uri}>",
            tag=self._registration_id,
            call_id=self._registration_id,
            sequence=self._registration_sequence,
        )
        request.headers.append(("Expires", str(expires_s)))
        response = await self._ask(request, self.server, timeout_s)
        if response.status >= 300:
            raise Refused("REGISTER", response.status, response.reason)
        self._registered = expires_s > 0

    async def _unregister(self) -> None:
        if self._registered:
            await self.register(0, CLOSE_TIMEOUT_S)

    async def call(
        self, extension: str, *, timeout_s: float = 15, codec: Codec = ULAW, record: bool = False
    ) -> Call:
        """Call an extension of the server and wait until it is answered.

        Raises:
            CallRefused: The call was answered with a status of 300 or more.
            NoResponse: It was not answered in time, and has been cancelled.
            SdpError: It was answered with audio we cannot use, and is hung up.
            ConnectionError: This user was closed meanwhile.
        """
        if self._transport is None:
            raise ConnectionError(NOT_OPEN)
        remote = f"<{self._uri(extension)}>"
        call = Call(self, self.server, remote, call_id=_new_id(), codecs=(codec,), record=record)
        self._dialogs[call._key] = call
        invite = call._request("INVITE", call._sdp())
        exchange = self._start_exchange(invite, self.server, call._on_invite_final)
        try:
            await asyncio.wait([exchange.done], timeout=timeout_s)
        finally:
            if not exchange.done.done():
                self._give_up(call, exchange)
        if not exchange.done.done():
            raise NoResponse("INVITE", timeout_s)
        if exchange.done.cancelled():
            raise ConnectionError(NOT_OPEN)
        response = exchange.done.result()
        if response.status >= 300:
            raise CallRefused("INVITE", response.status, response.reason)
        return call

    def _give_up(self, call: Call, exchange: _Exchange) -> None:
        exchange.stop()
        call._end()
        # RFC 3261, section 9.1: no CANCEL to a peer that has not responded at all.
        if exchange.heard:
            cancel = _same_transaction(exchange.request, "CANCEL", exchange.request.header("To"))
            self._start_exchange(cancel, call._peer)

    # Requests of ours

    def _uri(self, user: str) -> str:
        host, port = self.server
        return f"sip:{user}@{host}:{port}"

    def _contact(self) -> str:
        host, port = self.address
        return f"<sip:{self.username}@{host}:{port}>"

    def _request(
        self, method: str, uri: str, *, to: str, tag: str, call_id: str, sequence: int
    ) -> Message:
        host, port = self.address
        headers = [
            ("Via", f"SIP/2.0/UDP {host}:{port};rport;branch=z9hG4bK{_new_id()}"),
            ("Max-Forwards", "70"),
            ("From", f"{self._display_name}<{self.uri}>;tag={tag}"),
            ("To", to),
            ("Call-ID", call_id),
            ("CSeq", f"{sequence} {method}"),
            ("Contact", self._contact()),
            ("Allow", ALLOW),
        ]
        return Message(f"{method} {uri} SIP/2.0", headers)

    async def _ask(self, request: Message, peer: Address, timeout_s: float) -> Message:
        exchange = self._start_exchange(request, peer)
        try:
            await asyncio.wait([exchange.done], timeout=timeout_s)
        finally:
            exchange.stop()
            self._exchanges.pop(request.transaction, None)
        if not exchange.done.done() or exchange.done.cancelled():
            raise NoResponse(request.method, timeout_s)
        return exchange.done.result()

    def _start_exchange(
        self,
        request: Message,
        peer: Address,
        on_final: Callable[[Message], None] | None = None,
    ) -> _Exchange:
        datagram = request.encode()
        exchange = _Exchange(request, lambda: self._send(datagram, peer), on_final)
        self._exchanges[request.transaction] = exchange
        return exchange

    def _send(self, datagram: bytes, peer: Address) -> None:
        if self._transport is None:
            raise ConnectionError(NOT_OPEN)
        self._transport.sendto(datagram, peer)

    def _send_ack(self, response: Message, ack: Message, peer: Address) -> None:
        """ACK a final response, now and whenever it is repeated."""
        self._send(self._keep(response, ack), peer)

    def _keep(self, cause: Message, reply: Message) -> bytes:
        """Encode a reply and keep it, in case its cause is sent once more."""
        datagram = reply.encode()
        self._kept[cause.transaction] = datagram
        if len(self._kept) > KEPT_REPLIES:
            self._kept.popitem(last=False)
        return datagram

    # What the peer sends

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Handle one message; one that makes no sense is logged and dropped."""
        try:
            message = Message.parse(data)
            kept = self._kept.get(message.transaction)
            if kept is not None:
                self._send(kept, addr)
            elif message.is_response:
                self._on_response(message, addr)
            else:
                self._on_request(message, addr)
        except (SipParseError, SdpError) as exc:
            log.warning("%s: dropped a message from %s:%d: %s", self.username, *addr, exc)

    def _on_response(self, response: Message, peer: Address) -> None:
        exchange = self._exchanges.get(response.transaction)
        if exchange is None:
            return  # to a request we have given up
        if response.status >= 200:
            del self._exchanges[response.transaction]
        if response.status >= 300 and response.method == "INVITE":
            ack = _same_transaction(exchange.request, "ACK", response.header("To"))
            self._send_ack(response, ack, peer)
        exchange.on_response(response)

    def _on_request(self, request: Message, peer: Address) -> None:
        key = request.header("Call-ID"), param(request.header("To"), "tag")
        call = self._dialogs.get(key)
        match request.method:
            case "ACK":
                if call is not None:
                    call._on_ack(request)
            case "NOTIFY":
                self._on_notify(key, request, peer)
            case "OPTIONS" | "CANCEL":  # an INVITE was answered before its CANCEL came
                self._reply(request, peer, 200, "OK")
            case "INVITE" if not key[1]:
                self._on_invite(request, peer)
            case _ if call is None:
                self._reply(request, peer, 481, "Call/Transaction Does Not Exist")
            case "INVITE" | "UPDATE":
                self._on_update(call, request, peer)
            case "BYE":
                self._reply(request, peer, 200, "OK")
                call._end()
            case _:
                self._reply(request, peer, 405, "Method Not Allowed")

    def _on_invite(self, request: Message, peer: Address) -> None:
        if self._on_call is False:
            self._reply(request, peer, 486, "Busy Here")
            return
        call = Call(
            self,
            peer,
            request.header("From"),
            call_id=request.header("Call-ID"),
            codecs=self._codecs,
            record=self._record,
        )
        call._adopt_target(request)
        try:
            if request.body:
                call._adopt_sdp(request.body)
        except SdpError:
            call._end()
            self._reply(request, peer, 488, "Not Acceptable Here")
            return
        self._dialogs[call._key] = call
        call._answer(request)
        self._incoming.put_nowait(call)
        if callable(self._on_call):
            self._on_call(call)

    def _on_update(self, call: Call, request: Message, peer: Address) -> None:
        """Follow a change within a call: the peer's audio moves, or only a name or timer."""
        call._adopt_target(request)
        if request.body:
            call._adopt_sdp(request.body)
        if request.method == "INVITE":
            call._answer(request)
        else:
            self._reply(request, peer, 200, "OK", call._sdp() if request.body else b"")

    def _on_notify(self, key: DialogKey, request: Message, peer: Address) -> None:
        """Record the progress of a transfer; its last NOTIFY may come after the BYE."""
        self._reply(request, peer, 200, "OK")
        outcome = self._transfers.get(key)
        if outcome is None or outcome.done() or not request.body:
            return
        status, reason = status_of(request.body.decode("utf-8", "replace"))
        if status >= 200:
            outcome.set_result((status, reason))

    def _reply(
        self, request: Message, peer: Address, status: int, reason: str, body: bytes = b""
    ) -> None:
        response = self._response(request, status, reason, _new_id(), body)
        self._send(self._keep(request, response), peer)

    def _response(
        self, request: Message, status: int, reason: str, tag: str, body: bytes = b""
    ) -> Message:
        to = request.header("To")
        headers = [("Via", via) for via in request.all("Via")]
        headers += [
            ("From", request.header("From")),
            ("To", to if param(to, "tag") else f"{to};tag={tag}"),
            ("Call-ID", request.header("Call-ID")),
            ("CSeq", request.header("CSeq")),
            ("Contact", self._contact()),
            ("Allow", ALLOW),
        ]
        if body:
            headers.append(("Content-Type", "application/sdp"))
        return Message(f"SIP/2.0 {status} {reason}", headers, body)


def _same_transaction(invite: Message, method: str, to: str) -> Message:
    """The CANCEL of an INVITE, or the ACK of its refusal (RFC 3261, 9.1 and 17.1.1.3)."""
    uri = invite.start_line.split(" ")[1]
    sequence = invite.header("CSeq").split(" ")[0]
    headers = [
        ("Via", invite.header("Via")),
        ("Max-Forwards", "70"),
        ("From", invite.header("From")),
        ("To", to),
        ("Call-ID", invite.header("Call-ID")),
        ("CSeq", f"{sequence} {method}"),
    ]
    return Message(f"{method} {uri} SIP/2.0", headers)
