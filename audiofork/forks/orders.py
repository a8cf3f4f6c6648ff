"""The orders of a fork: to the relay, and to the taps that request its legs."""

from __future__ import annotations

from audiofork.asterisk.taps.ways import Audience, Wish
from audiofork.forks.fork import Fork, effective_url
from audiofork.link.messages import Direction, ForkSpec, LegPart, Metadata, Voice


def spec_of(fork: Fork) -> ForkSpec:
    """Return the order to the relay for a fork."""
    options = fork.request.options
    return ForkSpec(
        fork_id=fork.id,
        channel=fork.channel,
        url=effective_url(fork.request),
        direction=options.direction,
        legs=tuple(fork.legs),
        sample_rate=fork.sample_rate,
        gain_in=options.gain_in,
        gain_out=options.gain_out,
        keep_time=needs_silence(fork),
        steady=fork.way.keeps_time,
        gate_open=not options.bridged_only or bool(fork.call.bridged),
        beeps=options.beeps,
        tls=options.tls,
        handshake=options.handshake,
        format=options.format,
        codec=options.codec,
        dialogue=fork.call.dialogue,
        metadata=_metadata_of(fork) if options.tells_of_call else None,
        reconnect_interval_s=options.reconnect_interval_s,
        reconnect_attempts=options.reconnect_attempts,
        frame_ms=options.frame_ms,
        voice=_voice_of(fork),
        commands=fork.grants.commands,
        proxy=fork.request.proxy,
        way=fork.way.name,
        age_s=fork.age_s,
    )


def _voice_of(fork: Fork) -> Voice | None:
    options = fork.request.options
    if fork.connects:  # its leg is the other party: it hears silence, or what the server says
        return Voice(tuple(fork.legs), steady=True, buffer_s=fork.grants.buffer_s)
    if options.audience is None:
        return None
    parts = (fork.way.leg_heard_by(side, options.direction) for side in options.audience.sides)
    return Voice(tuple(parts), buffer_s=fork.grants.buffer_s)


def _metadata_of(fork: Fork) -> Metadata:
    resumed = fork.from_earlier_run or fork.progress.relays_lost > 0
    return Metadata(fork.call.info, fork.call.params, resumed)


def needs_silence(fork: Fork) -> bool:
    """Return whether the relay must send silence while the leg brings no frames.

    All directions except `in` keep time always; `in` keeps time only with option S, or where the
    server is the other party: it hears by the silence that the party has finished.
    """
    options = fork.request.options
    promised = options.keep_time or options.direction is not Direction.IN or fork.connects
    return promised and not fork.way.keeps_time


def wish_of(fork: Fork) -> Wish:
    """Return what a fork needs from its legs, apart from the sample rate."""
    options = fork.request.options
    apart = options.gain_in != options.gain_out or fork.mute_in != fork.mute_out
    return Wish(options.direction, speaks=options.beeps.any, apart=apart, audience=options.audience)


def heard_by(fork: Fork, part: LegPart) -> Audience | None:
    """Return who in the call must hear what the relay sends over a leg; None: nobody."""
    direction = fork.request.options.direction
    legs = {fork.way.leg_heard_by(side, direction): side for side in wish_of(fork).hearers}
    return legs.get(part)
