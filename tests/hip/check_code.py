# SPDX-License-Identifier: Apache-2.0
"""check_code.py READELF OBJDUMP FILE.co...: what the code objects say of their kernels. A kernel must not spill vector
registers, have no instruction that touches a lane's own memory (room that is only reserved costs nothing), fit shared
memory, and leave registers for at least two waves a SIMD; kernels on matrix cores must use them."""
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


def read_instructions(objdump, path):
    """The first instruction that touches a lane's own memory, or None; and the number of matrix instructions a kernel."""
    kernel, found, products = "", None, {}
    with subprocess.Popen([objdump, "-d", "--no-show-raw-insn", path], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.endswith(">:\n"):
                kernel = line.split()[-1].strip("<>:")
            elif found is None and re.match(r"\s+(scratch|buffer)_(load|store)", line):
                found = f"{kernel} {line.split('//')[0].strip()}"
            elif m := re.match(r"\s+v_(mfma|wmma)_f32_16x16x16_?b?f16", line):
                products.setdefault(kernel, set()).add(m[1])
                products[kernel, "n"] = products.get((kernel, "n"), 0) + 1
    return found, products


def check_products(arch, products):
    """A tile's products in the loop of attend: of keys and queries, and of values and probabilities."""
    wanted = {"9": "mfma", "1": "wmma"}[arch[3]]
    for dtype in ("f16", "bf16"):
        for dim in (64, 128):
            kernel = f"moba_attend_matrix_{dtype}_d{dim}"
            strips = 2 if wanted == "mfma" else 1
            least = strips * 2 * 2 * dim // 16
            if products.get(kernel) != {wanted} or products[kernel, "n"] < least:
                yield f"{arch} {kernel}: {products.get((kernel, 'n'), 0)} {wanted} instructions, fewer than {least}"


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
        touching, products = read_instructions(objdump, path)
        if touching:
            bad.append(f"{arch} {touching}")
        if not arch.startswith("gfx10"):
            bad.extend(check_products(arch, products))
        print(f"{arch}: {len(names)} kernels, at most {most} vector registers")
        if len(names) < 50:
            bad.append(f"{arch}: only {len(names)} kernels")
        total += len(names)
    print("\n".join(bad) or f"{total} kernels are right")
    return bool(bad) or not total


sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
