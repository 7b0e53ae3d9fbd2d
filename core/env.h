/* SPDX-License-Identifier: Apache-2.0
 *
 * Environment variables: one table, one reader. Values are read when a context is created (MOBA_VERBOSE: at the
 * first log line) and never again for that object.
 */
#ifndef MOBAI_ENV_H
#define MOBAI_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/backend.h"

typedef enum mobai_env_variable {
    MOBAI_ENV_BACKEND,
    MOBAI_ENV_DEVICE,
    MOBAI_ENV_KERNEL,
    MOBAI_ENV_CAPS_MASK,
    MOBAI_ENV_VERBOSE,
    MOBAI_ENV_CACHE_DIR,
    MOBAI_ENV_VALIDATE,
    MOBAI_ENV_COUNT
} mobai_env_variable;

typedef struct mobai_env_row {
    const char *name;
    const char *help;
} mobai_env_row;
extern const mobai_env_row mobai_env_table[MOBAI_ENV_COUNT];

/** Value of a variable; NULL when unset or empty. Points into the environment. */
const char *mobai_env_get(mobai_env_variable variable);

/* Parsers. Each returns false and leaves *out alone when the text cannot be read. */

/** A decimal device index, 0..1023. */
bool mobai_env_parse_device(const char *text, int32_t *out);
/** "none", "error", "dispatch", "plan", "run", "all". */
bool mobai_env_parse_level(const char *text, moba_log_level *out);
/** "0" or "1". */
bool mobai_env_parse_flag(const char *text, bool *out);
/** "-name,-name": bits to hide. On failure the first unknown item, cut to fit, is in `bad`. */
bool mobai_env_parse_caps_mask(const char *text, mobai_cap_set *hidden, char *bad, size_t bad_capacity);
/** Next item of a comma-separated list: copies it to `item` (cut to fit), returns the rest, NULL at the end. */
const char *mobai_env_next_item(const char *text, char *item, size_t capacity);
/** "stage=pattern,stage=pattern": true when every item is of that form and names a stage. */
bool mobai_env_check_kernel(const char *text, char *bad, size_t bad_capacity);
/** The pattern `text` (a checked MOBA_KERNEL or NULL) gives for `stage`; false: none. */
bool mobai_env_kernel_pattern(const char *text, const char *stage, char *pattern, size_t capacity);

#endif
