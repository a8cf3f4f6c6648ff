"""How TLS is spoken."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from audiofork.relay.client_tls import client_tls
from audiofork.text import why
from audiofork.tls_contexts import client_context, server_context


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate and its key, in one file."""
    path = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


def test_client_verifies_certificate_and_name_from_tls_1_2_on() -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("curve", "agrees"), [("prime256v1", True), ("secp384r1", False), ("secp521r1", False)]
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_agrees_to_no_key_exchange_but_one_that_is_cheap(
    tmp_path: Path, curve: str, agrees: bool, version: ssl.TLSVersion
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    server.set_ecdh_curve(curve)
    server.maximum_version = version
    client = client_context(str(tmp_path / "ca.pem"))
    down, up = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="localhost")
    theirs = server.wrap_bio(up, down, server_side=True)
    refused = False
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            refused = True
            break
    assert refused is not agrees


def test_client_offers_no_numbers_of_the_servers_own() -> None:
    exchanges = {cipher["kea"] for cipher in client_context().get_ciphers()}
    assert exchanges == {"kx-any", "kx-ecdhe"}  # the former of TLS 1.3, by the curves


def test_client_trusts_the_authorities_of_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    assert client_context(str(path)).cert_store_stats()["x509_ca"] == 1


def test_authorities_may_have_comments_in_any_script(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    comment = "Größte Autorität \N{CJK UNIFIED IDEOGRAPH-4E16}\n".encode()
    path.write_bytes(comment + trustme.CA().cert_pem.bytes() + b"\xff\n")
    assert client_context(str(path)).cert_store_stats()["x509_ca"] == 1


def test_file_that_is_none_or_too_big_is_not_opened(certificate: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.pem"
    big.write_bytes(certificate.read_bytes() + b"\n" * (1 << 20))
    os.mkfifo(tmp_path / "pipe")
    for path in (big, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file|larger than 1 MiB"):
            client_context(str(path))
        with pytest.raises(OSError, match="not a regular file|larger than 1 MiB"):
            server_context(path)
        with pytest.raises(OSError, match="not a regular file|larger than 1 MiB"):
            server_context(certificate, path)


def test_nothing_is_left_of_what_was_loaded(certificate: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    server_context(certificate, certificate)
    client_context(str(certificate))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, FileNotFoundError), ("nonsense", OSError)],
    ids=["missing", "nonsense"],
)
def test_client_with_a_file_that_cannot_be_used_raises(
    tmp_path: Path, content: str | None, error: type[OSError]
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=r"ca\.pem"):
        client_context(str(path))


def test_server_asks_for_no_certificate_from_tls_1_2_on(certificate: Path) -> None:
    context = server_context(certificate, "")
    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_server_with_the_key_of_another_certificate_raises(
    certificate: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(other)
    with pytest.raises(OSError, match="the key does not belong to the certificate: .*other.pem"):
        server_context(certificate, other)


def test_server_with_a_key_that_has_a_passphrase_raises_and_asks_nobody(
    certificate: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.pem"
    # A program of its own: asked for a passphrase, OpenSSL opens the terminal.
    command = ["openssl", "pkcs8", "-topk8", "-in", str(certificate), "-out", str(locked)]
    subprocess.run([*command, "-passout", "pass:hunter2"], check=True, capture_output=True)
    with pytest.raises(OSError, match="the key is encrypted, .*locked.pem"):
        server_context(certificate, locked)


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        ("nonsense", None, "nonsense: contains no PEM certificate"),
        ("cert", None, "cert: contains no PEM private key"),
        ("cert", "nonsense", "nonsense: contains no PEM private key"),
        ("key", "key", "key: contains no PEM certificate"),
        ("damaged", "key", "damaged: a certificate or key in it is damaged"),
        ("cert", "folder", "folder: a folder, not a file"),
        ("none", "key", "none: No such file or directory"),
    ],
)
def test_server_with_files_that_cannot_serve_names_the_file_and_what_it_lacks(
    tmp_path: Path, cert: str, key: str | None, says: str
) -> None:
    leaf = trustme.CA().issue_cert("localhost")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    leaf.private_key_pem.write_to_path(tmp_path / "key")
    (tmp_path / "nonsense").write_text("nonsense")
    (tmp_path / "damaged").write_bytes(leaf.cert_chain_pems[0].bytes()[:200])
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r".*") as caught:
        server_context(tmp_path / cert, tmp_path / key if key else None)
    assert why(caught.value) == f"{tmp_path}/{says}"


# --- What a hostile peer may not do --------------------------------------------------------------


def certified(name: x509.Name, names: Sequence[x509.GeneralName], path: Path) -> None:
    """Write a certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    how = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + key.private_bytes(*how))


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ...]:
    """Connect a client and a server on localhost in memory; return both ends, the client first."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends


ALL_CLIENTS = [client_context, client_tls]


@pytest.mark.parametrize("client_of", ALL_CLIENTS)
def test_certificate_with_a_common_name_alone_is_refused(
    tmp_path: Path, client_of: Callable[[str], ssl.SSLContext]
) -> None:
    path = tmp_path / "both.pem"
    certified(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), [], path)
    with pytest.raises(ssl.SSLCertVerificationError, match="[Hh]ostname mismatch"):
        shake_hands(client_of(str(path)), server_context(path))


@pytest.mark.parametrize("client_of", ALL_CLIENTS)
def test_certificate_with_the_name_as_an_alternative_is_accepted(
    tmp_path: Path, client_of: Callable[[str], ssl.SSLContext]
) -> None:
    path = tmp_path / "both.pem"
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
    certified(other, [x509.DNSName("localhost")], path)
    client, _ = shake_hands(client_of(str(path)), server_context(path))
    assert client.version() == "TLSv1.3"


def test_no_context_lets_its_peer_renegotiate(certificate: Path) -> None:
    for context in (client_context(), client_tls(""), server_context(certificate)):
        assert context.options & ssl.OP_NO_RENEGOTIATION
