"""What to do about what the command `check` finds amiss."""

from __future__ import annotations

from urllib.parse import urlsplit

from audiofork.asterisk.taps.ways import Connects
from audiofork.config import Address

# The modules of Asterisk that legs need.
AUDIOSOCKET_MODULES = ("chan_audiosocket.so", "res_audiosocket.so")
CHANSPY_MODULE = "app_chanspy.so"
ARI_MODULES = ("res_ari.so", "res_ari_channels.so", "res_ari_events.so", "res_ari_applications.so")
STASIS_MODULE = "app_stasis.so"
# What the shipped dialplan and the lines that call it run.
DIALPLAN_MODULES = (
    *("app_exec.so", "app_stack.so", "app_userevent.so", "app_verbose.so"),
    *("func_base64.so", "func_callerid.so", "func_logic.so", "func_strings.so"),
)
# What they ask first, whether the dialplan is there.
GUARD_MODULE = "func_dialplan.so"
# What runs where legs by ARI are sent to.
LEG_MODULES = {Connects.APPLICATION: "app_audiosocket.so", Connects.DIAL: "app_dial.so"}
# One of them is enough; of several Asterisk takes timerfd.
TIMERFD = "res_timing_timerfd.so"
TIMING_MODULES = ("res_timing_pthread.so", TIMERFD, "res_timing_dahdi.so")

# What comes after it is the way by hand.
SETUP = "Run audiofork setup, as root on Asterisk's machine, which does it. By hand: "
FOLDER = 'Asterisk\'s folder (asterisk -rx "core show settings" tells it)'

NO_SECRET = (
    f"{SETUP}set [asterisk] secret_file to a file that the daemon alone can read, with the secret "
    "of the user in manager.conf. Where systemd hands it to the service (LoadCredential), start "
    "the daemon, which then checks itself; or let this command read the same file: "
    "AUDIOFORK_ASTERISK_SECRET_FILE=/etc/audiofork/ami-secret audiofork check"
)
UNREACHABLE = (
    'Is Asterisk running (asterisk -rx "core show version")? If it is: audiofork setup, as root on '
    "its machine, lets the daemon in. By hand, in manager.conf: enabled = yes, and bindaddr and "
    'port as in [asterisk] host and port (asterisk -rx "manager show settings"). With [asterisk] '
    "tls = yes the port is that of tlsbindaddr, and ca_file names who signed its certificate."
)
CLOCK = (
    "Times in logs and call records cannot be compared, and certificates may be taken for expired. "
    "Let both machines keep time by NTP: timedatectl set-ntp true."
)
LISTEN = "[audiosocket] listen must be an address of this machine, such as 127.0.0.1:9093."
FRONT = (
    "[front] listen must be an address of this machine, and a port that no other program has: not "
    "Asterisk's own 5038. AMI clients are given that port."
)
TAKEN = (
    "ss -ltnp, as root, tells which program it is. Another one: stop it, or choose another port in "
    "[audiosocket] listen and restart the daemon. The daemon: its log says whether it is connected "
    "to this Asterisk; after an upgrade or a change of [audiosocket], systemctl restart audiofork."
)
RESTART = "Changes of [audiosocket] count from the next start: systemctl restart audiofork."
OTHER_SOCKET = (
    "The commands list, start, stop and mute cannot ask it. Let [control] socket name the one that "
    "it was started with, or restart it (systemctl restart audiofork) if that has been removed."
)
ADVERTISE = (
    "[audiosocket] advertise (empty: listen) must be the address of this machine as Asterisk's "
    "machine sees it, on the port of listen, and no firewall may be between them. Beyond one "
    "machine listen cannot be 127.0.0.1."
)
NO_NEWS = " Without read = call in manager.conf the reason does not come through."
NO_OPTION_D = (
    "The directions out and stereo take Asterisk 18.22, 20.7, 21.2, 22 or later; in and both work "
    "with this one."
)
BUSY = " If a timing module is loaded, the machine is too busy: look at its load."
TIMING = ' What Asterisk has is told by asterisk -rx "timing test".'
TICKS_ARE_LOST = (
    f"snoop: {TIMERFD} forgets ticks that a busy machine misses, and half a second of audio is "
    f"lost after some 25; noload => {TIMERFD} in modules.conf and a restart of Asterisk have "
    f"{TIMING_MODULES[0]} count, which makes up for them"
)
NOT_THE_TONE = (
    "Something on this Asterisk changes audio between two channels; please report it with the "
    'output of asterisk -rx "core show version" and "module show".'
)


def load(*modules: str) -> str:
    """Return how to load modules."""
    commands = "".join(f'  asterisk -rx "module load {module}"\n' for module in modules)
    return (
        f"Run\n{commands}and see that modules.conf does not keep it out (noload, or autoload = no "
        "without a load line). Some distributions have it in a package of its own."
    )


RELOAD_ARI = 'then run\n  asterisk -rx "module reload res_ari.so"'
NO_PASSWORD = (
    f"{SETUP}set [ari] password_file to a file that the daemon alone can read, with the password "
    "of the user in ari.conf. Where systemd hands it to the service (LoadCredential), start the "
    "daemon, which then checks itself; or let this command read the same file: "
    "AUDIOFORK_ARI_PASSWORD_FILE=/etc/audiofork/ami-secret audiofork check"
)
HAVE_ARI = f"""\
By ARI forks have in and out apart in every call, lose no frame to jitter, and can have wideband. \
{SETUP}set in audiofork.ini
  [ari]
  url = http://127.0.0.1:8088/ari
  password_file = (a file that the daemon alone can read)
and do what the heads of the shipped ari_audiofork.conf and extensions_audiofork.conf say; then \
check again, which names what is missing."""
NO_ARI = f"""\
{SETUP}in ari.conf (with FreePBX, Advanced Settings, "Enable the Asterisk REST Interface"):
  [general]
  enabled = yes
{RELOAD_ARI}
{load(*ARI_MODULES)}
[ari] url has to name what asterisk -rx "http show status" tells, and end with /ari."""
INCLUDE_EXTENSIONS = f"""\
{SETUP}copy the shipped extensions_audiofork.conf, in place of an older one, into {FOLDER}, and \
add to the end of extensions.conf (with FreePBX, of extensions_custom.conf), if it is not there,
  #include extensions_audiofork.conf
then run
  asterisk -rx "dialplan reload\""""

NEWER_EXTENSIONS = (
    "The daemon is older than that file: after an upgrade, systemctl restart audiofork. If it is "
    "the version that you want, run audiofork setup, which puts its own file in place."
)
EDITED_EXTENSIONS = (
    "If you have not meant that, put the shipped file in its place (audiofork setup does), and run "
    'asterisk -rx "dialplan reload". What you want changed belongs into contexts of your own: the '
    "next version of the file would undo it."
)

NAME_HOSTS = (
    "Whoever may start a fork, each AMI user with write = user say, can send any call there. Name "
    "your servers: [security] allow_urls = wss://speech.example.org, and reload the daemon."
)
PROFILES = (
    "Without it the daemon does not start, and a reload keeps the old profiles. The daemon's user "
    "has to be able to read profiles.d and what its files name (install -m 640 -g audiofork); "
    "where systemd hands a token to the service (LoadCredential), start the daemon, which then "
    "checks itself."
)
CALLER_DATA = """\
A caller may choose it so that a comma in it begins another option, another server or a command. \
Put it through URIENCODE, such as
  ${URIENCODE(${EXTEN})}
or give the URL by a variable, which is read whole:
  Set(AUDIOFORK_URL=ws://127.0.0.1:8080/?called=${URIENCODE(${EXTEN})})
  ExecIf(${DIALPLAN_EXISTS(audiofork,start,1)}?Gosub(audiofork,start,1()))"""


def http_conf(url: str) -> str:
    """Return how Asterisk is made to listen where [ari] url says."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in ("localhost", None) else parts.hostname
    if parts.scheme == "https":
        options = f"tlsenable = yes\n  tlsbindaddr = {Address(host, parts.port or 443)}\n"
        options += "  tlscertfile = (its certificate and key, in PEM)"
    else:
        options = f"bindaddr = {host}\n  bindport = {parts.port or 80}"
    return f"""\
Is Asterisk running? If it is: audiofork setup, as root on its machine, has it listen there. By \
hand, in http.conf (with FreePBX, Advanced Settings, "Enable the mini-HTTP Server"):
  [general]
  enabled = yes
  {options}
then run
  asterisk -rx "module reload http"
[ari] url has to name what asterisk -rx "http show status" tells; with https, ca_file names who \
signed its certificate."""


def ari_user(username: str) -> str:
    """Return how Asterisk is made to know our user of ARI."""
    return f"""\
{SETUP}make a file in {FOLDER} that Asterisk alone can read; after -g comes the group that it \
runs as:
  install -m 640 -g asterisk /dev/null /etc/asterisk/ari_audiofork.conf
Write into it, as in the shipped ari_audiofork.conf,
  [{username}]
  type = user
  read_only = no
  password = (that of [ari])
  password_format = plain
and to the end of ari.conf (with FreePBX, of ari_additional_custom.conf), if it is not there,
  #include ari_audiofork.conf
{RELOAD_ARI}
If asterisk -rx "ari show users" does not list it, see whether ari.conf includes \
ari_audiofork.conf twice: Asterisk takes none of its users then."""


def read_only(username: str) -> str:
    """Return how our user of ARI is allowed to write."""
    return f"""\
{SETUP}where the user stands, in ari.conf or a file that it includes:
  [{username}]
  read_only = no
{RELOAD_ARI}"""


def login(user: str) -> str:
    """Return how Asterisk is made to let our user of AMI in."""
    return (
        f"{SETUP}compare [asterisk] username and secret with section [{user}] of manager.conf "
        "or a file that it includes, which Asterisk alone should be able to read (install -m 640 "
        "-g asterisk). Its deny and permit must let this machine in. Then run "
        f'asterisk -rx "manager reload" and asterisk -rx "manager show user {user}".'
    )


def second_login(user: str) -> str:
    """Return how Asterisk is made to let our user of AMI in beside himself."""
    return (
        f"The daemon, say, is logged in as {user}, and manager.conf says allowmultiplelogin = no. "
        f"In section [{user}] of manager.conf or a file that it includes write "
        "allowmultiplelogin = yes, as the shipped manager_audiofork.conf does; run "
        'asterisk -rx "manager reload", and restart the daemon: it counts from the next login.'
    )


def rights(user: str) -> str:
    """Return the rights that our user of AMI needs."""
    return (
        f"{SETUP}in section [{user}] of manager.conf or a file that it includes: read = "
        "user,call,dtmf and write = originate,call,user,reporting, with the eventfilter lines of "
        'the shipped manager_audiofork.conf; then run asterisk -rx "manager reload".'
    )


def keys(user: str) -> str:
    """Return how our user of AMI hears of the keys that parties press."""
    return f"""\
No server wants them? Then leave it so. {SETUP}in section [{user}] of manager.conf or a file that \
it includes:
  read = user,call,dtmf
  eventfilter(action(include),name(DTMFEnd)) =
or, before Asterisk 18.26, 20.11, 21.6 and 22.1,
  eventfilter = Event: DTMFEnd
then run
  asterisk -rx "manager reload\""""


def empty_lines(user: str) -> str:
    """Return how Asterisk is kept from sending our user of AMI what a caller has forged."""
    return f"""\
Somebody could dial a whole event, and end or begin the forks of other calls. {SETUP}in section \
[{user}] of manager.conf or a file that it includes:
  eventfilter(action(exclude),method(regex)) = [[:cntrl:]]{{4}}[^[:cntrl:]]
or, before Asterisk 18.26, 20.11, 21.6 and 22.1,
  eventfilter = ![[:cntrl:]]{{4}}[^[:cntrl:]]
then run
  asterisk -rx "manager reload\""""
