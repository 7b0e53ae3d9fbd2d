/* SPDX-License-Identifier: Apache-2.0 */
#include "core/env.h"

#include <stdlib.h>
#include <string.h>

#include "core/plan.h"

const mobai_env_row mobai_env_table[MOBAI_ENV_COUNT] = {
    [MOBAI_ENV_BACKEND] = {"MOBA_BACKEND",
                           "backends to try in order, e.g. cuda,vulkan,cpu; unset: the best usable device"},
    [MOBAI_ENV_DEVICE] = {"MOBA_DEVICE", "device index within the backend; unset: the best"},
    [MOBAI_ENV_KERNEL] = {"MOBA_KERNEL", "force kernels by name pattern, e.g. attend=*avx2*,gate=*avx2*"},
    [MOBAI_ENV_CAPS_MASK] = {"MOBA_CAPS_MASK", "hide capabilities, e.g. -avx512,-wgmma"},
    [MOBAI_ENV_VERBOSE] = {"MOBA_VERBOSE", "none, error, dispatch, plan, run or all; lines go to stderr"},
    [MOBAI_ENV_CACHE_DIR] = {"MOBA_CACHE_DIR", "folder for compiled device programs; unset: no cache on disk"},
    [MOBAI_ENV_VALIDATE] = {"MOBA_VALIDATE", "1: check selections and cu_seqlens in every run (reads them back)"},
};

const char *mobai_env_get(mobai_env_variable variable) {
    const char *value = getenv(mobai_env_table[variable].name);
    return value && value[0] ? value : NULL;
}

bool mobai_env_parse_device(const char *text, int32_t *out) {
    int32_t value = 0;
    size_t n = 0;
    for (; text[n] >= '0' && text[n] <= '9' && n < 5; n++)
        value = value * 10 + (text[n] - '0');
    if (n == 0 || text[n] != '\0' || value > 1023) return false;
    *out = value;
    return true;
}

bool mobai_env_parse_level(const char *text, moba_log_level *out) {
    static const char *const names[] = {"none", "error", "dispatch", "plan", "run", "all"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (moba_log_level)i;
            return true;
        }
    return false;
}

bool mobai_env_parse_flag(const char *text, bool *out) {
    if ((text[0] != '0' && text[0] != '1') || text[1] != '\0') return false;
    *out = text[0] == '1';
    return true;
}

const char *mobai_env_next_item(const char *text, char *item, size_t capacity) {
    size_t length = strcspn(text, ",");
    size_t kept = length < capacity - 1 ? length : capacity - 1;
    memcpy(item, text, kept);
    item[kept] = '\0';
    return text[length] == ',' ? text + length + 1 : NULL;
}

static void copy_cut(char *to, size_t capacity, const char *from) {
    size_t length = strlen(from);
    if (length > capacity - 1) length = capacity - 1;
    memcpy(to, from, length);
    to[length] = '\0';
}

bool mobai_env_parse_caps_mask(const char *text, mobai_cap_set *hidden, char *bad, size_t bad_capacity) {
    mobai_cap_set set = 0;
    while (text) {
        char item[64];
        text = mobai_env_next_item(text, item, sizeof item);
        mobai_cap_set bit = 0;
        for (size_t i = 0; item[0] == '-' && i < mobai_n_cap_names; i++)
            if (strcmp(item + 1, mobai_cap_names[i].name) == 0) bit = mobai_cap_names[i].bit;
        if (!bit) {
            copy_cut(bad, bad_capacity, item);
            return false;
        }
        set |= bit;
    }
    *hidden = set;
    return true;
}

/** Splits "stage=pattern" in place; false when it is not of that form. */
static bool split_kernel_item(char *item, char **pattern) {
    char *equal = strchr(item, '=');
    if (!equal || equal[1] == '\0') return false;
    *equal = '\0';
    *pattern = equal + 1;
    return true;
}

bool mobai_env_check_kernel(const char *text, char *bad, size_t bad_capacity) {
    while (text) {
        char item[160], *pattern;
        text = mobai_env_next_item(text, item, sizeof item);
        copy_cut(bad, bad_capacity, item);
        if (!split_kernel_item(item, &pattern)) return false;
        if (mobai_stage_from_name(item) == MOBAI_STAGE_COUNT) return false;
    }
    return true;
}

bool mobai_env_kernel_pattern(const char *text, const char *stage, char *out, size_t capacity) {
    while (text) {
        char item[160], *pattern;
        text = mobai_env_next_item(text, item, sizeof item);
        if (split_kernel_item(item, &pattern) && strcmp(item, stage) == 0) {
            copy_cut(out, capacity, pattern);
            return true;
        }
    }
    return false;
}
