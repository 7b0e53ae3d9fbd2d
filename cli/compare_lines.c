/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON lines of `moba bench` into measurements.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/compare.h"

/** Far above any line of `moba bench`; bounds the memory that a foreign file can ask for. */
enum { MAX_LINE_BYTES = 16 << 20 };

/* ----------------------------------------------------------------------------------------------- fields -- */

static bool read_text(const json_t *object, const char *name, const char **out, mobai_message *message) {
    const json_t *value = json_object_get(object, name);
    if (value == NULL) return mobai_say(message, "field '%s' is missing: not a line of `moba bench`", name);
    if (!json_is_string(value)) return mobai_say(message, "field '%s' is not a string", name);
    *out = json_string_value(value);
    return true;
}

/** A number of at least `low`; NaN for null, and when missing and not `needed`. */
static bool read_number(const json_t *object, const char *name, bool needed, double low, double *out,
                        mobai_message *message) {
    const json_t *value = json_object_get(object, name);
    *out = NAN;
    if (value == NULL && needed) return mobai_say(message, "field '%s' is missing: not a line of `moba bench`", name);
    if (value == NULL || json_is_null(value)) return true;
    if (!json_is_number(value)) return mobai_say(message, "field '%s' is not a number", name);
    *out = json_number_value(value);
    if (!(*out >= low)) return mobai_say(message, "field '%s' is %g, must be at least %g", name, *out, low);
    return true;
}

static bool read_count(const json_t *object, const char *name, int64_t *out, mobai_message *message) {
    const json_t *value = json_object_get(object, name);
    if (value == NULL) return mobai_say(message, "field '%s' is missing: not a line of `moba bench`", name);
    if (!json_is_integer(value)) return mobai_say(message, "field '%s' is not a whole number", name);
    *out = json_integer_value(value);
    if (*out < 0) return mobai_say(message, "field '%s' is %" PRId64 ", must not be negative", name, *out);
    return true;
}

static bool read_times(const json_t *object, mobai_measurement *out, mobai_message *message) {
    const json_t *ms = json_object_get(object, "ms");
    if (!json_is_object(ms)) return mobai_say(message, "field 'ms' is missing or not an object");
    if (!read_number(ms, "min", true, 0.0, &out->min_ms, message) ||
        !read_number(ms, "median", true, 0.0, &out->median_ms, message) ||
        !read_number(ms, "p90", true, 0.0, &out->p90_ms, message)) {
        return false;
    }
    if (!(out->min_ms > 0.0 && out->min_ms <= out->median_ms && out->median_ms <= out->p90_ms)) {
        return mobai_say(message, "'ms' must hold 0 < min <= median <= p90, has %g, %g, %g", out->min_ms,
                         out->median_ms, out->p90_ms);
    }
    return true;
}

static bool read_pass(const json_t *object, mobai_pass *out, mobai_message *message) {
    const char *name;
    char shown[40];
    if (!read_text(object, "pass", &name, message)) return false;
    for (int p = 0; p < 3; p++) {
        if (strcmp(name, mobai_pass_name((mobai_pass)p)) != 0) continue;
        *out = (mobai_pass)p;
        return true;
    }
    return mobai_say(message, "field 'pass' is '%s', must be fwd, bwd or route",
                     mobai_printable(shown, sizeof shown, name, strlen(name)));
}

static bool read_fields(const json_t *object, mobai_measurement *out, mobai_message *message) {
    const json_t *verified = json_object_get(object, "verified");
    if (!json_is_boolean(verified)) return mobai_say(message, "field 'verified' is missing or neither true nor false");
    out->verified = json_is_true(verified);
    return read_text(object, "device", &out->device, message) && read_text(object, "driver", &out->driver, message) &&
           read_text(object, "version", &out->version, message) &&
           read_text(object, "backend", &out->backend, message) && read_pass(object, &out->pass, message) &&
           read_times(object, out, message) &&
           read_number(object, "useful_tflops", true, 0.0, &out->useful_tflops, message) &&
           read_number(object, "gbytes", true, 0.0, &out->gbytes, message) &&
           read_number(object, "workspace_bytes", true, 0.0, &out->workspace_bytes, message) &&
           read_number(object, "saved_bytes", true, 0.0, &out->saved_bytes, message) &&
           read_number(object, "max_err", true, 0.0, &out->max_err, message) &&
           read_number(object, "rel_err", true, 0.0, &out->rel_err, message) &&
           read_count(object, "seed", &out->seed, message) && read_count(object, "repeat", &out->repeat, message) &&
           read_count(object, "threads", &out->threads, message) &&
           read_number(object, "device_copy_gbytes", false, 0.0, &out->copy_gbytes, message) &&
           read_number(object, "device_matrix_tflops", false, 0.0, &out->matrix_tflops, message);
}

/* ---------------------------------------------------------------------------------------------- problem -- */

static const char *after_number(const char *text) { return text + strspn(text, "0123456789"); }

/** "b2qNkNh16..." of "b2q8192k8192h16..."; a different number of queries stays: "b2q1kNh16...". */
static char *print_family(const mobai_bench_problem *problem, const char *text) {
    const char *q = after_number(text + 1);
    const char *k = after_number(q + 1);
    const char *rest = after_number(k + 1);
    char *family = malloc(strlen(text) + 3);
    if (family == NULL) return NULL;
    const bool same = problem->seqlen_q == problem->seqlen_k;
    sprintf(family, "%.*s%.*skN%s", (int)(q - text), text, same ? 2 : (int)(k - q), same ? "qN" : q, rest);
    return family;
}

static bool read_problem(const json_t *object, mobai_measurement *out, mobai_message *message) {
    const char *text;
    char shown[160];
    mobai_message reason;
    if (!read_text(object, "problem", &text, message)) return false;
    if (!mobai_problem_parse(text, false, &out->problem, &reason)) {
        mobai_message_set(message, "problem '%s': %s", mobai_printable(shown, sizeof shown, text, strlen(text)),
                          reason.text);
        message->exit_code = reason.exit_code;
        return false;
    }
    out->text = mobai_problem_print(&out->problem);
    if (out->text != NULL && out->problem.lens_q == NULL) out->family = print_family(&out->problem, out->text);
    if (out->text == NULL || (out->problem.lens_q == NULL && out->family == NULL)) {
        mobai_problem_free(&out->problem);
        free(out->text);
        return mobai_say_memory(message, "out of memory");
    }
    return true;
}

bool mobai_measurement_parse(const char *text, size_t length, mobai_measurement *out, mobai_message *message) {
    json_error_t error;
    *out = (mobai_measurement){.file = "", .speed_up = NAN};
    out->json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (out->json == NULL) {
        char shown[160];
        return mobai_say(message, "not a JSON line: %s (column %d)",
                         mobai_printable(shown, sizeof shown, error.text, strlen(error.text)), error.column);
    }
    bool good = json_is_object(out->json);
    if (!good) {
        mobai_message_set(message, "not a JSON object: not a line of `moba bench`");
    } else {
        good = read_fields(out->json, out, message) && read_problem(out->json, out, message);
    }
    if (!good) json_decref(out->json);
    return good;
}

void mobai_measurement_free(mobai_measurement *measurement) {
    mobai_problem_free(&measurement->problem);
    free(measurement->text);
    free(measurement->family);
    json_decref(measurement->json);
}

/* ------------------------------------------------------------------------------------------------ files -- */

typedef struct text_line {
    char *text;
    size_t length, capacity;
    bool ended; /* by a newline */
} text_line;

typedef enum line_result { LINE_READ, LINE_NONE, LINE_LONG, LINE_MEMORY } line_result;

static line_result read_line(FILE *file, text_line *line) {
    line->length = 0;
    line->ended = false;
    for (int c; (c = getc_unlocked(file)) != EOF;) {
        if (c == '\n') {
            line->ended = true;
            return LINE_READ;
        }
        if (line->length == MAX_LINE_BYTES) return LINE_LONG;
        if (line->length == line->capacity) {
            const size_t capacity = line->capacity > 0 ? 2 * line->capacity : 1024;
            char *text = realloc(line->text, capacity);
            if (text == NULL) return LINE_MEMORY;
            line->text = text;
            line->capacity = capacity;
        }
        line->text[line->length++] = (char)c;
    }
    return line->length > 0 ? LINE_READ : LINE_NONE;
}

static bool is_blank(const text_line *line) {
    for (size_t i = 0; i < line->length; i++)
        if (strchr(" \t\r", line->text[i]) == NULL || line->text[i] == '\0') return false;
    return true;
}

static mobai_measurement *append(mobai_comparison *comparison) {
    if (comparison->n == comparison->capacity) {
        const size_t capacity = comparison->capacity > 0 ? 2 * comparison->capacity : 64;
        mobai_measurement *at = realloc(comparison->at, capacity * sizeof *at);
        if (at == NULL) return NULL;
        comparison->at = at;
        comparison->capacity = capacity;
    }
    return &comparison->at[comparison->n];
}

static int read_lines(mobai_comparison *comparison, FILE *file, const char *path, const char *shown) {
    text_line line = {0};
    mobai_message message;
    int64_t number = 0;
    int exit_code = MOBAI_EXIT_OK;
    const size_t n_before = comparison->n;
    line_result result = LINE_READ;
    while (exit_code == MOBAI_EXIT_OK && (result = read_line(file, &line)) == LINE_READ) {
        number++;
        if (is_blank(&line)) continue;
        mobai_measurement *at = append(comparison);
        if (at == NULL) {
            result = LINE_MEMORY;
            break;
        }
        if (mobai_measurement_parse(line.text, line.length, at, &message)) {
            at->file = path;
            at->line = number;
            comparison->n++;
        } else {
            exit_code = mobai_cli_error(message.exit_code, "%s:%" PRId64 ": %s%s", shown, number, message.text,
                                        line.ended ? "" : "; the file ends within this line");
        }
    }
    if (result == LINE_LONG) {
        exit_code = mobai_cli_error(MOBAI_EXIT_USAGE, "%s:%" PRId64 ": a line of more than %d bytes", shown, number + 1,
                                    MAX_LINE_BYTES);
    } else if (result == LINE_MEMORY) {
        exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory at %s:%" PRId64, shown, number + 1);
    } else if (exit_code == MOBAI_EXIT_OK && ferror(file)) {
        exit_code = mobai_cli_error(MOBAI_EXIT_USAGE, "cannot read %s: %s", shown, strerror(errno));
    } else if (exit_code == MOBAI_EXIT_OK && comparison->n == n_before) {
        exit_code = mobai_cli_error(MOBAI_EXIT_USAGE, "%s: no measurement in it", shown);
    }
    free(line.text);
    return exit_code;
}

int mobai_comparison_read(mobai_comparison *comparison, const char *path) {
    const bool is_input = strcmp(path, "-") == 0;
    const char *shown = is_input ? "standard input" : path;
    FILE *file = is_input ? stdin : fopen(path, "r");
    if (file == NULL)
        return mobai_cli_error(errno == ENOMEM ? MOBAI_EXIT_FAILED : MOBAI_EXIT_USAGE, "cannot open %s: %s", shown,
                               strerror(errno));
    const int exit_code = read_lines(comparison, file, path, shown);
    if (!is_input) fclose(file);
    return exit_code;
}
