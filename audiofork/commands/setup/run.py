"""The command setup from its beginning to its end: plan, show, ask, write, reload, check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from audiofork.commands.setup import system
from audiofork.commands.setup.asterisk_files import ARI, MANAGER, AsteriskFiles
from audiofork.commands.setup.daemon_files import (
    Paths,
    common_secret,
    configuration,
    options_named,
    plan_ini,
    plan_profiles,
    plan_secret,
    plan_units,
    secrets_of,
    this_program,
)
from audiofork.commands.setup.draft import Change, Draft, group_name
from audiofork.commands.setup.find import Asterisk, ask, find
from audiofork.commands.setup.http_door import how_to_open, plan_door
from audiofork.commands.setup.record import Record
from audiofork.commands.terminal import EXIT_FAILED
from audiofork.errors import SetupError

STATE = Path("/var/lib/audiofork-setup")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Plan:
    asterisk: Asterisk
    draft: Draft
    of_asterisk: AsteriskFiles
    changes: list[Change]

    @property
    def is_any(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self.changes or self.draft.folders)


@dataclass(slots=True)
class Setup:
    """One call of the command.

    Attributes:
        say: Prints a text.
        confirm: Asks a question, and returns whether the answer is yes.
        folder: Asterisk's configuration folder, where it is known.
        paths: Where the daemon's files are.
        state: The folder that keeps what has been changed.
        systemd: The service; None: systemd does not run here.
        check: Runs `audiofork check` with a configuration; returns its exit code.
    """

    say: Say
    confirm: Callable[[str], bool]
    folder: Path | None = None
    paths: Paths = field(default_factory=Paths)
    state: Path = STATE
    systemd: system.Systemd | None = None
    check: Callable[[Path], int] = system.check

    # --- Forwards ---

    def do(self) -> int:
        """Set everything up; return the exit code of the check at the end.

        Raises:
            SetupError, ConfigError: Nothing was changed, or the text says what is left to do.
            OSError: Nothing was changed: a file cannot be read, or the record not be made.
        """
        record = Record(self.state)
        with record.locked():
            plan = self._plan(record)
            self._show(plan)
            if plan.is_any and not self.confirm("Make these changes?"):
                self.say("nothing was changed")
                return EXIT_FAILED
            if plan.is_any:
                self._write(record, plan)
            if not record.is_complete or (self.systemd and record.service is None):
                try:
                    self._tell(record, plan)
                except OSError as exc:
                    raise SetupError(
                        f"{exc.filename}: {exc.strerror}; the files are written: once that is "
                        "mended, run audiofork setup again, or audiofork setup --undo"
                    ) from exc
            self._tell_the_end(record)
        code = self.check(self.paths.ini)
        if text := how_to_open(configuration(Draft(), self.paths.ini), self.paths.tokens):
            self.say(f"\n{text}")
        return code

    def show(self) -> int:
        """Show what would be done."""
        self._show(self._plan(Record(self.state)))
        self.say("nothing was changed (--dry-run)")
        return 0

    def _plan(self, record: Record) -> _Plan:
        asterisk, draft = find(self.folder), Draft()
        of_asterisk = AsteriskFiles(asterisk, draft, record.is_ours)
        ini, own = self.paths.ini, self.paths.secret
        loaded = configuration(draft, ini)
        users = loaded.asterisk.username, loaded.ari.username
        candidates = secrets_of(loaded, ini, own)
        for conf, user in zip((MANAGER, ARI), users, strict=True):
            candidates[f"{conf} [{user}]"] = of_asterisk.secret_of(conf, user)
        secret = common_secret(candidates)
        access = of_asterisk.plan(secret, *users)
        plan_secret(draft, own, secret)
        door = plan_door(draft, loaded, options_named(draft, ini, "http"), self.paths)
        plan_ini(draft, ini, access, own, door)
        plan_profiles(draft, self.paths)
        plan_units(draft, self.paths)
        return _Plan(asterisk, draft, of_asterisk, draft.changes())

    def _show(self, plan: _Plan) -> None:
        one = plan.asterisk
        how = "runs" if one.runs else "does not run"
        self.say(
            f"Asterisk {one.version} ({one.command[0]}) {how}; its configuration is in "
            f"{one.folder}{', by FreePBX' if one.generated else ''}, "
            f"its group is {group_name(one.group)}"
        )
        for planned in (*plan.changes, *plan.draft.folders):
            self.say(f"\n{planned}")
        if plan.is_any:
            self.say("")
        for note in plan.draft.notes:
            self.say(f"note: {note}")
        if not plan.is_any:
            self.say("nothing to change: every file is as setup leaves it")

    def _write(self, record: Record, plan: _Plan) -> None:
        """Make all changes; take them back if one cannot be made."""
        earlier = record.path.read_bytes() if record.path.exists() else None
        paths = [change.path for change in plan.changes]
        reloads = plan.of_asterisk.reloads_for(paths)
        for known in (record.reloads, record.pending):
            known += [one for one in reloads if one not in known]
        record.command = list(plan.asterisk.command)
        record.is_complete = False
        begun: list[Change] = []
        where = record.path
        try:
            for change in plan.changes:
                begun.append(change)
                where = change.path
                record.apply(change)
            for folder in plan.draft.folders:
                where = folder.path
                record.make_folder(folder)
        except BaseException as exc:
            self._roll_back(record, earlier, begun, exc)
            if isinstance(exc, OSError):
                what = f"{where}: {exc.strerror or exc}"
                raise SetupError(f"{what}; what was done until then has been taken back") from exc
            raise

    def _roll_back(
        self, record: Record, earlier: bytes | None, begun: list[Change], why: BaseException
    ) -> None:
        try:
            for change in reversed(begun):
                record.revert(change)
            record.restore(earlier)
        except OSError as exc:
            raise SetupError(
                f"{why}; what was done until then could not be taken back: {exc}. Once that is "
                "mended, audiofork setup --undo does it, or audiofork setup goes on"
            ) from why

    def _tell(self, record: Record, plan: _Plan) -> None:
        """Have Asterisk and systemd take notice of what has changed."""
        if plan.asterisk.runs:
            system.reload_asterisk(plan.asterisk.ask, record.pending, self.say)
        else:
            self.say("start Asterisk: it reads its files then")
        if self.systemd is not None:
            if record.service is None:
                record.service = self.systemd.state()
                record.save()
            concerned = {self.paths.ini, self.paths.secret, self.paths.tokens, *self._units()}
            anew = not concerned.isdisjoint(change.path for change in plan.changes)
            self.systemd.start(self.say, anew=anew)
        record.pending, record.is_complete = [], True
        record.save()

    def _units(self) -> list[Path]:
        return list(self.paths.units.glob("audiofork*.service")) if self.paths.units else []

    def _tell_the_end(self, record: Record) -> None:
        if record.entries:
            self.say("audiofork setup --undo takes all of it back\n")
        if self.systemd is None:
            program = " ".join(this_program())
            self.say(
                "systemd does not run here; start the daemon as root, or as you start Asterisk:\n"
                f"  install -d -m 750 /run/audiofork && {program} run -c {self.paths.ini}\n"
            )

    # --- Backwards ---

    def undo(self) -> int:
        """Take back what all setups have done; return 1 if something could not be.

        Raises:
            SetupError: What they did is not known.
        """
        record = Record(self.state)
        if not record.path.exists():
            self.say(f"nothing to take back: {record.path} is not there")
            return 0
        try:
            with record.locked():
                failed = self._take_back(record)
        except OSError as exc:
            raise SetupError(
                f"{exc.filename}: {exc.strerror}; once that is mended, run audiofork setup --undo "
                "again, for what is left"
            ) from exc
        return EXIT_FAILED if failed else 0

    def _take_back(self, record: Record) -> bool:
        """Take back the service, the files, and what Asterisk knows of them, in this order."""
        if self.systemd and record.service:
            self.systemd.take_back(record.service, self.say)
        failed = self._take_back_files(record)
        for folder in record.remove_folders():
            self.say(f"{folder}: stays, with what is in it that setup did not make")
        if self.systemd and record.service:
            self.systemd.reload(record.service, self.say)
        system.reload_asterisk(
            lambda command: ask(record.command, command), record.reloads, self.say
        )
        if not failed:
            record.forget()
        return failed

    def _take_back_files(self, record: Record) -> bool:
        """Take back each file, the last first; return whether one could not be."""
        failed = False
        for entry in reversed(list(record.entries.values())):
            try:
                self.say(record.take_back(entry))
            except OSError as exc:
                failed = True
                self.say(
                    f"{entry.path}: could not be taken back: {exc.strerror}; mend that, and run "
                    "audiofork setup --undo again"
                )
        return failed


def for_this_machine(say: Say, confirm: Callable[[str], bool], ini: Path, state: Path) -> Setup:
    """Return a setup for the machine that this runs on."""
    runs = system.SYSTEMD_RUNS.is_dir()
    paths = Paths(ini.absolute()) if runs else Paths(ini.absolute(), units=None)
    return Setup(say, confirm, None, paths, state, system.Systemd() if runs else None)
