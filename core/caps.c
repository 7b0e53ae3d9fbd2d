/* SPDX-License-Identifier: Apache-2.0
 *
 * Names of the capability bits, as MOBA_CAPS_MASK and `moba info` spell them.
 */
#include <stdio.h>

#include "core/backend.h"

const mobai_cap_name mobai_cap_names[] = {
    {"avx2", MOBAI_CAP_AVX2},
    {"avx512", MOBAI_CAP_AVX512},
    {"avx512bf16", MOBAI_CAP_AVX512BF16},
    {"mma", MOBAI_CAP_MMA},
    {"wgmma", MOBAI_CAP_WGMMA},
    {"mfma", MOBAI_CAP_MFMA},
    {"wmma", MOBAI_CAP_WMMA},
    {"coopmat", MOBAI_CAP_COOPMAT},
    {"fp16", MOBAI_CAP_FP16},
    {"subgroups", MOBAI_CAP_SUBGROUPS},
    {"bda", MOBAI_CAP_BDA},
};
const size_t mobai_n_cap_names = sizeof mobai_cap_names / sizeof mobai_cap_names[0];

void mobai_caps_format(mobai_cap_set set, char *text, size_t capacity) {
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < mobai_n_cap_names && used < capacity; i++)
        if (set & mobai_cap_names[i].bit) {
            int n = snprintf(text + used, capacity - used, "%s%s", used ? " " : "", mobai_cap_names[i].name);
            if (n < 0) return;
            used += (size_t)n;
        }
}
