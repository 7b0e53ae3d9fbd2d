/* SPDX-License-Identifier: Apache-2.0
 *
 * Environment values: each parser takes any text, stays within its buffers, and leaves its output alone on failure.
 */
#include <stdlib.h>
#include <string.h>

#include "core/env.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_numbers(const char *text) {
    int32_t device = -7;
    if (mobai_env_parse_device(text, &device) ? device < 0 || device > 1023 : device != -7) abort();
    moba_log_level level = MOBA_LOG_ALL;
    if (!mobai_env_parse_level(text, &level) && level != MOBA_LOG_ALL) abort();
    bool flag = true;
    if (!mobai_env_parse_flag(text, &flag) && !flag) abort();
}

static void check_lists(const char *text) {
    char bad[8] = "none", pattern[8], item[8];
    mobai_cap_set hidden = 42;
    if (!mobai_env_parse_caps_mask(text, &hidden, bad, sizeof bad) && hidden != 42) abort();
    if (strlen(bad) >= sizeof bad) abort();
    if (mobai_env_check_kernel(text, bad, sizeof bad) &&
        mobai_env_kernel_pattern(text, "attend", pattern, sizeof pattern) && strlen(pattern) >= sizeof pattern) {
        abort();
    }
    size_t n_items = 0;
    for (const char *rest = text; rest != NULL; n_items++) {
        rest = mobai_env_next_item(rest, item, sizeof item);
        if (strlen(item) >= sizeof item || strchr(item, ',') != NULL) abort();
    }
    size_t n_commas = 0;
    for (const char *at = text; *at != '\0'; at++)
        n_commas += *at == ',';
    if (n_items != n_commas + 1) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    if (text == NULL) return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    check_numbers(text);
    check_lists(text);
    free(text);
    return 0;
}
