# SPDX-License-Identifier: Apache-2.0
"""check_code.py LIBRARY: what the CUDA kernels embedded in it are compiled for. Tuned ones: machine code for 9.0a. All
others: machine code for 8.0, which serves 8.x, and for 9.0, and PTX from which a driver makes code for every later device."""
import struct
import sys

PTX, MACHINE = 1, 2
ONE_ARCHITECTURE = 0x100000  # flag: code that runs on no other, such as 9.0a
TUNED = {(MACHINE, "90a")}
GENERATED = {(MACHINE, "80"), (MACHINE, "90"), (PTX, "90")}


def containers(data):
    """Of each fat binary in the bytes, the set of (kind, architecture)."""
    magic, at = struct.pack("<IHH", 0xBA55ED50, 1, 16), 0
    while (at := data.find(magic, at)) >= 0:
        at, end = at + 16, at + 16 + struct.unpack_from("<Q", data, at + 8)[0]
        found = set()
        while at < end:
            kind, header, size, arch, flags = struct.unpack_from("<H2xIQ12xI8xQ", data, at)
            found.add((kind, "%d%s" % (arch, "a" if flags & ONE_ARCHITECTURE else "")))
            at += header + size
        yield found


def main():
    with open(sys.argv[1], "rb") as file:
        found = list(containers(file.read()))
    tuned, generated = found.count(TUNED), found.count(GENERATED)
    print("%d fat binaries: %d for 9.0a, %d for 8.0, 9.0 and later" % (len(found), tuned, generated))
    for other in found:
        if other not in (TUNED, GENERATED):
            print("one has %s" % sorted(other))
    return tuned == 0 or generated == 0 or tuned + generated != len(found)


if __name__ == "__main__":
    sys.exit(main())
