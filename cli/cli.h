/* SPDX-License-Identifier: Apache-2.0
 *
 * What the subcommands of the `moba` program share: exit codes, error sentences, option values, JSON lines.
 * Progress is in progress.h, tensors in files in tensor_file.h, npy.h and safetensors.h.
 */
#ifndef MOBAI_CLI_H
#define MOBAI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moba/moba.h"

/** Exit codes of the program; other tools rely on them. */
enum {
    MOBAI_EXIT_OK = 0,
    MOBAI_EXIT_CHECK = 1,   /**< a check failed */
    MOBAI_EXIT_USAGE = 2,   /**< bad usage, unreadable input, unwritable output */
    MOBAI_EXIT_BACKEND = 3, /**< the named backend is unknown, not built or not usable, or none is */
    MOBAI_EXIT_FAILED = 4   /**< the run failed: out of memory, device lost */
};

/** Subcommands. argv[0] is "moba <name>", as messages and help show it; the return value is the exit code. */
int mobai_cli_info(int argc, char **argv);
int mobai_cli_run(int argc, char **argv);
int mobai_cli_explain(int argc, char **argv);
int mobai_cli_bench(int argc, char **argv);
int mobai_cli_compare(int argc, char **argv);
int mobai_cli_advise(int argc, char **argv);

/** argp_parse(), which ends the program where the options are wrong; returns an exit code. */
struct argp;
int mobai_cli_options(const struct argp *argp, int argc, char **argv, void *input);

/** Name that error sentences start with; main sets it to "moba <subcommand>". The string is kept, not copied. */
void mobai_cli_set_name(const char *name);

/** Prints "<name>: <sentence>" and a newline on stderr, after clearing the progress line; returns `exit_code`. */
int mobai_cli_error(int exit_code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Exit code of a status that is not MOBA_OK. */
int mobai_cli_exit_code(moba_status status);

/** Prints moba_last_error() as mobai_cli_error() does; returns mobai_cli_exit_code(status). */
int mobai_cli_fail(moba_status status);

/** A sentence on its way from a parser to the user. */
typedef struct mobai_message {
    int exit_code; /**< what it means for the program */
    char text[640];
} mobai_message;

/** Sets the sentence, cut to fit, of something that is wrong with an input or an output: MOBAI_EXIT_USAGE. */
void mobai_message_set(mobai_message *message, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Sets the sentence of memory that could not be had: MOBAI_EXIT_FAILED. */
void mobai_message_memory(mobai_message *message, const char *format, ...) __attribute__((format(printf, 2, 3)));

static inline bool mobai_refused(void) { return false; }

/** mobai_message_set() whose value is false, so that parsers can `return mobai_say(...)`. A macro, so that static
 *  analysis knows the value. */
#define mobai_say(...) (mobai_message_set(__VA_ARGS__), mobai_refused())
#define mobai_say_memory(...) (mobai_message_memory(__VA_ARGS__), mobai_refused())

/** Copies `text` for use in a sentence: unprintable bytes become '?', and a longer text ends in "...". */
const char *mobai_printable(char *out, size_t capacity, const char *text, size_t length);

/** Reads a whole decimal integer in [low, high]; false when `text` is anything else. */
bool mobai_parse_int(const char *text, int64_t low, int64_t high, int64_t *out);

/** Reads a whole finite decimal number; false when `text` is anything else. */
bool mobai_parse_double(const char *text, double *out);

/** Reads f32, f16 or bf16. */
bool mobai_parse_dtype(const char *text, moba_dtype *out);
const char *mobai_dtype_name(moba_dtype dtype);

/** From now on a refusal of memory to jansson ends the program, with a sentence and MOBAI_EXIT_FAILED, and without
 *  temporary files. Left to itself jansson 2.14 goes on with texts that lack parts, and may write past them. */
void mobai_json_guard(void);

/** A JSON number; null for NaN and infinities, which JSON cannot hold. */
json_t *mobai_json_real(double value);

/** Prints `value` on stdout as one line, or indented when `pretty`, and gives up the reference. `value` NULL means that
 *  building it ran out of memory. Returns an exit code, having said what failed. */
int mobai_cli_print_json(json_t *value, bool pretty);

#endif
