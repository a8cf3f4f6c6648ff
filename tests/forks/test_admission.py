"""Whether a start is granted, and when."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from audiofork.asterisk.ami_protocol import ChannelHangup
from audiofork.config import SecurityConfig
from audiofork.errors import RequestRefused
from audiofork.forks import admission as admission_module
from audiofork.forks.admission import (
    FILES_LOOK_S,
    FILES_LOOK_STARTS,
    LONGEST_WAIT_S,
    SPARE_FILES,
    Admission,
)
from audiofork.forks.ending import HANGUP_GRACE_S
from audiofork.forks.requests import UNKNOWN, Origin, parse_request
from audiofork.link.messages import EndReason, ForkSpec, SinkOpened, SinkRetrying, Streaming
from audiofork.system import FILES_PER_FORK
from tests.control_plane import NAME, UNIQUEID, Clock, Rig

OTHER_UNIQUEID, OTHER_NAME = "2.2", "PJSIP/200-0000002b"
URL = "ws://example.org/"


@pytest.fixture
async def rig(clock: Clock) -> AsyncIterator[Rig]:
    rig = Rig(clock)
    yield rig
    for fork_id in list(rig.live):
        await rig.ended(fork_id, EndReason.STOPPED)
    await rig.clock.advance(60)
    assert len(rig.forks) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Starts:
    """Starts that are asked for, and what became of each."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.tasks: list[asyncio.Task[list[str]]] = []

    async def ask(self, count: int, origin: Origin = UNKNOWN, **fields: str) -> None:
        """Ask for so many starts at once, each with its number in the URL."""
        for _ in range(count):
            request = {"channel": NAME, "wsserver": f"{URL}{len(self.tasks)}", **fields}
            asked = self._rig.forks.ask(parse_request(request, origin))
            self.tasks.append(asyncio.create_task(asked))
        await self._rig.clock.settle()

    async def go_on(self, seconds: float) -> None:
        """Let time pass as it does for timers: in small steps."""
        for _ in range(round(seconds / 0.1) + 1):
            await self._rig.clock.advance(0.1)

    @property
    def begun(self) -> list[int]:
        """The numbers of those that have begun, in that order."""
        specs = [command for command in self._rig.sent if isinstance(command, ForkSpec)]
        numbers = [spec.url.removeprefix(URL) for spec in specs]
        return [int(number) for number in numbers if number.isdigit()]

    @property
    def refused(self) -> dict[int, str]:
        """Why, by the numbers of those that are refused."""
        return {
            number: str(task.exception())
            for number, task in enumerate(self.tasks)
            if task.done() and task.exception() is not None
        }


@pytest.fixture
async def starts(rig: Rig) -> AsyncIterator[Starts]:
    starts = Starts(rig)
    yield starts
    await rig.clock.advance(60)
    results = await asyncio.gather(*starts.tasks, return_exceptions=True)
    assert not [result for result in results if not isinstance(result, list | RequestRefused)]


# --- Forks of one channel ------------------------------------------------------------------------

PER_CHANNEL = "2 forks run already on the channel (max_forks_per_channel)"


async def test_start_beyond_max_forks_per_channel_is_refused_until_one_ends(rig: Rig) -> None:
    rig.allow(max_forks_per_channel=2)
    first = await rig.stream()
    await rig.stream()
    await rig.request(channel=NAME, wsserver=URL)
    assert rig.last_event[1]["Reason"] == PER_CHANNEL
    await rig.start(channel=OTHER_NAME)
    await rig.ended(first, EndReason.STOPPED)
    await rig.start()


async def test_channel_is_counted_by_what_it_is_not_by_how_it_is_called(rig: Rig) -> None:
    rig.allow(max_forks_per_channel=2)
    await rig.ask(channel=NAME, wsserver=URL)
    await rig.ask(uniqueid=UNIQUEID, wsserver=URL)
    for fields in ({"channel": NAME}, {"uniqueid": UNIQUEID}, {"channel": UNIQUEID}):
        with pytest.raises(RequestRefused) as caught:
            await rig.ask(**fields, wsserver=URL)
        assert str(caught.value) == PER_CHANNEL


async def test_starts_at_once_on_a_channel_leave_as_many_as_allowed(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_forks_per_channel=2)
    await starts.ask(5)
    await starts.ask(2, channel=OTHER_NAME)
    assert starts.begun == [0, 1, 5, 6]
    assert starts.refused == dict.fromkeys([2, 3, 4], PER_CHANNEL)


async def test_starts_that_wait_count_for_their_channel(rig: Rig, starts: Starts) -> None:
    rig.allow(max_forks_per_channel=2, max_starts=1)
    await starts.ask(3)
    assert starts.begun == [0]
    assert starts.refused == {2: PER_CHANNEL}


# --- The rate of starts --------------------------------------------------------------------------

TOO_FAST = "more than 2 starts a second (max_starts)"


async def test_starts_beyond_the_rate_wait_in_order_evenly_spaced(rig: Rig, starts: Starts) -> None:
    rig.allow(max_starts=2)
    await starts.ask(6)
    assert starts.begun == [0, 1]
    for count in (3, 4, 5, 6):
        await rig.clock.advance(0.49)
        assert starts.begun == list(range(count - 1))
        await rig.clock.advance(0.011)
        assert starts.begun == list(range(count))


async def test_start_that_would_wait_longer_than_may_be_is_refused_at_once(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=2, max_forks_per_channel=100)
    await starts.ask(14)
    assert starts.refused == {12: TOO_FAST, 13: TOO_FAST}
    asked = len(rig.ami.actions)
    await starts.ask(1)
    assert starts.refused[14] == TOO_FAST
    assert len(rig.ami.actions) == asked, "Asterisk need not be asked"
    await starts.go_on(LONGEST_WAIT_S)
    assert starts.begun == list(range(12))


async def test_place_in_the_queue_is_free_again_when_one_has_begun(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=2, max_forks_per_channel=100)
    await starts.ask(12)
    await rig.clock.advance(0.501)
    await starts.ask(2)
    assert starts.refused == {13: TOO_FAST}
    await starts.go_on(LONGEST_WAIT_S)
    assert starts.begun == list(range(13))


async def test_starts_within_the_rate_never_wait(rig: Rig, starts: Starts) -> None:
    rig.allow(max_starts=2, max_forks_per_channel=100)
    for count in range(1, 13):
        await starts.ask(1)
        assert starts.begun == list(range(count))
        await rig.clock.advance(0.501)


async def test_what_is_refused_for_another_reason_uses_nothing_of_the_rate(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=2)
    await starts.ask(20, wsserver="http://example.org/")
    assert len(starts.refused) == 20
    await starts.ask(2)
    assert starts.begun == [20, 21]


async def test_default_lets_100_begin_at_once_and_600_in_5_s(clock: Clock) -> None:
    admission = Admission(SecurityConfig())
    begun: list[float] = []

    async def start() -> None:
        await admission.wait_turn(UNKNOWN)
        begun.append(clock.now_s)

    now = clock.now_s
    tasks = [asyncio.create_task(start()) for _ in range(600)]
    await clock.settle()
    with pytest.raises(RequestRefused, match="^more than 100 starts a second"):
        await admission.wait_turn(UNKNOWN)
    for _ in range(500):
        await clock.advance(0.01)
    await clock.advance(0.01)
    await asyncio.gather(*tasks)
    assert begun[:100] == [now] * 100
    assert begun[100:] == pytest.approx([now + 0.01 * n for n in range(1, 501)], abs=0.011)


async def test_stop_is_not_queued_behind_starts(rig: Rig, starts: Starts) -> None:
    rig.allow(max_starts=2)
    running = await rig.stream()
    other = await rig.stream(channel=OTHER_NAME)
    await starts.ask(3)
    assert starts.begun == []
    assert await rig.ask(command="StopAudioFork", audioforkid=running) == [running]
    assert await rig.ask(command="StopAudioFork", channel=OTHER_NAME) == [other]
    assert [end.fork_id for end in rig.ends] == [running, other]


async def test_stop_of_a_channel_meets_also_the_start_that_waits(rig: Rig, starts: Starts) -> None:
    rig.allow(max_starts=1)
    await starts.ask(2)
    stopped = await rig.ask(command="StopAudioFork", uniqueid=UNIQUEID)
    assert len(stopped) == 2
    await rig.clock.advance(1.01)
    assert starts.begun == [0]
    assert starts.refused == {1: "ended before it began: stopped"}


async def test_start_that_waits_does_not_begin_on_a_channel_that_was_hung_up(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=1)
    await starts.ask(2)
    rig.forks.on_event(ChannelHangup(UNIQUEID))
    await rig.clock.advance(HANGUP_GRACE_S)
    await rig.clock.advance(1)
    assert starts.begun == [0]
    assert starts.refused == {1: "ended before it began: hangup"}


async def test_shutdown_refuses_those_that_wait_at_once(rig: Rig, starts: Starts) -> None:
    rig.allow(max_starts=1)
    await starts.ask(4)
    shutdown = asyncio.create_task(rig.stop())
    await rig.clock.settle()
    assert starts.refused == dict.fromkeys([1, 2, 3], "the daemon stops")
    asked = len(rig.ami.actions)
    await starts.ask(1)
    assert starts.refused[4] == "the daemon stops"
    assert len(rig.ami.actions) == asked
    await rig.obey()
    await shutdown


async def test_rate_that_is_set_anew_counts_at_once_for_those_that_wait_too(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=1)
    await starts.ask(2)
    rig.allow(max_starts=3)
    await starts.ask(3)
    assert starts.begun == [0, 1, 2]
    await rig.clock.advance(0.34)
    assert starts.begun == [0, 1, 2, 3]


async def test_starts_of_one_origin_do_not_hold_up_those_of_another(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=2, max_forks_per_channel=100)
    await starts.ask(12, origin=Origin("AMI", "flood"))
    await starts.ask(1, origin=Origin("AMI", "other"))
    await starts.ask(1, origin=Origin("dialplan", "1.1"))
    assert starts.begun == [0, 1]
    await starts.go_on(1.0)
    assert starts.begun == [0, 1, 2, 13]
    await starts.go_on(0.5)
    assert starts.begun == [0, 1, 2, 13, 12]


async def test_start_that_others_go_before_is_refused_in_the_end(rig: Rig, starts: Starts) -> None:
    rig.allow(max_starts=2, max_forks_per_channel=100)
    await starts.ask(12, origin=Origin("AMI", "flood"))
    await starts.ask(4, origin=Origin("dialplan", "1.1"))
    await starts.go_on(LONGEST_WAIT_S + 1)
    assert {8, 9, 10, 11} >= starts.refused.keys() != set()
    assert set(starts.refused.values()) == {TOO_FAST}
    assert {12, 13, 14, 15} <= set(starts.begun)


async def test_channels_that_are_not_there_use_nothing_of_the_rate(
    rig: Rig, starts: Starts
) -> None:
    rig.allow(max_starts=2)
    await starts.ask(20, channel="nobody")
    assert set(starts.refused.values()) == {"No such channel"}
    await starts.ask(2)
    assert starts.begun == [20, 21]


# --- Descriptors ---------------------------------------------------------------------------------


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many descriptors are free; in the test's hands."""
    left = [SPARE_FILES + 2 * FILES_PER_FORK]
    monkeypatch.setattr(admission_module, "openable", lambda most: min(most, left[0]))
    monkeypatch.setattr(admission_module, "file_limit", lambda: 77)
    return left


NO_FILES = "no file descriptors left for another fork; raise LimitNOFILE, now 77"


async def test_start_without_free_descriptors_is_refused_and_running_ones_stay(
    rig: Rig, free: list[int]
) -> None:
    running = await rig.stream()
    free[0] = SPARE_FILES + FILES_PER_FORK - 1
    await rig.clock.advance(FILES_LOOK_S)
    with pytest.raises(RequestRefused) as caught:
        await rig.ask(channel=NAME, wsserver=URL)
    assert str(caught.value) == NO_FILES
    assert (rig.live, rig.ends) == ([running], [])
    free[0] = SPARE_FILES + FILES_PER_FORK
    await rig.clock.advance(FILES_LOOK_S)
    await rig.start()


async def test_descriptors_are_kept_for_forks_that_have_yet_to_open_theirs(
    rig: Rig, free: list[int]
) -> None:
    await rig.start()
    second = await rig.start()
    with pytest.raises(RequestRefused, match="no file descriptors"):
        await rig.ask(channel=NAME, wsserver=URL)
    rig.forks.on_report(SinkOpened(second))
    rig.forks.on_report(Streaming(second))  # but all are still free: it had some already
    await rig.clock.advance(FILES_LOOK_S)
    await rig.start()


async def test_descriptors_are_kept_for_forks_whose_server_is_away(
    rig: Rig, free: list[int]
) -> None:
    free[0] = SPARE_FILES + 3 * FILES_PER_FORK
    for fork_id in [await rig.stream(), await rig.stream(), await rig.stream()]:
        rig.forks.on_report(SinkRetrying(fork_id, 1, "away"))
    free[0] = SPARE_FILES + 3 * (FILES_PER_FORK - 1) + FILES_PER_FORK - 1
    await rig.clock.advance(FILES_LOOK_S)
    with pytest.raises(RequestRefused, match="no file descriptors"):
        await rig.ask(channel=NAME, wsserver=URL)
    free[0] += 1
    await rig.clock.advance(FILES_LOOK_S)
    await rig.start()


async def test_refusal_without_a_known_limit_says_so(
    rig: Rig, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    free[0] = 0
    await rig.clock.advance(FILES_LOOK_S)
    monkeypatch.setattr(admission_module, "file_limit", lambda: None)
    with pytest.raises(RequestRefused, match="raise LimitNOFILE, now unknown$"):
        await rig.ask(channel=NAME, wsserver=URL)


async def test_files_that_others_have_taken_meanwhile_are_missed_at_once(
    rig: Rig, free: list[int]
) -> None:
    free[0] = 1000
    await rig.start()
    free[0] = SPARE_FILES + FILES_PER_FORK - 1
    with pytest.raises(RequestRefused, match="no file descriptors"):
        await rig.ask(channel=NAME, wsserver=URL)


async def test_files_are_looked_for_once_for_many_starts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def openable(most: int) -> int:
        if most > SPARE_FILES + FILES_PER_FORK:
            looks.append(most)
        return most

    monkeypatch.setattr(admission_module, "openable", openable)
    rig.allow(max_forks_per_channel=1000)
    for _ in range(FILES_LOOK_STARTS):
        await rig.start()
    assert len(looks) == 1
    await rig.start()
    assert len(looks) == 2
    await rig.clock.advance(FILES_LOOK_S)
    await rig.start()
    assert len(looks) == 3


# --- Private addresses ---------------------------------------------------------------------------


async def test_private_address_is_refused_where_none_may_be(rig: Rig) -> None:
    rig.allow(allow_private=False)
    with pytest.raises(RequestRefused, match="10.0.0.1 is a private address, which"):
        await rig.ask(channel=NAME, wsserver="ws://10.0.0.1/")
    rig.allow(allow_private=True)
    await rig.ask(channel=NAME, wsserver="ws://10.0.0.1/")


# --- Files of option T ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
@pytest.mark.parametrize("path", ["/dev/ptmx", "/no", "../shadow", "/srv/tls/../x", "/srv/tlsx"])
async def test_file_elsewhere_than_in_tls_dir_is_refused_alike_whether_it_is_there_or_not(
    rig: Rig, name: str, path: str
) -> None:
    rig.allow(tls_dir="/srv/tls")
    more = ":cert=a.pem" if name == "key" else ""
    with pytest.raises(RequestRefused) as refused:
        await rig.ask(channel=NAME, wsserver=URL, options=f"T({name}={path}{more})")
    text = f"Options: T({name}={path}): not a file below /srv/tls ([security] tls_dir)"
    assert str(refused.value) == text


async def test_file_in_tls_dir_is_granted_and_without_a_tls_dir_none(rig: Rig) -> None:
    rig.allow(tls_dir="/srv/tls")
    await rig.ask(channel=NAME, wsserver=URL, options="T(ca=a.pem:cert=/srv/tls/b.pem)")
    rig.allow(tls_dir="")
    with pytest.raises(RequestRefused, match="tls_dir lets requests name no files"):
        await rig.ask(channel=NAME, wsserver=URL, options="T(ca=a.pem)")


async def test_max_forks_above_the_file_limit_is_said_at_the_start_and_when_set(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiofork.system.file_limit", lambda: 2300)
    admission = Admission(SecurityConfig(max_forks=301))
    assert "max_forks = 301 needs 2303" in caplog.text
    caplog.clear()
    admission.configure(SecurityConfig(max_forks=300))
    assert caplog.messages == []
    admission.configure(SecurityConfig(max_forks=500))
    assert "set LimitNOFILE=2900" in caplog.text
