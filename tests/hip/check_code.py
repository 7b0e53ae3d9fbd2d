# SPDX-License-Identifier: Apache-2.0
"""check_code.py READELF OBJDUMP FILE.co...: what the code objects say of their kernels. A kernel must not spill vector
registers, have no instruction that touches a lane's own memory (room that is only reserved costs nothing), fit shared
memory, and leave registers for at least two waves a SIMD."""
import re
import subprocess
import sys

MAX_SHARED_BYTES = 65536
# Vector registers of a SIMD lane and their granularity for two waves: CDNA 2 and later 512, RDNA (wave32) 1024 or more.
MAX_VGPRS = {64: 256, 32: 256}


def kernels_of(text):
    """Dictionaries of the fields of each kernel in llvm-readelf's printout of the notes."""
    part = text[text.index("amdhsa.kernels:"):]
    for block in re.split(r"\n  - (?=\.)", part)[1:]:
        yield {m[1]: m[2] for m in re.finditer(r"^ *\.(\w+): +(\S+)", block, re.M)}


def touches_own_memory(objdump, path):
    """The first instruction that does, or None."""
    with subprocess.Popen([objdump, "-d", "--no-show-raw-insn", path], stdout=subprocess.PIPE, text=True) as process:
        kernel, found = "", None
        for line in process.stdout:
            if line.endswith(">:\n"):
                kernel = line.split()[-1]
            elif found is None and re.match(r"\s+(scratch|buffer)_(load|store)", line):
                found = f"{kernel} {line.split('//')[0].strip()}"
    return found


def main(readelf, objdump, files):
    bad, total = [], 0
    for path in files:
        arch = re.search(r"(gfx\w+)\.co$", path)[1]
        wave = 64 if arch.startswith("gfx9") else 32
        text = subprocess.run([readelf, "--notes", path], capture_output=True, text=True, check=True).stdout
        names, most = set(), 0
        if not re.search(rf"amdhsa.target: +amdgcn-amd-amdhsa--{arch}$", text, re.M):
            bad.append(f"{path} is not for {arch}")
        for k in kernels_of(text):
            names.add(k["symbol"])
            vgprs = int(k["vgpr_count"])
            most = max(most, vgprs)
            for field, limit in (("vgpr_spill_count", 0), ("group_segment_fixed_size", MAX_SHARED_BYTES)):
                if int(k[field]) > limit:
                    bad.append(f"{arch} {k['symbol']}: {field} is {k[field]}, above {limit}")
            if int(k["wavefront_size"]) != wave:
                bad.append(f"{arch} {k['symbol']}: waves of {k['wavefront_size']} lanes, not {wave}")
            if vgprs > MAX_VGPRS[wave]:
                bad.append(f"{arch} {k['symbol']}: {vgprs} registers, above {MAX_VGPRS[wave]}")
        touching = touches_own_memory(objdump, path)
        if touching:
            bad.append(f"{arch} {touching}")
        print(f"{arch}: {len(names)} kernels, at most {most} vector registers")
        if len(names) < 50:
            bad.append(f"{arch}: only {len(names)} kernels")
        total += len(names)
    print("\n".join(bad) or f"{total} kernels are right")
    return bool(bad) or not total


sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
