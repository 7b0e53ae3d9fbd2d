# SPDX-License-Identifier: Apache-2.0
"""check_code.py READELF OBJDUMP FILE.co...: what the code objects, of version 5, say of their kernels. A kernel must not
spill vector registers, have no instruction that touches a lane's own memory (room that is only reserved costs nothing),
and leave registers and shared memory for at least two waves a SIMD; kernels on matrix cores must use them in loops."""
import re
import subprocess
import sys

# Shared memory of a compute unit, at least, and its SIMDs (a work-group processor of RDNA is two of these).
MAX_SHARED_BYTES = 65536
SIMDS = {64: 4, 32: 2}
# Vector registers of a SIMD lane and their granularity for two waves: CDNA 2 and later 512, RDNA (wave32) 1024 or more.
MAX_VGPRS = {64: 256, 32: 256}


def kernels_of(text):
    """Dictionaries of the fields of each kernel in llvm-readelf's printout of the notes."""
    part = text[text.index("amdhsa.kernels:"):]
    for block in re.split(r"\n  - (?=\.)", part)[1:]:
        yield {m[1]: m[2] for m in re.finditer(r"^ *\.(\w+): +(\S+)", block, re.M)}


def read_instructions(objdump, path):
    """The first instruction that touches a lane's own memory, or None; and of each kernel with matrix instructions in
    loops their kinds and number there."""
    found, products = None, {}
    kernel, begin, made, jumps = "", 0, [], []

    def end_kernel():
        loops = [(target, at) for at, target in jumps if target <= at]
        inside = [kind for at, kind in made if any(low <= at <= high for low, high in loops)]
        if inside:
            products[kernel] = (set(inside), len(inside))

    with subprocess.Popen([objdump, "-d", path], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if m := re.match(r"([0-9a-f]+) <(.+)>:", line):
                end_kernel()
                kernel, begin, made, jumps = m[2], int(m[1], 16), [], []
            elif found is None and re.match(r"\s+(scratch|buffer)_(load|store)", line):
                found = f"{kernel} {line.split('//')[0].strip()}"
            elif m := re.match(r"\s+v_(mfma|wmma)_f32_16x16x16_?b?f16.*// ([0-9A-F]+):", line):
                made.append((int(m[2], 16), m[1]))
            elif m := re.match(r"\s+s_c?branch.*// ([0-9A-F]+):.*<\w+(?:\+0x([0-9a-f]+))?>", line):
                jumps.append((int(m[1], 16), begin + int(m[2] or "0", 16)))
        end_kernel()
    return found, products


def products_of_a_tile(wave):
    """Kernels on matrix cores, and the matrix instructions of a wave in one turn of the loop over tiles."""
    for dtype in ("f16", "bf16"):
        for dim in (64, 128):
            # 16 rows (32 in waves of 64), 32 keys: scores, and values.
            yield f"moba_attend_matrix_{dtype}_d{dim}", (wave // 32) * 2 * 2 * dim // 16
            # 32 centroids, of 128 rows each wave has 128 / (256 / wave).
            for picks in (8, 16, 32):
                yield f"moba_gate_matrix_{dtype}_d{dim}_k{picks}", (128 * wave // 256) * 2 // 16 * dim // 16


def check_products(arch, wave, products):
    wanted = {"9": "mfma", "1": "wmma"}[arch[3]]
    for kernel, least in products_of_a_tile(wave):
        kinds, n = products.get(kernel, (set(), 0))
        if kinds != {wanted} or n < least:
            yield f"{arch} {kernel}: {n} {sorted(kinds)} instructions in loops, not {least} {wanted}"


def main(readelf, objdump, files):
    bad, total = [], 0
    for path in files:
        arch = re.search(r"(gfx\w+)\.co$", path)[1]
        wave = 64 if arch.startswith("gfx9") else 32
        text = subprocess.run([readelf, "--notes", path], capture_output=True, text=True, check=True).stdout
        names, most = set(), 0
        if not re.search(rf"amdhsa.target: +amdgcn-amd-amdhsa--{arch}$", text, re.M):
            bad.append(f"{path} is not for {arch}")
        if not re.search(r"amdhsa.version: *\n +- 1\n +- 2\n", text):
            bad.append(f"{path}: its notes are not those of code object version 5 (1.2)")
        for k in kernels_of(text):
            names.add(k["symbol"])
            vgprs, shared = int(k["vgpr_count"]), int(k["group_segment_fixed_size"])
            most = max(most, vgprs)
            if int(k["vgpr_spill_count"]) > 0:
                bad.append(f"{arch} {k['symbol']}: {k['vgpr_spill_count']} vector registers spilled")
            groups = MAX_SHARED_BYTES // max(shared, 1)
            if groups * int(k["max_flat_workgroup_size"]) < 2 * wave * SIMDS[wave]:
                bad.append(f"{arch} {k['symbol']}: {shared} bytes of shared memory leave less than two waves a SIMD")
            if int(k["wavefront_size"]) != wave:
                bad.append(f"{arch} {k['symbol']}: waves of {k['wavefront_size']} lanes, not {wave}")
            if vgprs > MAX_VGPRS[wave]:
                bad.append(f"{arch} {k['symbol']}: {vgprs} registers, above {MAX_VGPRS[wave]}")
        touching, products = read_instructions(objdump, path)
        if touching:
            bad.append(f"{arch} {touching}")
        if not arch.startswith("gfx10"):
            bad.extend(check_products(arch, wave, products))
        print(f"{arch}: {len(names)} kernels, at most {most} vector registers")
        if len(names) < 50:
            bad.append(f"{arch}: only {len(names)} kernels")
        total += len(names)
    print("\n".join(bad) or f"{total} kernels are right")
    return bool(bad) or not total


sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
