/* SPDX-License-Identifier: Apache-2.0 */
#include "core/status.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/env.h"

#define MOBAI_SENTENCE_CAPACITY 2048

static _Thread_local char last_error[MOBAI_SENTENCE_CAPACITY];

static moba_log_fn log_fn;
static void *log_user;
/* -1: MOBA_VERBOSE not read yet. */
static atomic_int log_level = -1;

const char *moba_status_name(moba_status status) {
    switch (status) {
    case MOBA_OK:
        return "MOBA_OK";
    case MOBA_ERROR_INVALID_ARGUMENT:
        return "MOBA_ERROR_INVALID_ARGUMENT";
    case MOBA_ERROR_UNSUPPORTED:
        return "MOBA_ERROR_UNSUPPORTED";
    case MOBA_ERROR_OUT_OF_MEMORY:
        return "MOBA_ERROR_OUT_OF_MEMORY";
    case MOBA_ERROR_WORKSPACE_TOO_SMALL:
        return "MOBA_ERROR_WORKSPACE_TOO_SMALL";
    case MOBA_ERROR_UNKNOWN_BACKEND:
        return "MOBA_ERROR_UNKNOWN_BACKEND";
    case MOBA_ERROR_BACKEND_UNAVAILABLE:
        return "MOBA_ERROR_BACKEND_UNAVAILABLE";
    case MOBA_ERROR_WRONG_CONTEXT:
        return "MOBA_ERROR_WRONG_CONTEXT";
    case MOBA_ERROR_INVALID_DATA:
        return "MOBA_ERROR_INVALID_DATA";
    case MOBA_ERROR_LAUNCH_FAILED:
        return "MOBA_ERROR_LAUNCH_FAILED";
    case MOBA_ERROR_DEVICE_LOST:
        return "MOBA_ERROR_DEVICE_LOST";
    case MOBA_ERROR_CAPTURE:
        return "MOBA_ERROR_CAPTURE";
    case MOBA_ERROR_BAD_ENVIRONMENT:
        return "MOBA_ERROR_BAD_ENVIRONMENT";
    case MOBA_ERROR_INTERNAL:
        return "MOBA_ERROR_INTERNAL";
    }
    return "MOBA_ERROR_UNKNOWN";
}

const char *moba_last_error(void) { return last_error; }

#define MOBAI_STRING_(x) #x
#define MOBAI_STRING(x) MOBAI_STRING_(x)
const char *moba_version(void) {
    return MOBAI_STRING(MOBA_VERSION_MAJOR) "." MOBAI_STRING(MOBA_VERSION_MINOR) "." MOBAI_STRING(MOBA_VERSION_PATCH);
}

void moba_set_log(moba_log_fn fn, void *user, moba_log_level level) {
    log_fn = fn;
    log_user = user;
    atomic_store(&log_level, fn ? (int)level : -1);
}

static int current_level(void) {
    int level = atomic_load(&log_level);
    if (level < 0) {
        moba_log_level parsed = MOBA_LOG_NONE;
        const char *text = mobai_env_get(MOBAI_ENV_VERBOSE);
        if (text) mobai_env_parse_level(text, &parsed);
        level = (int)parsed;
        atomic_store(&log_level, level);
    }
    return level;
}

bool mobai_log_enabled(moba_log_level level) { return (int)level <= current_level(); }

static void emit(moba_log_level level, const char *line) {
    if (log_fn)
        log_fn(log_user, level, line);
    else
        fprintf(stderr, "moba: %s\n", line);
}

void mobai_log(moba_log_level level, const char *format, ...) {
    if (!mobai_log_enabled(level)) return;
    char line[MOBAI_SENTENCE_CAPACITY];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    emit(level, line);
}

moba_status mobai_fail(moba_status status, const char *format, ...) {
    char line[MOBAI_SENTENCE_CAPACITY]; /* a backend may quote moba_last_error() in its own sentence */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    memcpy(last_error, line, sizeof line);
    if (mobai_log_enabled(MOBA_LOG_ERROR)) emit(MOBA_LOG_ERROR, last_error);
    return status;
}

bool mobai_mul_size(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

bool mobai_add_size(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b) return false;
    *out = a + b;
    return true;
}
