"""What a fork asks of others: of the relay, and of the taps that make its legs."""

from __future__ import annotations

from audiofork.asterisk.taps.ways import Wish
from audiofork.forks.fork import Fork, effective_url
from audiofork.link.messages import Direction, ForkSpec, LegPart, Metadata, ServerCommand, Voice

# What a server that is heard in a call may ask for.
GRANTED = (ServerCommand.AUDIO, ServerCommand.CLEAR, ServerCommand.MARK)


def spec_of(fork: Fork) -> ForkSpec:
    """Return what the relay is ordered for a fork."""
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
        voice=Voice(LegPart.IN, steady=True) if fork.connects else None,
        commands=GRANTED if fork.connects else (),
    )


def _metadata_of(fork: Fork) -> Metadata:
    resumed = fork.from_earlier_run or fork.progress.relays_lost > 0
    return Metadata(fork.call.info, fork.call.params, resumed)


def needs_silence(fork: Fork) -> bool:
    """Return whether the relay must send silence while the leg brings no frames.

    All directions except `in` keep time always; `in` keeps time only with option S.
    """
    options = fork.request.options
    promised = options.keep_time or options.direction is not Direction.IN
    return promised and not fork.way.keeps_time


def wish_of(fork: Fork) -> Wish:
    """Return what a fork needs from its legs, apart from the sample rate."""
    options = fork.request.options
    apart = options.gain_in != options.gain_out or fork.mute_in != fork.mute_out
    return Wish(options.direction, speaks=options.beeps.any, apart=apart)
