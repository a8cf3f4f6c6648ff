"""What to do about the faults that the command `check` finds."""

from __future__ import annotations

from urllib.parse import urlsplit

from audiofork.asterisk.taps.ways import Connects
from audiofork.config import Address

# The modules of Asterisk that legs need.
AUDIOSOCKET_MODULES = ("chan_audiosocket.so", "res_audiosocket.so")
CHANSPY_MODULE = "app_chanspy.so"
ARI_MODULES = ("res_ari.so", "res_ari_channels.so", "res_ari_events.so", "res_ari_applications.so")
STASIS_MODULE = "app_stasis.so"
# The applications that the shipped dialplan, and the lines that call it, run.
DIALPLAN_MODULES = (
    *("app_exec.so", "app_stack.so", "app_userevent.so", "app_verbose.so"),
    *("func_base64.so", "func_callerid.so", "func_logic.so", "func_strings.so"),
)
# The function with which these lines check whether the dialplan exists.
GUARD_MODULE = "func_dialplan.so"
# The applications that run in the context to which legs by ARI are sent.
LEG_MODULES = {Connects.APPLICATION: "app_audiosocket.so", Connects.DIAL: "app_dial.so"}
# One of them is enough; of several, Asterisk uses timerfd.
TIMERFD = "res_timing_timerfd.so"
TIMING_MODULES = ("res_timing_pthread.so", TIMERFD, "res_timing_dahdi.so")

# The instructions to do it by hand follow this text.
SETUP = "Run audiofork setup, as root on Asterisk's machine, which does this. By hand: "
FOLDER = 'Asterisk\'s folder (asterisk -rx "core show settings" shows it)'

NO_SECRET = (
    f"{SETUP}set [asterisk] secret_file to a file that only the daemon can read, with the secret "
    "of the user in manager.conf. If systemd passes it to the service (LoadCredential), start "
    "the daemon, which then checks itself; or let this command read the same file: "
    "AUDIOFORK_ASTERISK_SECRET_FILE=/etc/audiofork/ami-secret audiofork check"
)
UNREACHABLE = (
    'Is Asterisk running (asterisk -rx "core show version")? If it is: audiofork setup, as root on '
    "its machine, lets the daemon in. By hand, in manager.conf: enabled = yes, and bindaddr and "
    'port as in [asterisk] host and port (asterisk -rx "manager show settings"). With [asterisk] '
    "tls = yes the port is that of tlsbindaddr, and ca_file names the authority of its certificate."
)
CLOCK = (
    "Times in logs and call records cannot be compared, and valid certificates may seem expired. "
    "Synchronize both machines by NTP: timedatectl set-ntp true."
)
LISTEN = "[audiosocket] listen must be an address of this machine, such as 127.0.0.1:9093."
FRONT = (
    "[front] listen must be an address of this machine, and a port that no other program uses: not "
    "Asterisk's own 5038. AMI clients connect to that port."
)
TAKEN = (
    "ss -ltnp, as root, shows which program it is. If it is another program: stop it, or choose "
    "another port in [audiosocket] listen and restart the daemon. If it is the daemon: its log "
    "says whether it is connected to this Asterisk; after an upgrade or a change of [audiosocket], "
    "systemctl restart audiofork."
)
RESTART = "Changes to [audiosocket] take effect at the next start: systemctl restart audiofork."
OTHER_SOCKET = (
    "The commands list, start, stop and mute cannot ask it. Set [control] socket to the path that "
    "it was started with, or restart it (systemctl restart audiofork) if that socket was removed."
)
ADVERTISE = (
    "[audiosocket] advertise (empty: listen) must be the address of this machine as Asterisk's "
    "machine sees it, on the port of listen, and no firewall may be between them. With two "
    "machines, listen cannot be 127.0.0.1."
)
NO_NEWS = " Without read = call in manager.conf Asterisk does not report the reason."
NO_OPTION_D = (
    "The directions out and stereo need Asterisk 18.22, 20.7, 21.2, 22 or later; in and both work "
    "with this one."
)
BUSY = " If a timing module is loaded, the machine is too busy: look at its load."
TIMING = ' asterisk -rx "timing test" shows which one Asterisk uses.'
TICKS_ARE_LOST = (
    f"snoop: {TIMERFD} skips ticks that a busy machine misses, and half a second of audio is "
    f"lost after some 25; put noload => {TIMERFD} into [modules] of modules.conf and restart "
    f"Asterisk, which then uses {TIMING_MODULES[0]}, which catches up"
)
NOT_THE_TONE = (
    "Something on this Asterisk changes audio between two channels; please report it with the "
    'output of asterisk -rx "core show version" and "module show".'
)


def load(*modules: str) -> str:
    """Return the instructions to load modules."""
    commands = "".join(f'  asterisk -rx "module load {module}"\n' for module in modules)
    return (
        f"Run\n{commands}and make sure that modules.conf does not exclude it (noload, or autoload "
        "= no without a load line). Some distributions have it in a package of its own."
    )


RELOAD_ARI = 'then run\n  asterisk -rx "module reload res_ari.so"'
NO_PASSWORD = (
    f"{SETUP}set [ari] password_file to a file that only the daemon can read, with the password "
    "of the user in ari.conf. If systemd passes it to the service (LoadCredential), start the "
    "daemon, which then checks itself; or let this command read the same file: "
    "AUDIOFORK_ARI_PASSWORD_FILE=/etc/audiofork/ami-secret audiofork check"
)
HAVE_ARI = f"""\
With ARI, forks have in and out separately in every call, lose no frame to jitter, and can have \
wideband audio. \
{SETUP}set in audiofork.ini
  [ari]
  url = http://127.0.0.1:8088/ari
  password_file = (a file that only the daemon can read)
and do what the heads of the shipped ari_audiofork.conf and extensions_audiofork.conf say; then \
run the check again, which names what is missing."""
NO_ARI = f"""\
{SETUP}in ari.conf (with FreePBX, Advanced Settings, "Enable the Asterisk REST Interface"):
  [general]
  enabled = yes
{RELOAD_ARI}
{load(*ARI_MODULES)}
[ari] url must name what asterisk -rx "http show status" shows, and end with /ari."""
INCLUDE_EXTENSIONS = f"""\
{SETUP}copy the shipped extensions_audiofork.conf into {FOLDER}, replacing an older one, and \
add to the end of extensions.conf (with FreePBX, of extensions_custom.conf), if it is missing,
  #include extensions_audiofork.conf
then run
  asterisk -rx "dialplan reload\""""

NEWER_EXTENSIONS = (
    "The daemon is older than that file: after an upgrade, systemctl restart audiofork. If the "
    "daemon has the version that you want, run audiofork setup, which installs its own file."
)
EDITED_EXTENSIONS = (
    "If this is not intended, put the shipped file in its place (audiofork setup does that), and "
    'run asterisk -rx "dialplan reload". Put your own changes into contexts of your own: the next '
    "version of the file would undo them."
)

NAME_HOSTS = (
    "Whoever may start a fork, such as each AMI user with write = user, can send any call "
    "there. Name your servers: [security] allow_urls = wss://speech.example.org, and reload the "
    "daemon."
)
HTTP_TOKENS = (
    "Each line has NAME ROLES TOKEN, the roles of view, listen, control with commas, the token of "
    "20 characters or more (openssl rand -hex 24). The daemon's user has to be able to read the "
    "file (install -m 640 -g audiofork), and no user beside its group. With "
    "${CREDENTIALS_DIRECTORY}/http-tokens, systemd hands the service a copy of "
    "/etc/audiofork/http-tokens at each start."
)
HTTP_LISTEN = (
    "[http] listen must be an address of this machine, and a port that no other program uses (ss "
    "-ltnp, as root, shows which one does). Changes of it take effect at the next start: systemctl "
    "restart audiofork."
)
HTTP_TLS = (
    "Whoever sees the network may then do what its users may, and hear calls. Set [http] cert_file "
    "and key_file; or listen = 127.0.0.1:9080, behind a proxy that speaks TLS ([http] hosts has "
    "its name), or for ssh -L 9080:127.0.0.1:9080."
)
PROFILES = (
    "Without it the daemon does not start, and a reload keeps the old profiles. The daemon's user "
    "has to be able to read profiles.d and what its files name (install -m 640 -g audiofork); "
    "where systemd hands a token to the service (LoadCredential), start the daemon, which then "
    "checks itself."
)
CALLER_DATA = """\
A caller may choose a value in which a comma begins another option, another server or a command. \
Put it through URIENCODE, such as
  ${URIENCODE(${EXTEN})}
or pass the URL in a variable, which is read as a whole:
  Set(AUDIOFORK_URL=ws://127.0.0.1:8080/?called=${URIENCODE(${EXTEN})})
  ExecIf(${DIALPLAN_EXISTS(audiofork,start,1)}?Gosub(audiofork,start,1()))"""


def http_conf(url: str) -> str:
    """Return the instructions to make Asterisk listen where [ari] url says."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in ("localhost", None) else parts.hostname
    if parts.scheme == "https":
        options = f"tlsenable = yes\n  tlsbindaddr = {Address(host, parts.port or 443)}\n"
        options += "  tlscertfile = (its certificate and key, in PEM)"
    else:
        options = f"bindaddr = {host}\n  bindport = {parts.port or 80}"
    return f"""\
Is Asterisk running? If it is: audiofork setup, as root on its machine, makes it listen there. By \
hand, in http.conf (with FreePBX, Advanced Settings, "Enable the mini-HTTP Server"):
  [general]
  enabled = yes
  {options}
then run
  asterisk -rx "module reload http"
[ari] url must name what asterisk -rx "http show status" shows; with https, ca_file names the \
authority of its certificate."""


def ari_user(username: str) -> str:
    """Return the instructions to add our ARI user to Asterisk."""
    return f"""\
{SETUP}create a file in {FOLDER} that only Asterisk can read; after -g comes the group that it \
runs as:
  install -m 640 -g asterisk /dev/null /etc/asterisk/ari_audiofork.conf
Write into it, as in the shipped ari_audiofork.conf,
  [{username}]
  type = user
  read_only = no
  password = (that of [ari])
  password_format = plain
and to the end of ari.conf (with FreePBX, of ari_additional_custom.conf), if it is missing,
  #include ari_audiofork.conf
{RELOAD_ARI}
If asterisk -rx "ari show users" does not list it, check whether ari.conf includes \
ari_audiofork.conf twice: Asterisk then uses none of its users."""


def read_only(username: str) -> str:
    """Return the instructions to let our ARI user write."""
    return f"""\
{SETUP}in the section of the user, in ari.conf or a file that it includes:
  [{username}]
  read_only = no
{RELOAD_ARI}"""


def login(user: str) -> str:
    """Return the instructions to make Asterisk accept the login of our AMI user."""
    return (
        f"{SETUP}compare [asterisk] username and secret with section [{user}] of manager.conf "
        "or a file that it includes, which only Asterisk should be able to read (install -m 640 "
        "-g asterisk). Its deny and permit must allow this machine. Then run "
        f'asterisk -rx "manager reload" and asterisk -rx "manager show user {user}".'
    )


def second_login(user: str) -> str:
    """Return the instructions to let our AMI user log in more than once."""
    return (
        f"Another client, perhaps the daemon, is logged in as {user}, and manager.conf says "
        "allowmultiplelogin = no. "
        f"In section [{user}] of manager.conf or a file that it includes write "
        "allowmultiplelogin = yes, as the shipped manager_audiofork.conf does; run "
        'asterisk -rx "manager reload", and restart the daemon: it takes effect at the next login.'
    )


def rights(user: str) -> str:
    """Return the instructions to give our AMI user the rights that it needs."""
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
    """Return the instructions to keep Asterisk from sending forged events to our AMI user."""
    return f"""\
Somebody could dial a whole event, and so end or start forks of other calls. {SETUP}in section \
[{user}] of manager.conf or a file that it includes:
  eventfilter(action(exclude),method(regex)) = [[:cntrl:]]{{4}}[^[:cntrl:]]
or, before Asterisk 18.26, 20.11, 21.6 and 22.1,
  eventfilter = ![[:cntrl:]]{{4}}[^[:cntrl:]]
then run
  asterisk -rx "manager reload\""""
