/* SPDX-License-Identifier: Apache-2.0
 *
 * Error sentences, log lines, and allocation: the three things every file of the library needs.
 */
#ifndef MOBAI_STATUS_H
#define MOBAI_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#include "moba/moba.h"

/** Sets the thread's error sentence (printf-style), logs it at MOBA_LOG_ERROR, and returns `status`. */
moba_status mobai_fail(moba_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** True when lines of `level` are wanted: check before costly formatting. */
bool mobai_log_enabled(moba_log_level level);
void mobai_log(moba_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define MOBAI_TRY(expression)                                                                                          \
    do {                                                                                                               \
        moba_status mobai_try_status = (expression);                                                                   \
        if (mobai_try_status != MOBA_OK) return mobai_try_status;                                                      \
    } while (0)

/** a * b and a + b in size_t; false on overflow, and *out is then untouched. */
bool mobai_mul_size(size_t a, size_t b, size_t *out);
bool mobai_add_size(size_t a, size_t b, size_t *out);

#endif
