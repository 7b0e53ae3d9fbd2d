/* SPDX-License-Identifier: Apache-2.0
 *
 * The packed code objects as bytes of this library. The build lists them: EMBED(arch, "file") in hip_embed.inc and
 * CODE(arch) in hip_codes.inc.
 */
#include "backends/hip/hip.h"

#define EMBED(arch, file)                                                                                              \
    __asm__(".section .rodata\n"                                                                                       \
            ".balign 64\n"                                                                                             \
            ".globl mobai_hip_" #arch "\n"                                                                             \
            ".hidden mobai_hip_" #arch "\n"                                                                            \
            "mobai_hip_" #arch ":\n"                                                                                   \
            ".incbin \"" file "\"\n"                                                                                   \
            ".globl mobai_hip_" #arch "_end\n"                                                                         \
            ".hidden mobai_hip_" #arch "_end\n"                                                                        \
            "mobai_hip_" #arch "_end:\n"                                                                               \
            ".previous\n");
#include "hip_embed.inc"

#define CODE(arch) extern const unsigned char mobai_hip_##arch[], mobai_hip_##arch##_end[];
#include "hip_codes.inc"
#undef CODE

const hip_code hip_codes[] = {
#define CODE(arch) {#arch, mobai_hip_##arch, mobai_hip_##arch##_end},
#include "hip_codes.inc"
#undef CODE
};
const size_t hip_n_codes = sizeof hip_codes / sizeof hip_codes[0];
