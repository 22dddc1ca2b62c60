"""Certificates for tests: an authority, made for a run or given, and what it signs.

RSA of 2,048 bits and SHA-256: what iPXE knows in all its versions. The extensions are those that
RFC 5280 demands (4.2.1): Python checks them, from 3.13 on.
"""

from __future__ import annotations

import datetime
import ipaddress
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from kboot.errors import ConfigError
from kboot.server_tls import Certificate

_BITS = 2048
_DAY = datetime.timedelta(days=1)
#: What a certificate is for that is for another name.
_OTHER_NAME = "other.example"

#: EFI_CERT_X509_GUID: the certificates of a list are X.509's (UEFI specification, 32.4.1).
_X509_GUID = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
#: Who a signature in a list is of: nobody in particular.
_OWNER = uuid.UUID("6b626f6f-7400-4000-8000-000000000000")


_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority, with its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def pem(self) -> str:
        """Its certificate, for who is to trust it."""
        return _pem(self.certificate)

    def server(self, host: str, certificate: Certificate) -> str:
        """The key and the certificates of a server on `host`, a name or an address, in PEM.

        The authority's own comes last: iPXE remembers of those that it trusts no more than their
        fingerprints.
        """
        authority = new_authority("unknown") if certificate == "untrusted" else self
        key = _new_key()
        name = _OTHER_NAME if certificate == "other-name" else host
        end = _now() + (-_DAY if certificate == "expired" else 365 * _DAY)
        own = authority.sign(name, key, end)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return secret.decode() + _pem(own) + authority.pem

    def sign(self, name: str, key: rsa.RSAPrivateKey, end: datetime.datetime) -> x509.Certificate:
        """A certificate for a server until `end`."""
        return (
            _builder(name, key, end, issuer=self.certificate.subject)
            .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_signed_by(self.key), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def new_authority(name: str = "kboot test authority") -> Authority:
    """An authority that nobody knows yet."""
    key = _new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name, key, _now() + 3650 * _DAY, issuer=subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_SIGNS_CERTIFICATES, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def read_authority(path: Path) -> Authority:
    """The authority in a file: its certificate and its key, in PEM. `ConfigError` if it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls_ca: {path} cannot be read: {error.strerror}") from error
    try:
        certificate = x509.load_pem_x509_certificate(data)
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"tls_ca: {path} must have a certificate and its key, both in PEM and the key without "
            f"a password: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(f"tls_ca: the key in {path} is not an RSA key, which iPXE needs")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"tls_ca: the key in {path} is not that of its certificate")
    return Authority(certificate, key)


def signature_list(pem: str) -> bytes:
    """A certificate as UEFI has those that it trusts, see EFI_SIGNATURE_LIST."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    data = certificate.public_bytes(serialization.Encoding.DER)
    size = 16 + len(data)
    head = struct.pack("<16sIII", _X509_GUID.bytes_le, 28 + size, 0, size)
    return head + _OWNER.bytes_le + data


def _builder(
    name: str, key: rsa.RSAPrivateKey, end: datetime.datetime, *, issuer: x509.Name
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A machine's clock may be behind; iPXE itself allows for half a day.
        .not_valid_before(_now() - 30 * _DAY)
        .not_valid_after(end)
    )


def _signed_by(key: rsa.RSAPrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=_BITS)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
