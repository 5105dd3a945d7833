"""What enciphers one value with a key that lies in the configuration file, or not at all.

Source: k8s.io/apiserver/pkg/storage/value/encrypt/{aes,identity,secretbox}.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

Transform = Callable[[bytes, bytes], bytes]
PREFIX = b"k8s:enc:"


class Cipher(Protocol):
    """`seal` and `open` take a value and the storage key that it belongs to; what they raise refuses the value.

    prefix: of what it writes. `mark` names the key that it writes with, `mark_of` that of a sealed value.
    """

    prefix: bytes

    def seal(self, value: bytes, key: bytes) -> bytes: ...

    def open(self, value: bytes, key: bytes) -> bytes: ...

    def mark(self) -> bytes: ...

    def mark_of(self, value: bytes) -> bytes: ...


class Keyed:
    """A cipher with one key; kind: as in the configuration file."""

    def __init__(self, kind: str, name: str, seal: Transform, open: Transform) -> None:
        self.prefix = b"%b%b:v1:%b:" % (PREFIX, kind.encode(), name.encode())
        self._seal, self._open = seal, open

    def seal(self, value: bytes, key: bytes) -> bytes:
        return self._seal(value, key)

    def open(self, value: bytes, key: bytes) -> bytes:
        return self._open(value, key)

    def mark(self) -> bytes:
        return self.prefix

    def mark_of(self, value: bytes) -> bytes:
        return self.prefix


class Identity:
    """Values as they are."""

    prefix = b""

    def seal(self, value: bytes, key: bytes) -> bytes:
        return value

    def open(self, value: bytes, key: bytes) -> bytes:
        if value.startswith(PREFIX):
            raise ValueError("identity transformer tried to read encrypted data")
        return value

    def mark(self) -> bytes:
        return b""

    def mark_of(self, value: bytes) -> bytes:
        return b""


def gcm(secret: bytes) -> tuple[Transform, Transform]:
    """AES-GCM with a random nonce; the storage key is authenticated as well."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(secret)

    def seal(value: bytes, key: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + cipher.encrypt(nonce, value, key)

    return seal, lambda value, key: cipher.decrypt(value[:12], value[12:], key)


def cbc(secret: bytes) -> tuple[Transform, Transform]:
    """AES-CBC with PKCS#7 padding."""
    from cryptography.hazmat.primitives.ciphers import Cipher as Block
    from cryptography.hazmat.primitives.ciphers import algorithms, modes
    from cryptography.hazmat.primitives.padding import PKCS7

    def seal(value: bytes, key: bytes) -> bytes:
        start = os.urandom(16)
        padder, encryptor = PKCS7(128).padder(), Block(algorithms.AES(secret), modes.CBC(start)).encryptor()
        return start + encryptor.update(padder.update(value) + padder.finalize()) + encryptor.finalize()

    def open(value: bytes, key: bytes) -> bytes:
        decryptor = Block(algorithms.AES(secret), modes.CBC(value[:16])).decryptor()
        unpadder = PKCS7(128).unpadder()
        return unpadder.update(decryptor.update(value[16:]) + decryptor.finalize()) + unpadder.finalize()

    return seal, open


def secretbox(secret: bytes) -> tuple[Transform, Transform]:
    """XSalsa20 with Poly1305; a nonce of 24 octets stands before the value."""
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    box = SecretBox(secret)

    def open(value: bytes, key: bytes) -> bytes:
        try:
            return box.decrypt(value)
        except CryptoError:
            raise ValueError("output array was not large enough for encryption") from None

    return lambda value, key: bytes(box.encrypt(value)), open


#: kind in the configuration file -> what makes its transforms, octets that its secrets may have.
KINDS: dict[str, tuple[Callable[[bytes], tuple[Transform, Transform]], tuple[int, ...]]] = {
    "aesgcm": (gcm, (16, 24, 32)),
    "aescbc": (cbc, (16, 24, 32)),
    "secretbox": (secretbox, (32,)),
}
