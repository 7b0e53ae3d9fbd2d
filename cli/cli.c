/* SPDX-License-Identifier: Apache-2.0
 *
 * Error sentences, exit codes, option values and JSON lines of the `moba` program.
 */
#include "cli/cli.h"

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"
#include "cli/progress.h"

static const char *program_name = "moba";

void mobai_cli_set_name(const char *name) { program_name = name; }

int mobai_cli_error(int exit_code, const char *format, ...) {
    mobai_progress_clear();
    va_list arguments;
    va_start(arguments, format);
    flockfile(stderr);
    fprintf(stderr, "%s: ", program_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    funlockfile(stderr);
    va_end(arguments);
    return exit_code;
}

int mobai_cli_exit_code(moba_status status) {
    switch (status) {
    case MOBA_OK:
        return MOBAI_EXIT_OK;
    case MOBA_ERROR_INVALID_ARGUMENT:
    case MOBA_ERROR_UNSUPPORTED:
    case MOBA_ERROR_INVALID_DATA:
    case MOBA_ERROR_BAD_ENVIRONMENT:
        return MOBAI_EXIT_USAGE;
    case MOBA_ERROR_UNKNOWN_BACKEND:
    case MOBA_ERROR_BACKEND_UNAVAILABLE:
        return MOBAI_EXIT_BACKEND;
    case MOBA_ERROR_OUT_OF_MEMORY:
    case MOBA_ERROR_WORKSPACE_TOO_SMALL:
    case MOBA_ERROR_WRONG_CONTEXT:
    case MOBA_ERROR_LAUNCH_FAILED:
    case MOBA_ERROR_DEVICE_LOST:
    case MOBA_ERROR_CAPTURE:
    case MOBA_ERROR_INTERNAL:
        break;
    }
    return MOBAI_EXIT_FAILED;
}

int mobai_cli_fail(moba_status status) {
    const char *sentence = moba_last_error();
    return mobai_cli_error(mobai_cli_exit_code(status), "%s", sentence[0] ? sentence : moba_status_name(status));
}

int mobai_cli_options(const struct argp *argp, int argc, char **argv, void *input) {
    error_t error = argp_parse(argp, argc, argv, 0, NULL, input);
    if (error == 0) return MOBAI_EXIT_OK;
    return mobai_cli_error(MOBAI_EXIT_FAILED, "the options cannot be read: %s", strerror(error));
}

void mobai_message_set(mobai_message *message, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
    message->exit_code = MOBAI_EXIT_USAGE;
}

void mobai_message_memory(mobai_message *message, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
    message->exit_code = MOBAI_EXIT_FAILED;
}

const char *mobai_printable(char *out, size_t capacity, const char *text, size_t length) {
    size_t keep = length < capacity ? length : capacity - 4;
    for (size_t i = 0; i < keep; i++)
        out[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
    strcpy(out + keep, keep < length ? "..." : "");
    return out;
}

bool mobai_parse_int(const char *text, int64_t low, int64_t high, int64_t *out) {
    if (!(text[0] >= '0' && text[0] <= '9') && text[0] != '-') return false;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < low || value > high) return false;
    *out = value;
    return true;
}

bool mobai_parse_double(const char *text, double *out) {
    if (text[0] == '\0' || strchr("0123456789+-.", text[0]) == NULL) return false;
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) return false;
    *out = value;
    return true;
}

static const char *const dtype_names[] = {[MOBA_F32] = "f32", [MOBA_F16] = "f16", [MOBA_BF16] = "bf16"};

bool mobai_parse_dtype(const char *text, moba_dtype *out) {
    for (int i = MOBA_F32; i <= MOBA_BF16; i++) {
        if (strcmp(text, dtype_names[i]) == 0) {
            *out = (moba_dtype)i;
            return true;
        }
    }
    return false;
}

const char *mobai_dtype_name(moba_dtype dtype) { return dtype_names[dtype]; }

static void *allocate_json(size_t n_bytes) {
    void *data = malloc(n_bytes);
    if (data != NULL) return data;
    mobai_output_discard();
    exit(mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory for %zu bytes of JSON", n_bytes));
}

void mobai_json_guard(void) { json_set_alloc_funcs(allocate_json, free); }

json_t *mobai_json_real(double value) { return isfinite(value) ? json_real(value) : json_null(); }

int mobai_cli_print_json(json_t *value, bool pretty) {
    if (value == NULL) return mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory while building the JSON output");
    mobai_progress_clear();
    /* 9 digits carry a float32 exactly; counts are JSON integers and exact anyway. */
    size_t flags = JSON_REAL_PRECISION(9) | (pretty ? JSON_INDENT(2) : 0u);
    int failed = json_dumpf(value, stdout, flags) != 0 || fputc('\n', stdout) == EOF || fflush(stdout) != 0;
    json_decref(value);
    if (failed) return mobai_cli_error(MOBAI_EXIT_USAGE, "cannot write standard output: %s", strerror(errno));
    return MOBAI_EXIT_OK;
}
