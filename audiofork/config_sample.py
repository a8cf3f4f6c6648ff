"""Generates `etc/audiofork.ini` from the options (`make sample-config`)."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

from audiofork.config import EXAMPLES, NAMED_SECTIONS, SECTIONS

_INTRO = """\
; audiofork.ini: the configuration of audiofork.
;
; This file lists every option with its default. An environment variable AUDIOFORK_SECTION_OPTION
; (for example AUDIOFORK_ASTERISK_SECRET) overrides the file. This includes [post_process:NAME];
; write _ for : and other such characters in its name. An unknown section or option is an error,
; and so is an AUDIOFORK_ variable that matches no option. A section may appear twice, an option
; may not. Files *.ini in profiles.d beside this file are read, too; they may contain only sections
; [profile:NAME].
;
; The controller of a cluster may serve several Asterisks: [asterisk NAME], [ari NAME] and
; [front NAME] are those of a further one, which the cluster calls NAME. They have the options of
; [asterisk], [ari] and [front], with the same defaults, and the first has legs_from and zone, too,
; which are as [cluster] says where they are empty. [asterisk] then counts if it stands here at all.
;
; SIGHUP makes the daemon read the file again; a file with an error changes nothing. Changes to
; [asterisk], [ari], [audiosocket], [relay], [control], [front], [http], [daemon] journal and
; [history] file take effect at the next start, except that the secret of [asterisk] and the
; password of [ari], and their files, take effect at the next login; the tokens of [http] are read
; again at once.
"""


def sample() -> str:
    """Return the text of `etc/audiofork.ini`."""
    parts = [_INTRO]
    for name, section_type in SECTIONS.items():
        parts += _sample_of(section_type, f"[{name}]", {})
    for kind, (name, values) in EXAMPLES.items():
        parts += _sample_of(NAMED_SECTIONS[kind], f";[{kind}:{name}]", values)
    return "\n".join(parts)


def _sample_of(section_type: type[Any], header: str, values: Mapping[str, str]) -> list[str]:
    """Return the paragraphs of a section; an option that `values` lacks has its default."""
    parts = [_comment(section_type.__doc__ or "") + f"{header}\n"]
    for option in dataclasses.fields(section_type):
        line = f"{option.name} = {values.get(option.name, option.metadata['default'])}".rstrip()
        parts.append(_comment(option.metadata["doc"]) + f";{line}\n")
    return parts


def _comment(doc: str) -> str:
    lines = textwrap.wrap(doc, width=96)
    return "".join(f"; {line}\n" for line in lines)
