/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba explain`: what the library would do with a problem.
 */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/problem_string.h"
#include "cli/progress.h"

#define FIRST_CAPACITY ((size_t)1 << 14)
#define LAST_CAPACITY ((size_t)1 << 24)

typedef struct explain_options {
    const char *problem;
    const char *backend;
} explain_options;

static const struct argp_option options[] = {
    {"backend", 'b', "NAME", 0, "cpu, cuda, hip, opencl or vulkan (default: MOBA_BACKEND, else the best)", 0}, {0}};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    explain_options *o = state->input;
    if (key == 'b') {
        o->backend = argument;
    } else if (key == ARGP_KEY_ARG && o->problem == NULL) {
        o->problem = argument;
    } else if (key == ARGP_KEY_ARG) {
        argp_error(state, "unexpected argument '%s': one problem at a time", argument);
    } else if (key == ARGP_KEY_END && o->problem == NULL) {
        argp_error(state, "PROBLEM is missing");
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/** Prints the whole explanation, however long. */
static int print_explanation(const moba_plan *plan) {
    for (size_t capacity = FIRST_CAPACITY; capacity <= LAST_CAPACITY; capacity *= 2) {
        char *text = malloc(capacity);
        if (text == NULL) return mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory for %zu bytes of text", capacity);
        moba_status status = moba_plan_explain(plan, text, capacity);
        bool cut = status == MOBA_OK && strlen(text) + 1 == capacity && capacity < LAST_CAPACITY;
        if (status == MOBA_OK && !cut) {
            mobai_progress_end();
            fputs(text, stdout);
        }
        free(text);
        if (status != MOBA_OK) return mobai_cli_fail(status);
        if (!cut) break;
    }
    return MOBAI_EXIT_OK;
}

static int explain(const explain_options *o, const moba_problem *problem) {
    moba_context_options context_options = MOBA_CONTEXT_OPTIONS_INIT;
    context_options.backend = o->backend;
    moba_context *context = NULL;
    moba_plan *plan = NULL;
    mobai_progress("planning");
    moba_status status = moba_context_create(&context_options, &context);
    if (status == MOBA_OK) status = moba_plan_create(context, problem, &plan);
    int exit_code = status == MOBA_OK ? print_explanation(plan) : mobai_cli_fail(status);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
    return exit_code;
}

int mobai_cli_explain(int argc, char **argv) {
    static const struct argp argp = {
        options,
        parse_option,
        "PROBLEM",
        "Shows the kernels, memory and slices that a problem would use, their predicted times, and why other kernels "
        "were not chosen."
        "\v"
        "PROBLEM is a problem string such as b1q8192k8192h16g16d128B128t8c,bf16: sequences, query rows, keys, query "
        "heads, key-value heads, head_dim, block_size, top_k, c (causal) or n (non-causal), type; then any of sink=1, "
        "local=2, kconv=3, dense, det, lens=513+129/600+129, each after a comma.",
        NULL,
        NULL,
        NULL};
    explain_options o = {NULL, NULL};
    int exit_code = mobai_cli_options(&argp, argc, argv, &o);
    if (exit_code != MOBAI_EXIT_OK) return exit_code;

    mobai_bench_problem parsed;
    mobai_message message;
    if (!mobai_problem_parse(o.problem, false, &parsed, &message)) {
        char shown[128];
        mobai_printable(shown, sizeof shown, o.problem, strlen(o.problem));
        return mobai_cli_error(message.exit_code, "problem '%s': %s", shown, message.text);
    }
    moba_problem problem = mobai_problem_bounds(&parsed);
    exit_code = explain(&o, &problem);
    mobai_problem_free(&parsed);
    return exit_code;
}
