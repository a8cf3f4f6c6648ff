"""Measures one row of the table: a relay under load for a few seconds."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

import trustme

from bench import build, measure
from bench.program import Answer, Program, ProgramFailed
from bench.relay_only import second_leg

FRAMES_A_SECOND = 50
FRAME_MS = 20
ROOT = Path(__file__).parent.parent
# Time for legs and servers to be connected: 400 handshakes of TLS, on a busy machine.
CONNECT_TIMEOUT_S = 60.0
# Time for what a relay holds to reach the server when the legs are closed.
DRAIN_TIMEOUT_S = 15.0
# Samples from which user and system time can be told apart.
ENOUGH_TICKS = 25
# Beyond these a row does not count.
MAX_WAITED_PERCENT = 15
MAX_LATE_US = 5000


@dataclass(frozen=True)
class Row:
    """What is measured.

    Attributes:
        forks: Legs at once, 50 frames a second each.
        scheme: ws or wss.
        mixed: Legs bring pairs of 640 bytes, the server gets the mix; else 320 bytes, unchanged.
        joined: Each fork has a leg for in and one for out, the server gets the mix. The clock of
            out is 10 ms behind.
        workers: Processes of the relay, where it can have several.
        frame_ms: Audio in each message, where the relay can put several frames in one.
        form: What the server gets, where the relay knows more than raw: a name of
            `bench.relay_only.FORMS`.
        voice_ms: The server sends all audio back, so much in a message, and the relay plays it over
            the leg; 0: it does not.
        watched: Somebody looks at the levels of all forks.
    """

    forks: int
    scheme: str = "ws"
    mixed: bool = False
    workers: int = 1
    frame_ms: int = FRAME_MS
    form: str = "raw"
    voice_ms: int = 0
    watched: bool = False
    joined: bool = False

    @property
    def name(self) -> str:
        """The name of the row: 200-ws-mono, 400-wss-mixed-2w, 200-ws-mono-F100-twilio-voice20,
        400-ws-mono-watched, 400-ws-joined."""
        sides = "joined" if self.joined else "mixed" if self.mixed else "mono"
        name = f"{self.forks}-{self.scheme}-{sides}"
        name += f"-{self.workers}w" if self.workers != 1 else ""
        name += f"-F{self.frame_ms}" if self.frame_ms != FRAME_MS else ""
        name += f"-{self.form}" if self.form != "raw" else ""
        name += f"-voice{self.voice_ms}" if self.voice_ms else ""
        return name + ("-watched" if self.watched else "")

    @property
    def for_floor(self) -> Row:
        """The row that the floor runs to be compared with: one process, raw, 20 ms in a message,
        and nobody looks."""
        return Row(self.forks, self.scheme, self.mixed, voice_ms=self.voice_ms, joined=self.joined)

    @property
    def frame_bytes(self) -> int:
        """Bytes of audio in each message of a leg."""
        return 640 if self.mixed else 320

    @property
    def is_counted(self) -> bool:
        """Whether frames arrive in another codec, without their stamps, and so are only counted."""
        return self.form in ("ulaw", "twilio")


@dataclass(frozen=True)
class Span:
    """How many seconds a row runs, first without and then with measuring."""

    warm_s: float = 1.0
    measured_s: float = 5.0


@dataclass(frozen=True)
class Result:
    """The result of a row; delays of frames are from the generator's stamp to the sink.

    They hold the wait for the other frames of a message, where a message has several. Where frames
    are only counted there are no delays, and nothing is late or wrong.

    Attributes:
        messages: What the frames came in.
        cpu_us: CPU time of the relay for a frame.
        user_share: How much of it was spent in user code; None: too little time to tell.
        waited_percent: Share of the time in which a process of the relay could have run and
            others did.
        frames_per_wake: Frames that the relay found waiting each time it woke. Waking costs more
            than a frame, so `cpu_us` depends on it, and it on what else the machine does.
        lost: Frames that were due and did not come.
        wrong: Frames that came twice, out of order, broken or over another fork's connection.
        late: Frames that came more than 20 ms after they were sent.
        memory_kib: Memory for a fork.
        idle_kib: Memory before there was a fork.
        generator: What the generator tells of itself; `sink` of the sink, with its CPU share.
    """

    relay: str
    row: Row
    frames: int
    messages: int
    cpu_us: float
    user_share: float | None
    waited_percent: float
    frames_per_wake: float
    p50_us: float
    p99_us: float
    max_us: float
    lost: int
    wrong: int
    late: int
    memory_kib: float
    idle_kib: int
    generator: Answer = field(repr=False)
    sink_cpu_percent: float = 0.0

    @property
    def forks_per_core(self) -> int:
        """Forks at which a core would be full."""
        return int(1e6 / (FRAMES_A_SECOND * self.cpu_us)) if self.cpu_us else 0

    @property
    def disturbed(self) -> bool:
        """Whether other programs used so much of the machine that the cost means little.

        Frames that wait come in heaps, and a heap costs less than its frames one by one.
        """
        generator_late_us: float = self.generator["late_p99_us"]
        return self.waited_percent > MAX_WAITED_PERCENT or generator_late_us > MAX_LATE_US

    @property
    def intact(self) -> bool:
        """Whether every frame arrived once, in order and unchanged."""
        return not self.lost and not self.wrong


@dataclass(frozen=True)
class Setting:
    """The settings of a relay: where to send, whom to trust, which legs to expect."""

    row: Row
    url: str
    ca_file: Path
    uuids_file: Path

    @property
    def arguments(self) -> list[str]:
        """The arguments that every relay takes."""
        sides = ["--mix"] if self.row.mixed else ["--join"] if self.row.joined else []
        return ["--url", self.url, "--ca", str(self.ca_file), *sides]


StartRelay = Callable[[Setting], Program]


def floor_relay(tools: build.Tools) -> StartRelay:
    """Return how the C relay is started."""

    def start(setting: Setting) -> Program:
        voice = ["--voice"] if setting.row.voice_ms else []
        return Program([tools.floor, *setting.arguments, *voice])

    return start


def peer_relay(peer: build.Peer) -> StartRelay:
    """Return how another relay is started."""
    return lambda setting: Program([*peer.command, *setting.arguments], peer.environment)


def audiofork_relay(source: Path = ROOT, apart: bool = False) -> StartRelay:
    """Return how audiofork's relay is started, from a source tree: this one, or an older one.

    The tree's own bench/ runs it, if it has one: it knows the relay of its time.

    Args:
        apart: A single worker gets a process of its own, as each of several has.
    """

    def start(setting: Setting) -> Program:
        row = setting.row
        command: list[str | Path] = [sys.executable, "-m", "bench.relay_only", *setting.arguments]
        command += ["--uuids", setting.uuids_file, "--workers", str(row.workers)]
        command += ["--frame-ms", str(row.frame_ms), *(["--apart"] if apart else [])]
        # The relay of an older tree may know raw alone.
        command += ["--form", row.form] if row.form != "raw" else []
        command += ["--voice"] if row.voice_ms else []
        command += ["--watched"] if row.watched else []
        return Program(command, {"PYTHONPATH": f"{source}:{ROOT}"}, source)

    return start


# Holds a relay, by its process, to something while it is measured.
Hold = Callable[[int], AbstractContextManager[object]]


class Bench:
    """Runs rows; has the programs and the certificates.

    Args:
        tools: The compiled programs.
        folder: For files; has to stay while rows are run.
        span: How long each row is run.
        fault: What the generator does wrong, to see that it is found.
        hold: What holds the relay while it is measured, and not before: what the first frames
            cost would wait in front of all others.
    """

    def __init__(
        self,
        tools: build.Tools,
        folder: Path,
        span: Span = Span(),
        fault: str = "none",
        hold: Hold = nullcontext,
    ) -> None:
        self.tools = tools
        self.span = span
        self._fault = fault
        self._hold = hold
        self._ca_file = folder / "ca.pem"
        self._server_file = folder / "server.pem"
        self._folder = folder
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self._ca_file)
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(self._server_file)

    @contextmanager
    def with_span(self, span: Span, hold: Hold) -> Iterator[Bench]:
        """Run rows for another time, and held otherwise, until the end of the context."""
        before = self.span, self._hold
        self.span, self._hold = span, hold
        try:
            yield self
        finally:
            self.span, self._hold = before

    def run(self, name: str, start: StartRelay, row: Row) -> Result:
        """Measure one relay.

        Raises:
            ProgramFailed: One of the programs did.
        """
        with ExitStack() as stack:
            uuids = [str(uuid.UUID(int=uuid.uuid4().int & ~1)) for _ in range(row.forks)]
            tls = ("--tls", self._server_file) if row.scheme == "wss" else ()
            counted = ("--counted",) if row.is_counted else ()
            echo = (
                ("--echo", str(row.voice_ms * row.frame_bytes // FRAME_MS)) if row.voice_ms else ()
            )
            sink = stack.enter_context(Program((self.tools.sink, *tls, *counted, *echo)))
            url = f"{row.scheme}://localhost:{sink.hear()['port']}"
            setting = Setting(row, url, self._ca_file, self._file(stack, uuids))
            relay = stack.enter_context(start(setting))
            hello = relay.hear(CONNECT_TIMEOUT_S)
            for pid in measure.tree(relay.pid):  # a process may lead a session of its own
                measure.hand_priority_to(pid)
            idle_kib = hello.get("idle_kib") or measure.memory_kib(relay.pid)
            legs = self._file(stack, _legs(uuids, _ports(hello, row), row.joined))
            generator = stack.enter_context(self._generator(row, legs))
            generator.hear(CONNECT_TIMEOUT_S)
            if _wait_open(sink, row.forks, CONNECT_TIMEOUT_S)["open"] != row.forks:
                raise ProgramFailed(f"{name} did not connect: {relay.errors()}")
            return self._measure(name, row, sink, relay, generator, idle_kib)

    def _file(self, stack: ExitStack, lines: Iterable[str]) -> Path:
        """Write a file that is there as long as the programs."""
        file = stack.enter_context(NamedTemporaryFile("w", dir=self._folder))  # noqa: SIM115 (see stack)
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        return Path(file.name)

    def _generator(self, row: Row, legs: Path) -> Program:
        how = ("--seconds", str(self._sending_s), "--fault", self._fault)
        return Program(
            (self.tools.generator, "--legs", legs, "--frame", str(row.frame_bytes), *how)
        )

    @property
    def _sending_s(self) -> float:
        """A little more than is measured, so that the window ends before the sending does."""
        return self.span.warm_s + self.span.measured_s + 0.5

    def _measure(
        self, name: str, row: Row, sink: Program, relay: Program, generator: Program, idle_kib: int
    ) -> Result:
        generator.say()
        time.sleep(self.span.warm_s)
        with self._hold(relay.pid):
            cpu_before, before = measure.cpu(relay.pid), sink.ask()
            began = time.monotonic()
            time.sleep(self.span.measured_s)
            cpu, after = measure.cpu(relay.pid) - cpu_before, sink.ask()
            span_s = time.monotonic() - began
        memory_kib = (measure.memory_kib(relay.pid) - idle_kib) / row.forks
        sent = generator.hear(60)
        final = _wait_open(sink, 0, DRAIN_TIMEOUT_S)
        frames = after["frames"] - before["frames"]
        due = row.forks * int(self._sending_s * FRAMES_A_SECOND)
        wrongs = ("duplicates", "out_of_order", "corrupt", "wrong_leg")
        return Result(
            relay=name,
            row=row,
            frames=frames,
            messages=after["messages"] - before["messages"],
            cpu_us=cpu.total_s * 1e6 / max(frames, 1),
            user_share=cpu.user_ticks / cpu.ticks if cpu.ticks >= ENOUGH_TICKS else None,
            waited_percent=100 * cpu.waited_s / span_s / row.workers,
            frames_per_wake=frames / max(cpu.wakes, 1),
            p50_us=after["p50_us"],
            p99_us=after["p99_us"],
            max_us=after["max_us"],
            lost=due - (final["frames"] - final["duplicates"]),
            wrong=sum(final[item] for item in wrongs),
            late=after["late"],
            memory_kib=memory_kib,
            idle_kib=idle_kib,
            generator=sent,
            sink_cpu_percent=100 * (after["cpu_s"] - before["cpu_s"]) / span_s,
        )


def _wait_open(sink: Program, count: int, timeout_s: float) -> Answer:
    """Wait until so many connections are open at the sink; return what it says last."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = sink.ask()
        if answer["open"] == count or time.monotonic() > deadline:
            return answer
        time.sleep(0.05)


def _ports(hello: Answer, row: Row) -> list[str]:
    """Return the port for each leg; relays that have one tell it once."""
    return [str(port) for port in hello.get("ports") or row.forks * [hello["port"]]]


def _legs(uuids: list[str], ports: list[str], joined: bool) -> Iterator[str]:
    """Yield what the generator has to know of each leg, in the order in which they send."""
    legs = list(zip(uuids, ports, strict=True))
    yield from map(" ".join, legs)
    if joined:
        yield from (f"{second_leg(one)} {port} silent" for one, port in legs)
