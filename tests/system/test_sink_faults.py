"""What the faults of a WebSocket server cost, in numbered blocks of 20 ms from caller to server.

Each docstring says what is lost at most. Where that is "nothing", each block that the caller
spoke has to arrive once, in order and bit-exact.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.blocks import Report, decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.faulty_server import BROKEN_OFF, GARBAGE, FaultyServer, Manner, ServerProcess
from testbed.proxy import Proxy
from testbed.sip import SipUser
from tests.system.conftest import LOST_BEFORE, Target, counts_blocks, needs_whole_in, no_forks
from tests.system.scene import WARM_UP, Fork, Scene

Faulty = Scene[FaultyServer]

# Nearly each of them counts the blocks of a fork by ChanSpy.
pytestmark = [pytest.mark.asterisk, needs_whole_in(), counts_blocks]

BLOCKS = make_blocks(400, seed=41)
HEARD = [decode(block) for block in BLOCKS]
# Try for ever, and soon: what is looked at is the audio, not the patience.
SOON = "D(in)R(1)r(0)"
# Blocks that may be on their way to a reader at any moment; 200 ms, for a busy machine.
UNDER_WAY = 10


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def settings(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return {"websocket": f"ca_list_file = {path}\n"}


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    async with FaultyServer() as one:
        yield one


@pytest.fixture
def scene(
    daemon: Daemon,
    asterisk: Asterisk,
    settings: dict[str, str],
    ami: AmiClient,
    caller: SipUser,
    server: FaultyServer,
) -> Faulty:
    """The daemon is there already."""
    return Scene(asterisk, ami, caller, server, settings)


def speak(fork: Fork, count: int, first: int = 0) -> asyncio.Future[int]:
    """Begin to speak numbered blocks, and some audio more."""
    return fork.target.call.play(BLOCKS[first : first + count] + WARM_UP)


async def warm_up(target: Target, streams: asyncio.Task[Headers]) -> None:
    """Speak until a fork streams."""
    talking = target.call.play(WARM_UP, loop=True)
    await streams
    talking.cancel()


async def forked_call(
    scene: Faulty, options: str = SOON, server: FaultyServer | ServerProcess | None = None
) -> Fork:
    """Place a call to Echo() and fork it to the scene's server, or another; it streams then."""
    return await fork_to(scene, (server or scene.server).url("/"), options)


async def fork_to(scene: Faulty, url: str, options: str = SOON) -> Fork:
    """As `forked_call`, by a URL."""
    target = await scene.call()
    fork = scene.fork(target, options=options, url=url)
    await warm_up(target, asyncio.create_task(fork.started()))
    return fork


async def wait_spoken(server: FaultyServer, count: int) -> None:
    """Wait until the server has got so many messages more, on its newest connection."""
    recording = server.recordings[-1]
    wanted = len(recording.messages) + count
    await server.wait(lambda r: r is recording and len(r.messages) >= wanted)


def arrived(audio: bytes, count: int, first: int = 0) -> Report:
    """Compare what arrived with what was spoken."""
    return report(find_blocks(audio, HEARD[first : first + count]), count)


def assert_whole(messages: Sequence[bytes | str], stopped: Headers, count: int) -> None:
    """Fail unless each frame that came from Asterisk arrived, with the blocks once and in order."""
    assert len(messages) == int(stopped["FramesIn"])
    assert stopped["FramesDropped"] == "0"
    became = arrived(b"".join(m for m in messages if isinstance(m, bytes)), count)
    assert not became.duplicated
    assert not became.out_of_order
    assert became.missing <= LOST_BEFORE, "lost before the daemon: all it had has arrived"


async def finish(forked: Fork, server: FaultyServer) -> Headers:
    """Hang up, and wait until the server has it all."""
    stopped = await forked.hang_up()
    await server.wait(lambda r: r.close_code == 1000 and bool(r.closed))
    return stopped


# --- The server goes, and comes back ---


@pytest.mark.parametrize("code", [1001, 1012])
async def test_server_that_stops_in_order_and_comes_back_loses_nothing(
    scene: Faulty, server: FaultyServer, code: int
) -> None:
    """Lost at most: nothing. A server that says goodbye reads what came before the answer."""
    forked = await forked_call(scene)
    spoken = speak(forked, 150)
    await wait_spoken(server, 40)
    await server.stop(code)
    await asyncio.sleep(1)
    await server.start()
    resumed = await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    assert_whole(server.messages_of("/"), stopped, 150)
    assert len(server.recordings) == 2
    assert resumed["FramesDropped"] == "0"
    assert stopped["Reconnects"] == "1"


async def test_connection_that_breaks_with_all_it_acknowledged_read_loses_nothing(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing. What the server's TCP has not acknowledged is sent again."""
    forked = await forked_call(scene)
    spoken = speak(forked, 150)
    await wait_spoken(server, 40)
    await server.link.cut()
    await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    assert_whole(server.messages_of("/"), stopped, 150)


async def test_connection_cut_by_a_reset_loses_what_was_under_way(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: the blocks that the proxy's TCP had acknowledged and nobody had read.

    Twice at most: those that were read, and their acknowledgement was still delayed (TCP does
    that, up to 40 ms) when the reset forestalled it. That is 2 of each; 10 on a busy machine.
    """
    async with Proxy(("127.0.0.1", server.port)) as proxy:
        forked = await fork_to(scene, proxy.ws_url())
        spoken = speak(forked, 150)
        await wait_spoken(server, 40)
        proxy.cut()
        await forked.event("AudioForkResumed")
        await spoken
        stopped = await finish(forked, server)
    became = arrived(server.audio_of("/"), 150)
    print(f"lost {became.missing}, twice {became.duplicated}")
    assert became.missing <= UNDER_WAY
    assert became.duplicated <= UNDER_WAY
    assert not became.out_of_order
    assert stopped["FramesDropped"] == "0"


async def test_server_that_vanishes_without_a_word_loses_nothing(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing, though it takes 5 s to see that it has gone: no packet is answered."""
    forked = await forked_call(scene)
    spoken = speak(forked, 300)
    await wait_spoken(server, 25)
    vanished, gone_at = server.link, asyncio.get_running_loop().time()
    vanished.vanish()
    await forked.event("AudioForkReconnecting")
    assert 3 <= asyncio.get_running_loop().time() - gone_at <= 9
    await forked.event("AudioForkResumed")
    vanished.reset()
    await spoken
    stopped = await finish(forked, server)
    assert_whole(server.messages_of("/"), stopped, 300)


async def test_host_that_moves_without_a_word_loses_what_was_acknowledged(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: what the proxy's TCP takes while it stalls, here for 1 s.

    No client can know that what a machine acknowledged went no further.
    """
    async with FaultyServer() as fresh, Proxy(("127.0.0.1", server.port)) as proxy:
        forked = await fork_to(scene, proxy.ws_url())
        spoken = speak(forked, 150)
        await wait_spoken(server, 25)
        proxy.stall()
        stalled_at = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        proxy.retarget(fresh.port)
        proxy.cut()
        stalled_s = asyncio.get_running_loop().time() - stalled_at
        proxy.resume()
        await forked.event("AudioForkResumed")
        await spoken
        stopped = await finish(forked, fresh)
        became = arrived(server.audio_of("/") + fresh.audio_of("/"), 150)
    assert became.missing <= 50 * stalled_s + UNDER_WAY
    assert became.duplicated <= UNDER_WAY
    assert not became.out_of_order
    assert stopped["FramesDropped"] == "0"


async def test_caller_who_hangs_up_while_the_server_is_away_is_heard_to_the_end(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing. The fork goes on for up to 30 s to bring the tail."""
    forked = await forked_call(scene)
    spoken = speak(forked, 75)
    await wait_spoken(server, 25)
    await server.stop()
    await spoken
    await forked.target.call.hangup()
    await asyncio.sleep(1)
    await server.start()
    stopped = await finish(forked, server)
    assert_whole(server.messages_of("/"), stopped, 75)
    assert stopped["Reason"] == "hangup"


async def test_server_that_is_away_at_the_start_gets_all_that_was_spoken(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing from the leg's first frame on."""
    server.refuse()
    target = await scene.call()
    fork = scene.fork(target, options=SOON, url=server.url("/"))
    retried = fork.event("AudioForkReconnecting")
    await warm_up(target, asyncio.create_task(retried))
    # A leg connects 120 ms after its request, an attempt fails at once: give it that time.
    await target.call.play(WARM_UP)
    spoken = speak(fork, 75)
    await asyncio.sleep(1)
    await server.start()
    await fork.started()
    await spoken
    stopped = await finish(fork, server)
    assert_whole(server.messages_of("/"), stopped, 75)


# --- The server is there, and takes nothing ---


async def test_server_process_that_is_frozen_for_3_s_loses_nothing(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing. Its kernel takes a part, the backlog keeps the rest."""
    async with ServerProcess(receive_buffer=4096) as process:
        forked = await forked_call(scene, server=process)
        spoken = speak(forked, 200)
        await asyncio.sleep(0.5)
        process.freeze()
        await asyncio.sleep(3)
        process.thaw()
        await spoken
        stopped = await forked.hang_up()
        await process.wait(lambda got: got[0].close_code == 1000)
        (connection,) = process.connections()
    assert_whole(connection.messages, stopped, 200)
    assert stopped["Reconnects"] == "0"


async def test_frame_that_went_half_is_sent_again_whole(scene: Faulty) -> None:
    """Lost at most: nothing. The server stalls until a frame is stuck half way, and breaks.

    What its kernel had taken it reads before; what did not fit is sent to the next connection.
    """
    async with FaultyServer(receive_buffer=4096) as server:
        forked = await forked_call(scene, server=server)
        spoken = speak(forked, 150)
        await wait_spoken(server, 25)
        stalled = server.link
        stalled.stall()
        await asyncio.sleep(1.5)
        stalled.vanish()  # so that the kernel takes no more when it has room
        stalled.read_on()
        await stalled.cut()
        print(f"bytes of a frame that went in part: {stalled.unfinished_bytes}")
        await forked.event("AudioForkResumed")
        await spoken
        stopped = await finish(forked, server)
        assert_whole(server.messages_of("/"), stopped, 150)


# --- The server talks nonsense ---


@pytest.mark.parametrize(
    ("wire", "code"),
    [(GARBAGE, 1002), (b"\x82\x7f" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20), 1009)],
    ids=["garbage", "1-MiB-message"],
)
async def test_server_that_sends_what_it_may_not_is_closed_and_loses_nothing(
    scene: Faulty,
    server: FaultyServer,
    wire: bytes,
    code: int,
) -> None:
    """Lost at most: nothing, if the server reads up to our Close frame."""
    forked = await forked_call(scene)
    spoken = speak(forked, 150)
    await wait_spoken(server, 40)
    server.link.send_raw(wire)
    await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    assert server.recordings[0].close_code == code
    assert_whole(server.messages_of("/"), stopped, 150)


async def test_server_that_breaks_in_the_middle_of_a_message_loses_what_was_under_way(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: the blocks that came to the server's TCP when it read no more.

    Twice at most: those whose acknowledgement the break forestalled. As with a reset.
    """
    forked = await forked_call(scene)
    spoken = speak(forked, 150)
    await wait_spoken(server, 40)
    server.link.break_in_message()
    await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    became = arrived(server.audio_of("/"), 150)
    print(f"lost {became.missing}, twice {became.duplicated}")
    assert became.missing <= UNDER_WAY
    assert became.duplicated <= UNDER_WAY
    assert not became.out_of_order
    assert stopped["FramesDropped"] == "0"


@pytest.mark.parametrize(
    "manner",
    [
        Manner(status=503),
        Manner(status=408),
        Manner(raw_answer=GARBAGE + b"\r\n\r\n"),
        Manner(accepts=False),
        Manner(answers=False),
    ],
    ids=["503", "408", "garbage", "closes", "no-answer"],
)
async def test_server_that_comes_back_in_a_bad_way_first_loses_nothing(
    scene: Faulty, server: FaultyServer, manner: Manner
) -> None:
    """Lost at most: nothing; the backlog holds 10 s."""
    forked = await forked_call(scene)
    spoken = speak(forked, 150)
    await wait_spoken(server, 25)
    server.manners = [manner, manner]
    await server.stop()
    await server.start()
    await forked.event("AudioForkReconnecting", Attempt="3")
    await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    assert_whole(server.messages_of("/"), stopped, 150)
    assert len(server.connects) == 4


async def test_retry_after_of_a_429_is_obeyed_and_loses_nothing(
    scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing. The wait is what the server asked for, if R allows it."""
    forked = await forked_call(scene, "D(in)R(3)r(0)")
    spoken = speak(forked, 150)
    await wait_spoken(server, 25)
    server.manners = [Manner(status=429, headers={"Retry-After": "2"})]
    await server.stop()
    await server.start()
    await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    assert server.connects[2] - server.connects[1] >= 1.9
    assert_whole(server.messages_of("/"), stopped, 150)


@pytest.mark.parametrize("code", [1012, BROKEN_OFF])
async def test_server_that_accepts_and_closes_for_a_while_gets_the_backlog_when_it_behaves(
    scene: Faulty, server: FaultyServer, code: int
) -> None:
    """Lost at most: nothing: what waits is given only to a server that answers a ping."""
    forked = await forked_call(scene)
    spoken = speak(forked, 250)
    await wait_spoken(server, 25)
    server.manner = Manner(close_code=code)
    await server.link.cut()
    await server.wait_connects(4, timeout_s=20)
    server.manner = Manner()
    await forked.event("AudioForkResumed")
    await spoken
    stopped = await finish(forked, server)
    taken = [len(recording.messages) for recording in server.recordings]
    assert sum(taken[1:-1]) == 0, "nothing goes to a connection that the server closes at once"
    assert_whole(server.messages_of("/"), stopped, 250)


@pytest.mark.parametrize(
    ("code", "most"),
    [(1012, 6), (BROKEN_OFF, 12)],  # a reset may come before the handshake is seen: less is known
)
async def test_server_that_accepts_and_closes_is_not_tried_too_often(
    daemon: Daemon, scene: Faulty, server: FaultyServer, code: int, most: int
) -> None:
    """In 5 s, with the default options; nothing is lost before the fork gives up."""
    server.manner = Manner(close_code=code)
    target = await scene.call()
    target.call.talk()
    scene.fork(target, options="D(in)")
    await server.wait_connects(1)
    await asyncio.sleep(5)
    tried = sum(at <= server.connects[0] + 5 for at in server.connects)
    assert 3 <= tried <= most
    server.manner = Manner()
    await target.call.hangup()
    await no_forks(daemon)  # while there is a server: without one they look for it for long


async def test_server_that_answers_no_ping_is_left_and_loses_nothing(
    daemon: Daemon, scene: Faulty, server: FaultyServer
) -> None:
    """Lost at most: nothing: it has read what it acknowledged."""
    good = daemon.config.read_text()
    reloads = daemon.log().count("INFO    reloaded")
    daemon.config.write_text(good.replace("[websocket]\n", "[websocket]\nping_interval = 1\n"))
    await daemon.reload("INFO    reloaded", times=reloads + 1)
    try:
        server.manners = [Manner(pongs=False)]
        forked = await forked_call(scene)
        spoken = speak(forked, 200)
        await forked.event("AudioForkResumed")
        await spoken
        stopped = await finish(forked, server)
    finally:
        daemon.config.write_text(good)
        await daemon.reload("INFO    reloaded", times=reloads + 2)
    assert_whole(server.messages_of("/"), stopped, 200)


# --- The server says no ---


@asynccontextmanager
async def other_fork(scene: Faulty, *, blocks: int = 100) -> AsyncIterator[Target]:
    """A call with a fork to a good server, all of whose blocks arrive whatever is done meanwhile.

    Yields its channel, for forks that fare worse.
    """
    async with FaultyServer() as good:
        forked = await forked_call(scene, server=good)
        spoken = speak(forked, blocks)
        yield forked.target
        await spoken
        stopped = await finish(forked, good)
        assert_whole(good.messages_of("/"), stopped, blocks)
        assert len(good.recordings) == 1


@pytest.mark.parametrize("status", [301, 401, 404])
async def test_server_that_refuses_for_good_is_asked_once(
    scene: Faulty, server: FaultyServer, status: int
) -> None:
    """A redirect is one: it could lead past allow_urls. The other fork loses nothing."""
    headers = {"Location": "ws://127.0.0.1:1/"} if status == 301 else {}
    server.manner = Manner(status=status, headers=headers)
    async with other_fork(scene) as target:
        fork = scene.fork(target, options=SOON, url=server.url("/"))
        failed = await fork.event("AudioForkFailed")
        await asyncio.sleep(1.2)  # the longest wait before another attempt is 1 s
    assert failed["Reason"] == "sink-refused"
    assert f": the server answered HTTP {status}" in failed["Detail"]
    assert len(server.connects) == 1


@pytest.mark.parametrize("code", [1000, 1008, 4001])
async def test_server_that_is_done_is_left_alone(
    scene: Faulty, server: FaultyServer, code: int
) -> None:
    """The other fork of the channel loses nothing."""
    async with other_fork(scene) as target:
        fork = scene.fork(target, options=SOON, url=server.url("/"))
        await server.wait_messages("/", 5)
        server.link.close(code)
        stopped = await fork.event("AudioForkStopped")
        await asyncio.sleep(1.2)
    assert stopped["Reason"] == "sink-refused"
    assert stopped["Detail"].startswith(f"the server closed with {code}")
    assert len(server.connects) == 1


# --- TLS ---


def self_signed() -> tuple[bytes, bytes]:
    """Make a certificate for localhost that nobody but itself has signed; return it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, *form)
    return certificate.public_bytes(serialization.Encoding.PEM), private


def server_tls(authority: trustme.CA, kind: str, folder: Path) -> ssl.SSLContext:
    """Return the context of a server whose certificate has one fault."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if kind == "self-signed":
        certificate, key = self_signed()
        (folder / "both.pem").write_bytes(certificate + key)
        context.load_cert_chain(folder / "both.pem")
        return context
    signer = trustme.CA() if kind == "wrong-authority" else authority
    name = "example.org" if kind == "wrong-host" else "localhost"
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    expires = past if kind == "expired" else None
    signer.issue_cert(name, not_after=expires).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("expired", "has expired"),
        ("wrong-host", "is for other names than "),
        ("self-signed", "is signed by itself"),
        ("wrong-authority", "comes from an authority that is not trusted here"),
    ],
)
async def test_bad_certificate_is_final_and_names_the_check_that_failed(
    scene: Faulty,
    authority: trustme.CA,
    tmp_path: Path,
    kind: str,
    check: str,
) -> None:
    """No frame is sent, there is no second attempt, and the other fork loses nothing."""
    async with (
        FaultyServer(server_tls(authority, kind, tmp_path)) as server,
        other_fork(scene) as target,
    ):
        fork = scene.fork(target, options=SOON, url=server.url("/"))
        failed = await fork.event("AudioForkFailed")
        assert failed["Reason"] == "sink-refused"
        assert f": certificate not accepted: its certificate {check}" in failed["Detail"]
        await asyncio.sleep(1.2)
        assert server.recordings == []
        assert len(server.connects) <= 1


async def test_break_of_a_tls_connection_loses_nothing(
    scene: Faulty, authority: trustme.CA, tmp_path: Path
) -> None:
    """Lost at most: nothing, as without TLS; the certificate is checked at each connect."""
    async with FaultyServer(server_tls(authority, "good", tmp_path)) as server:
        forked = await forked_call(scene, server=server)
        spoken = speak(forked, 150)
        await wait_spoken(server, 40)
        await server.link.cut()
        await forked.event("AudioForkResumed")
        await spoken
        stopped = await finish(forked, server)
        assert_whole(server.messages_of("/"), stopped, 150)
