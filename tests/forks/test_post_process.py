"""The post-process command: no value is ever executed, and nothing it starts outlives its time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from audiofork.config import PostProcessConfig
from audiofork.errors import RequestRefused
from audiofork.forks.post_process import template
from audiofork.forks.post_process.commands import Commands
from audiofork.forks.post_process.runner import (
    MAX_OUTPUT_LINES,
    NOT_STARTED,
    READ_BYTES,
    READ_INTERVAL_S,
    run,
)
from audiofork.forks.post_process.template import (
    MAX_COMMAND_BYTES,
    prepare,
)
from audiofork.log import ForkLog

LOG = ForkLog(logging.getLogger("test.post-process"), "3f2a91c0", "PJSIP/100-0000002a")

HOSTILE = [
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "x; touch executed #",
    "&& touch executed",
    "| touch executed",
    "\ntouch executed\n",
    "'; touch executed; '",
    '"; touch executed; "',
    "'\"; touch executed; \"'",
    "\\'; touch executed; \\'",
    "${IFS}touch${IFS}executed",
    "$((a[$(touch executed)]))",
    "a[$(touch executed)]",
    "${X:-$(touch executed)}",
    "^{X}",
    "${AUDIOFORK_VAR_1}",
    "*",
    "~",
    "{a,b}",
    "-n",
    "--help",
    "a  b\t c",
    "\\",
    "\\\\n",
    "",
    "!!",
    "$'\\x41'",
    "a\nb\r\nc\n",
    "x\udc81\udcff",  # bytes that are no UTF-8
    "ÁÈ\u0081\u0088",
]

# The place of a value in a command, and what stands there if the value is `<>`.
CONTEXTS = {
    "unquoted": ("^{X}", "<>"),
    "unquoted-inside-a-word": ("a^{X}b", "a<>b"),
    "double-quotes": ('"a ^{X} b"', "a <> b"),
    "single-quotes": ("'a \" ^{X} b'", 'a " <> b'),
    "all-three": ("'^{X}'^{X}\"^{X}\"", "<><><>"),
    "after-backslashes": ("\\\\^{X}", "\\<>"),
    "after-escaped-quotes": ("\\'^{X}\"\\\"'^{X}'\"", "'<>\"'<>'"),
    "single-quote-in-double-quotes": ('"it\'s ^{X}"', "it's <>"),
    "double-quote-in-single-quotes": ("'say \"^{X}'", 'say "<>'),
}


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What may stand behind /bin/sh: dash, or bash, which evaluates more."""
    path = shutil.which(str(request.param))
    assert path is not None
    monkeypatch.setattr(template, "SHELL", path)
    return path


@pytest.fixture
def show(tmp_path: Path) -> Path:
    """A program that writes its arguments to `arguments`, each ended by a zero byte."""
    program = tmp_path / "show"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\nprintf '%s\\0' \"$@\" >arguments\n")
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No child, not even a zombie, and no descriptor stays."""
    uvloop.run(asyncio.sleep(0))  # keeps two descriptors from its first run on
    before = sorted(os.listdir("/proc/self/fd")), children()
    yield
    assert (sorted(os.listdir("/proc/self/fd")), children()) == before


def children() -> set[int]:
    """Return the processes whose parent is this one; zombies too, and those of other tests."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            found.update(map(int, (thread / "children").read_text().split()))
    return found


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# --- Values stay values --------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE)
async def test_run_hostile_value_arrives_exact_at_each_place_and_is_not_executed(
    shell: str, show: Path, value: str
) -> None:
    places = " ".join(place for place, _ in CONTEXTS.values())
    command = prepare(f"cd {show.parent}; {show} before {places} after")
    assert command.names == ("X",)
    assert await run(command, {"X": value}, LOG) == 0
    arguments = (show.parent / "arguments").read_bytes()
    arrived = [expected.replace("<>", value) for _, expected in CONTEXTS.values()]
    wanted = ["before", *arrived, "after"]
    assert arguments == b"".join(encoded(argument) + b"\0" for argument in wanted)
    assert sorted(os.listdir(show.parent)) == ["arguments", "show"]


@pytest.mark.parametrize("value", HOSTILE)
async def test_run_hostile_value_in_substitution_is_not_executed(
    shell: str, show: Path, value: str
) -> None:
    """In $( ) too, alone and in double quotes; a shell cuts line ends off its result."""
    places = " ".join(place for place, _ in CONTEXTS.values())
    inner = f"$(cd {show.parent}; {show} {places})"
    command = prepare(f'cd {show.parent}; echo {inner} "{inner}"')
    assert await run(command, {"X": value}, LOG) == 0
    arguments = (show.parent / "arguments").read_bytes()
    arrived = [expected.replace("<>", value) for _, expected in CONTEXTS.values()]
    assert arguments == b"".join(encoded(argument) + b"\0" for argument in arrived)
    assert sorted(os.listdir(show.parent)) == ["arguments", "show"]


@pytest.mark.slow
@given(
    st.text(st.characters(exclude_characters="\0", codec="utf-8")), st.sampled_from(list(CONTEXTS))
)
@example("$(touch executed)", "single-quotes")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_run_any_value_arrives_exact(show: Path, value: str, context: str) -> None:
    place, expected = CONTEXTS[context]
    command = prepare(f"{show} {place}")
    assert asyncio.run(run(command, {"X": value}, LOG)) == 0
    arguments = (show.parent / "arguments").read_bytes()
    assert arguments == expected.replace("<>", value).encode() + b"\0"


_PIECES = ["^{X}", "'", '"', "\\", "$(", ")", "(", ";", "|", " ", "a", "echo ", "#", "$", "case "]


@pytest.mark.slow
@given(st.lists(st.sampled_from(_PIECES), max_size=12), st.sampled_from(HOSTILE))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_run_any_command_with_hostile_value_executes_nothing_of_it(
    tmp_path: Path, pieces: list[str], value: str
) -> None:
    """Whatever the scanner makes of a command: it is refused, or the value stays a value."""
    try:
        command = prepare(f"cd {tmp_path}; echo " + "".join(pieces))
    except RequestRefused:
        return
    asyncio.run(run(command, {"X": value}, LOG))
    assert "executed" not in os.listdir(tmp_path)


async def test_run_values_by_function_and_missing_value(show: Path) -> None:
    command = prepare(f"{show} ^{{CALLERID(num)}} ^{{UNIQUEID}} ^{{CALLERID(num)}} ^{{GONE}}")
    assert command.names == ("CALLERID(num)", "UNIQUEID", "GONE")
    values = {"CALLERID(num)": "+49 30", "UNIQUEID": "1764.1", "OTHER": "not asked for"}
    assert await run(command, values, LOG) == 0
    arguments = (show.parent / "arguments").read_bytes()
    assert arguments == b"+49 30\x001764.1\0+49 30\0\0"


async def test_run_zero_byte_left_out(show: Path) -> None:
    assert await run(prepare(f"{show} ^{{X}}"), {"X": "a\0b"}, LOG) == 0
    assert (show.parent / "arguments").read_bytes() == b"ab\0"


# --- What is refused -----------------------------------------------------------------------------


def test_prepare_without_reference_is_the_command_itself() -> None:
    command = "x=`date`; cat <<E >/tmp/$((1+1)) # it's $'all' eval sh -c"
    assert prepare(command).arguments({}) == ["/bin/sh", "-c", command]
    assert prepare(command).names == ()


def test_prepare_reference_in_comment_is_not_read() -> None:
    assert prepare("echo ^{A} # don't ^{B}").names == ("A",)
    assert prepare("echo ^{A}#^{B}").names == ("A", "B")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("  ", "empty", id="blanks"),
        pytest.param("echo a\necho b", "control characters", id="line-end"),
        pytest.param("echo \0", "control characters", id="zero"),
        pytest.param(5000 * "x", f"longer than {MAX_COMMAND_BYTES} bytes", id="long"),
        pytest.param("echo ^{}", "expected ^{NAME}, got ^{}", id="no-name"),
        pytest.param("echo ^{X", "expected ^{NAME}, got ^{X", id="not-closed"),
        pytest.param("echo ^{ X }", "expected ^{NAME}", id="blank-in-name"),
        pytest.param("echo ^{X;Y}", "expected ^{NAME}", id="semicolon-in-name"),
        pytest.param("echo ^{A^{B}}", "expected ^{NAME}", id="nested"),
        pytest.param("echo ^{${A}}", "expected ^{NAME}", id="asterisk-expression"),
        pytest.param("echo ^{F(a}", "expected ^{NAME}", id="function-not-closed"),
        pytest.param("echo ^{" + 101 * "x" + "}", "expected ^{NAME}", id="long-name"),
        pytest.param("echo '^{X}", "single quotes are not closed", id="single-quotes-open"),
        pytest.param('echo "^{X}', "double quotes are not closed", id="double-quotes-open"),
        pytest.param("echo $(echo ^{X}", "$( is not closed", id="substitution-open"),
        pytest.param("echo `echo ^{X}`", "backquotes", id="backquotes"),
        pytest.param('echo "`echo ^{X}`"', "backquotes", id="backquotes-in-quotes"),
        pytest.param("echo $((^{X}+1))", "arithmetic", id="arithmetic"),
        pytest.param('echo "$((^{X}))"', "arithmetic", id="arithmetic-in-quotes"),
        pytest.param("echo $[^{X}]", "arithmetic", id="old-arithmetic"),
        pytest.param("((a=^{X}))", "((", id="arithmetic-command"),
        pytest.param("echo ${Y:-^{X}}", "more than ${NAME}", id="expansion"),
        pytest.param("echo $^{X}", "a $ before it", id="dollar-before"),
        pytest.param('echo "$^{X}"', "a $ before it", id="dollar-before-in-quotes"),
        pytest.param("echo $'a' ^{X}", "$'", id="ansi-quotes"),
        pytest.param("echo \\^{X}", "a backslash before ^{", id="backslash-before"),
        pytest.param('echo "\\^{X}"', "a backslash before ^{", id="backslash-before-in-quotes"),
        pytest.param("cat << ^{X}", "<<", id="here-document"),
        pytest.param("cat <<< ^{X}", "<<", id="here-string"),
        pytest.param("a[^{X}]=1", "cannot name the command", id="subscript"),
        pytest.param("^{X}", "cannot name the command", id="command"),
        pytest.param("'^{X}' a", "cannot name the command", id="command-in-quotes"),
        pytest.param("/usr/bin/^{X}", "cannot name the command", id="command-in-part"),
        pytest.param("A=1 ^{X}", "cannot name the command", id="command-after-assignment"),
        pytest.param("true && ^{X}", "cannot name the command", id="command-after-and"),
        pytest.param("true | ^{X}", "cannot name the command", id="command-after-pipe"),
        pytest.param("2>/tmp/x ^{X}", "cannot name the command", id="command-after-redirect"),
        pytest.param("if ^{X}; then :; fi", "cannot name the command", id="command-after-if"),
        pytest.param("echo $(^{X})", "cannot name the command", id="command-in-substitution"),
        pytest.param("env -i ^{X}", "cannot name the command", id="command-of-env"),
        pytest.param("exec ^{X}", "cannot name the command", id="command-of-exec"),
        pytest.param("$C ^{X}", "cannot name the command", id="command-from-a-variable"),
        pytest.param("echo $(case a in a) echo ^{X};; esac)", "case in $( )", id="case"),
        pytest.param("eval 'echo ^{X}'", "eval", id="eval"),
        pytest.param("[[ ^{X} -eq 1 ]]", "[[", id="double-brackets"),
        pytest.param("[ -v ^{X} ]", "[ -v", id="test-v"),
        pytest.param("printf -v ^{X} a", "printf -v", id="printf-v"),
        pytest.param(". ^{X}", "for ., which", id="source"),
    ],
)
def test_prepare_refused(command: str, says: str) -> None:
    with pytest.raises(RequestRefused) as refusal:
        prepare(command)
    assert says in str(refusal.value)
    assert str(refusal.value).startswith("PostProcess: ")


@pytest.mark.parametrize(
    "command",
    [
        "/opt/upload ^{X} >>/var/log/upload 2>&1 &",
        "sh /opt/upload.sh -c ^{X}",
        "test -n ^{X} && ! /opt/upload ^{X} || logger 'failed: ^{X}'",
        "(cd /srv; /opt/upload < ^{X})",
        "if [ -s ^{X} ]; then rm -- ^{X}; fi",
        'for i in 1 2; do /opt/upload ^{X} $i "$?"; done',
        "case ^{X} in a*) echo ^{X};; *) exit 1;; esac",
        "ID=^{X} /opt/upload; export ID=^{X}",
        # What these read as a program is for whoever wrote the command.
        "sh -c 'echo \"$1\"' sh ^{X}",
        "python3 -c 'import sys; print(sys.argv[1])' ^{X}",
        "sudo ssh host ^{X}",
        'curl -d "id=^{X}&day=$(date +%F)" "http://$HOST/${PORT}"',
    ],
)
def test_prepare_ordinary_command_allowed(command: str) -> None:
    assert prepare(command).names == ("X",)


def test_prepare_nested_deeper_than_calls_can_be_refused() -> None:
    with pytest.raises(RequestRefused, match="nested too deeply"):
        prepare("$(" * 498 + "^{X}")


def test_prepare_too_many_values_refused() -> None:
    with pytest.raises(RequestRefused, match="more than 64 different"):
        prepare("echo " + "".join(f"^{{V{number}}}" for number in range(65)))


# --- Commands of the configuration ---------------------------------------------------------------


def named(*argv: str) -> Commands:
    return Commands({"upload": PostProcessConfig(argv)})


@pytest.mark.parametrize("value", [*HOSTILE, "\x1b[2J", "^{Y}"])
async def test_named_command_gets_the_value_as_it_is_within_one_argument(
    show: Path, value: str
) -> None:
    command = named(str(show), "before ^{X}", "^{X}", "a^{X}^{Y}b").prepare("@upload")
    assert command.names == ("X", "Y")
    assert await run(command, {"X": value}, LOG) == 0
    arguments = (show.parent / "arguments").read_bytes().decode("utf-8", "surrogateescape")
    assert arguments.split("\0")[:-1] == [f"before {value}", value, f"a{value}b"]


async def test_named_command_runs_without_a_shell_and_without_values_in_its_environment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    command = named("/usr/bin/env", "A=$(id); ^{X} `id`", "env").prepare("@upload")
    assert await run(command, {"X": "$(id)"}, LOG) == 0
    assert "post-process: A=$(id); $(id) `id`" in caplog.messages
    assert not any("AUDIOFORK_VAR" in message for message in caplog.messages)


async def test_named_program_that_is_not_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert await run(named("/none", "^{X}").prepare("@upload"), {}, LOG) == NOT_STARTED
    assert "post-process: not started" in caplog.text


@pytest.mark.parametrize("wanted", ["@other", "@", "@upload now", "@upload;id", "@@upload", "@/x"])
def test_name_that_the_configuration_does_not_have_is_refused(wanted: str) -> None:
    with pytest.raises(RequestRefused) as refusal:
        named("/bin/true").prepare(wanted)
    assert "there are: @upload" in str(refusal.value)


def test_commands_may_be_exchanged() -> None:
    commands = named("/bin/true")
    before = commands.prepare("@upload")
    commands.configure({"other": PostProcessConfig(("/bin/false",))})
    assert before.argv == ("/bin/true",)
    assert commands.prepare(" @other ").argv == ("/bin/false",)
    with pytest.raises(RequestRefused, match="there are: @other"):
        commands.prepare("@upload")


def test_what_begins_otherwise_is_a_shell_command() -> None:
    assert named("/bin/true").prepare("echo @upload") == prepare("echo @upload")


# --- The process ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("/none", 127)]
)
async def test_run_returns_exit_status(command: str, status: int) -> None:
    assert await run(prepare(command), {}, LOG) == status


async def test_run_no_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SHELL", "/none")
    assert await run(prepare("true"), {}, LOG) == NOT_STARTED


async def test_run_surroundings(tmp_path: Path) -> None:
    """The folder, group, session, input, environment and descriptors of a command."""
    out = tmp_path / "out"
    script = f"{{ pwd; cat; env; ls -m /proc/self/fd; ps -o pid=,pgid=,sid= $$; }} >{out} 2>&1"
    assert await run(prepare(f": ^{{X}}; {script}"), {"X": "one", "HOME": "/"}, LOG) == 0
    text = out.read_text()
    assert text.startswith("/\n")
    names = {line.partition("=")[0] for line in text.splitlines() if "=" in line}
    assert names == {"PATH", "LANG", "AUDIOFORK_VAR_1", "PWD", *(names & {"OLDPWD", "_", "SHLVL"})}
    # 0, 1, 2, the pipe that tells the end, and the one of ls itself.
    assert len(next(line for line in text.splitlines() if line.startswith("0,")).split(",")) == 5
    ids = text.splitlines()[-1].split()
    assert len(set(ids)) == 1
    assert os.getsid(0) != int(ids[0])


async def test_run_output_goes_to_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await run(prepare("echo one; printf 'two\\033[2J\\377\\n' >&2; printf three"), {}, LOG)
    assert caplog.messages == [
        "post-process: one",
        "post-process: two [2J\ufffd",
        "post-process: three",
        "post-process: ended with 0",
    ]


async def test_run_long_output_bounded_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script = "i=0; while [ $i -lt 500 ]; do echo 0123456789; i=$((i+1)); done"
    await run(prepare(script), {}, LOG)
    assert caplog.messages[:-2] == MAX_OUTPUT_LINES * ["post-process: 0123456789"]
    assert caplog.messages[-2] == f"post-process: {11 * 400} more bytes of output"


async def test_run_line_without_end_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await run(prepare("head -c 200000 /dev/zero | tr '\\0' x"), {}, LOG)
    assert caplog.messages[0] == "post-process: " + 500 * "x"
    assert caplog.messages[1] == "post-process: 198000 more bytes of output"


async def test_run_endless_output_leaves_loop_free(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reads = round(0.5 / READ_INTERVAL_S) + 2  # the first at once, the last after the end
    assert await run(prepare("exec yes"), {}, LOG, limit_s=0.5) == -signal.SIGTERM
    assert len(caplog.messages) < MAX_OUTPUT_LINES + 5
    (rest,) = re.findall(r"post-process: (\d+) more bytes", caplog.text)
    assert int(rest) <= reads * READ_BYTES  # it would print some GB


# --- The end -------------------------------------------------------------------------------------


def alive(folder: Path) -> list[str]:
    """Return the numbers in a folder's files that are those of running processes."""
    pids = [pid for file in folder.glob("*.pid") for pid in file.read_text().split()]
    assert pids, "the command did not even begin"
    return [pid for pid in pids if runs(pid)]


async def gone(folder: Path) -> None:
    """Wait for the end of all processes that a folder names: the kernel takes a moment."""
    async with asyncio.timeout(2):
        while alive(folder):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def runs(pid: str) -> bool:
    # One that has ended may wait for an init that does not care: in a container, say.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_run_over_limit_ends_whole_group(tmp_path: Path) -> None:
    """Also a child that ignores SIGTERM, and one in the background whose output is elsewhere."""
    script = (
        f"(trap '' TERM; sh -c 'echo $$ >{tmp_path}/a.pid; sleep 60' & "
        f"sh -c 'echo $$ >{tmp_path}/b.pid; exec sleep 60' >/dev/null 2>&1 & wait) & "
        f"echo $! >{tmp_path}/c.pid; sleep 60"
    )
    status = await run(prepare(script), {}, LOG, limit_s=0.3, grace_s=0.2)
    assert status == -signal.SIGTERM
    await gone(tmp_path)


async def test_run_over_limit_lets_command_clean_up(tmp_path: Path) -> None:
    script = f"trap 'echo cleaned >{tmp_path}/note; exit 3' TERM; sleep 60 & wait"
    assert await run(prepare(script), {}, LOG, limit_s=1) == 3
    assert (tmp_path / "note").read_text() == "cleaned\n"


async def test_run_waits_for_background(tmp_path: Path) -> None:
    """What a command sends to the background is given its time, wherever its output goes."""
    script = f"(sleep 0.3; echo done >{tmp_path}/note) >/dev/null 2>&1 & exit 5"
    assert await run(prepare(script), {}, LOG) == 5
    assert (tmp_path / "note").read_text() == "done\n"


async def test_run_process_that_left_its_group_is_not_waited_for(tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ >{tmp_path}/a.pid; exec sleep 60' >/dev/null 2>&1 & exit 4"
    assert await run(prepare(script), {}, LOG, limit_s=0.3, grace_s=0.1) == 4
    left = alive(tmp_path)
    assert len(left) == 1
    os.kill(int(left[0]), signal.SIGKILL)


async def test_run_cancelled_kills_group(tmp_path: Path) -> None:
    script = f"trap '' TERM; echo $$ >{tmp_path}/a.pid; sleep 60 & echo $! >{tmp_path}/b.pid; wait"
    task = asyncio.create_task(run(prepare(script), {}, LOG))
    async with asyncio.timeout(5):
        while not (tmp_path / "b.pid").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(tmp_path)


@pytest.mark.serial
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_50_commands_run_at_once_and_the_loop_goes_on_meanwhile(
    tmp_path: Path, runner: object
) -> None:
    """On both loops: each command waits for what the loop does when all have begun."""
    go = tmp_path / "go"

    async def main() -> None:
        command = prepare(f"touch {tmp_path}/^{{X}}; while ! [ -e {go} ]; do sleep 0.05; done")
        runs = [asyncio.create_task(run(command, {"X": str(number)}, LOG)) for number in range(50)]
        async with asyncio.timeout(60):
            while len(os.listdir(tmp_path)) < 50:  # noqa: ASYNC110 (a file has no event)
                await asyncio.sleep(0.02)
            go.touch()
            assert await asyncio.gather(*runs) == 50 * [0]

    runner(main())  # type: ignore[operator]
