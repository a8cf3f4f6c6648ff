"""The command line asks the real door; what a door must never answer is in test_cli_http.py."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audiofork.cli import main
from audiofork.doors.http_client import HttpClient
from audiofork.doors.http_connection import Door
from audiofork.errors import AmiUnavailable, NoSuchChannel, RequestRefused
from audiofork.forks.events import Ended, Requested, Started
from audiofork.forks.requests import MuteFork, StartFork, StopFork
from audiofork.link.messages import EndReason, ForkStats
from tests.doors.http.stage import (
    CONTROLLER,
    FORK_ID,
    INFO,
    OTHER_ID,
    VIEW,
    VIEWER,
    Stage,
)

START = ["start", VIEW.channel, "ws://localhost/"]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return token_of(tmp_path, CONTROLLER)


def token_of(folder: Path, token: str) -> Path:
    path = folder / f"token-{token[:4]}"
    path.touch(mode=0o600)
    path.write_text(token)
    return path


async def ask(stage: Stage, token_file: Path, *arguments: str) -> Result:
    url = f"http://127.0.0.1:{stage.port}"
    command = [*arguments, "--url", url, "--token-file", str(token_file)]
    return await asyncio.to_thread(CliRunner().invoke, main, command)


async def test_list_shows_the_forks_without_what_may_be_secret(
    stage: Stage, token_file: Path
) -> None:
    result = await ask(stage, token_file, "list")
    assert result.exit_code == 0, result.output
    row = result.output.splitlines()[1].split()
    assert row[:6] == [FORK_ID, VIEW.channel, "both", "snoop", "16000", "streaming"]
    assert "s3cret" not in result.output


async def test_list_tells_the_legs_of_ended_forks_that_are_left(
    stage: Stage, token_file: Path
) -> None:
    stage.others.views, stage.others.legs_left = [], 2
    result = await ask(stage, token_file, "list")
    assert result.output.startswith("no forks\n2 legs of ended forks stay until ")


async def test_list_as_json_has_the_fields_of_the_interface(stage: Stage, token_file: Path) -> None:
    (fork,) = json.loads((await ask(stage, token_file, "list", "--json")).output)
    assert (fork["id"], fork["host"]) == (FORK_ID, "speech.example.org:8443")
    assert "s3cret" not in fork["url"]


async def test_start_and_connect_become_the_requests_of_the_other_doors(
    stage: Stage, token_file: Path
) -> None:
    more = ["--options", "D(in)M", "--params", "ticket=47%2011&empty=", "--no-wait"]
    result = await ask(stage, token_file, *START, *more)
    assert (result.exit_code, result.output) == (0, f"{FORK_ID}\n")
    await ask(stage, token_file, "connect", "1.1", "ws://localhost/", "--no-wait")
    start, connect = stage.others.requests
    assert isinstance(start, StartFork)
    assert isinstance(connect, StartFork)
    assert (start.target.channel, start.url) == (VIEW.channel, "ws://localhost/")
    assert start.params == {"ticket": "47 11", "empty": ""}
    assert (start.options.direction, start.origin.who) == ("in", "carl")
    assert (connect.target.uniqueid, connect.connects) == ("1.1", True)


async def test_start_waits_until_the_events_say_that_audio_flows(
    stage: Stage, token_file: Path
) -> None:
    stage.others.views = [dataclasses.replace(VIEW, state="attaching")]
    starting = asyncio.create_task(ask(stage, token_file, *START, "--timeout", "10"))
    async with asyncio.timeout(10):
        while not stage.others.requests:  # noqa: ASYNC110 (of another thread)
            await asyncio.sleep(0.01)
    (request,) = stage.others.requests
    assert isinstance(request, StartFork)
    stage.others.stream.on_event(Requested(INFO, request))
    stage.others.stream.on_event(Started(INFO))
    result = await starting
    assert result.exit_code == 0, result.output
    assert "fork 3f2a91c0 streams, " in result.stderr


async def test_start_whose_fork_ends_says_why(stage: Stage, token_file: Path) -> None:
    stage.others.views = []
    starting = asyncio.create_task(ask(stage, token_file, *START, "--timeout", "10"))
    async with asyncio.timeout(10):
        while not stage.others.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    end = Ended(INFO, EndReason.SINK_GONE, ForkStats(), True, "Connection refused")
    stage.others.stream.on_event(end)
    result = await starting
    assert result.exit_code == 1
    assert (
        f"fork {FORK_ID} of {VIEW.channel} has ended before it streamed: sink-gone (Connection "
        "refused); is the server running"
    ) in result.stderr


@pytest.mark.parametrize("target", [FORK_ID.upper(), VIEW.channel, VIEW.uniqueid])
async def test_stop_and_mute_name_the_fork(stage: Stage, token_file: Path, target: str) -> None:
    assert (await ask(stage, token_file, "mute", target, "on", "--direction", "read")).output == (
        f"{FORK_ID}\n"
    )
    assert (await ask(stage, token_file, "stop", target)).output == f"{FORK_ID}\n"
    mute, stop = stage.others.requests
    assert isinstance(mute, MuteFork)
    assert isinstance(stop, StopFork)
    assert (mute.fork_id, mute.mute_in, mute.mute_out) == (FORK_ID, True, None)
    assert (stop.fork_id, stop.target.channel) == (FORK_ID, "")


async def test_refusals_have_the_words_and_exit_codes_of_the_socket(
    stage: Stage, token_file: Path
) -> None:
    result = await ask(stage, token_file, *START, "--options", "D(up)")
    assert (result.exit_code, result.output) == (
        1,
        "audiofork: Options: D takes in, out, both or stereo, not 'up'\n",
    )
    stage.others.error = NoSuchChannel()
    result = await ask(stage, token_file, *START)
    assert result.exit_code == 1
    assert result.output.startswith(f"audiofork: No such channel: {VIEW.channel}; asterisk -rx")
    stage.others.error = AmiUnavailable("the connection is down")
    result = await ask(stage, token_file, *START)
    assert (result.exit_code, result.output) == (
        4,
        "audiofork: Asterisk cannot be asked: the connection is down\n",
    )


async def test_token_without_the_role_and_token_that_nobody_knows_exit_with_4(
    stage: Stage, tmp_path: Path
) -> None:
    viewer, stranger = token_of(tmp_path, VIEWER), token_of(tmp_path, "x" * 40)
    assert (await ask(stage, viewer, "list")).exit_code == 0
    result = await ask(stage, viewer, "stop", FORK_ID)
    assert result.exit_code == 4
    assert f"has not the role control (the token of {viewer})" in result.output
    result = await ask(stage, stranger, "list")
    assert result.exit_code == 4
    assert f"this token is not known (the token of {stranger})" in result.output
    assert stage.others.requests == []


async def test_part_of_an_id_is_answered_with_the_whole_one(stage: Stage, token_file: Path) -> None:
    result = await ask(stage, token_file, "stop", FORK_ID[:8])
    assert result.exit_code == 1
    assert f"No such fork 3f2a91c0; did you mean {FORK_ID}" in result.output


# --- The history ----------------------------------------------------------------------------------


def client_of(stage: Stage, token_file: Path) -> HttpClient:
    return HttpClient(Door(f"http://127.0.0.1:{stage.port}", token_file))


async def test_history_is_searched_with_the_fields_of_the_socket(
    stage: Stage, token_file: Path
) -> None:
    def search() -> tuple[list[dict[str, Any]], str]:
        fields = {"Caller": "100", "Failed": "yes", "Since": "1000.5", "Limit": "7", "Host": ""}
        with client_of(stage, token_file) as client:
            return client.history(fields)

    entries, cursor = await asyncio.to_thread(search)
    assert ([one["fork_id"] for one in entries], cursor) == ([OTHER_ID], "next")
    (query,) = stage.others.searched
    assert (query.caller, query.failed, query.since, query.limit) == ("100", True, 1000.5, 7)


async def test_entry_of_the_history_has_its_timeline_and_another_is_none(
    stage: Stage, token_file: Path
) -> None:
    def entries() -> list[list[dict[str, Any]]]:
        with client_of(stage, token_file) as client:
            ids = (OTHER_ID.upper(), FORK_ID, "../status")
            return [client.history({"AudioForkID": one})[0] for one in ids]

    (found,), *others = await asyncio.to_thread(entries)
    assert [one["kind"] for one in found["timeline"]] == ["requested"]
    assert others == [[], []]


async def test_causes_of_failures_are_those_of_the_history(stage: Stage, token_file: Path) -> None:
    def causes() -> list[dict[str, Any]]:
        with client_of(stage, token_file) as client:
            return client.causes(5.0)

    (cause,) = await asyncio.to_thread(causes)
    assert (cause["reason"], cause["count"]) == ("sink-gone", 3)


async def test_nobody_is_removed_from_the_history_from_elsewhere(
    stage: Stage, token_file: Path
) -> None:
    def forget() -> None:
        with client_of(stage, token_file) as client:
            client.forget("100")

    with pytest.raises(RequestRefused, match="on the daemon's own machine alone"):
        await asyncio.to_thread(forget)
