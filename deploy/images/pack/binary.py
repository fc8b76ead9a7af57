"""Looks into a binary before it goes into an image: it must be static, and tell nothing of the machine that built it."""

import struct

from .workspace import Trouble

INTERPRETER = 3  # PT_INTERP


def interpreter(data):
    """Whether a 64-bit ELF file asks for a dynamic linker, which a scratch image does not have."""
    if data[:5] != b"\x7fELF\x02":
        raise Trouble("not a 64-bit ELF file")
    start, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    return any(struct.unpack_from("<I", data, start + number * size)[0] == INTERPRETER for number in range(count))


def check(path, private):
    data = path.read_bytes()
    if interpreter(data):
        raise Trouble(f"{path} is not static: it asks for a dynamic linker")
    for place in private:
        if place.encode() in data:
            raise Trouble(f"{path} names a directory of this machine: {place}")
