/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba compare`: measurements of several backends, machines and versions side by side.
 */
#include <argp.h>
#include <string.h>

#include "cli/compare.h"
#include "cli/progress.h"

typedef struct compare_options {
    const char *base, *html;
    char **files; /* in argv */
    size_t n_files;
} compare_options;

enum { OPTION_HTML = 256 };

static const struct argp_option options[] = {
    {"base", 'b', "BACKEND|FILE", 0,
     "show how many times as fast each measurement is as that of BACKEND (in the same file, if it is there), or as "
     "that in FILE (of the same backend, if it is there)",
     0},
    {"html", OPTION_HTML, "FILE", 0, "write one self-contained page with plots to FILE; gnuplot draws them", 0},
    {0}};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    compare_options *o = state->input;
    switch (key) {
    case 'b':
        o->base = argument;
        return 0;
    case OPTION_HTML:
        o->html = argument;
        return 0;
    case ARGP_KEY_ARGS:
        o->files = state->argv + state->next;
        o->n_files = (size_t)(state->argc - state->next);
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "FILE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool repeats(const compare_options *o, size_t i) {
    for (size_t j = 0; j < i; j++)
        if (strcmp(o->files[i], o->files[j]) == 0) return true;
    return false;
}

int mobai_cli_compare(int argc, char **argv) {
    static const struct argp argp = {
        options,
        parse_option,
        "FILE...",
        "Joins measurements of several backends, machines and versions by problem and pass, and prints one table."
        "\v"
        "FILE holds JSON lines as `moba bench` prints them; - is standard input. Measurements of one backend on one "
        "device from different files stay apart, so that two versions can be compared; `cat` makes one file of "
        "several.\n\n"
        "Lines that were not verified are shown as such; they have no ratio, are no base, and are never plotted. "
        "Shares of the device's measured rates need lines of `moba bench --rates`.",
        NULL,
        NULL,
        NULL};
    compare_options o = {0};
    int exit_code = mobai_cli_options(&argp, argc, argv, &o);
    mobai_comparison comparison = {0};
    for (size_t i = 0; exit_code == MOBAI_EXIT_OK && i < o.n_files; i++) {
        if (repeats(&o, i)) {
            char shown[160];
            exit_code = mobai_cli_error(MOBAI_EXIT_USAGE, "%s is named twice",
                                        mobai_printable(shown, sizeof shown, o.files[i], strlen(o.files[i])));
        } else {
            exit_code = mobai_comparison_read(&comparison, o.files[i]);
        }
    }
    if (exit_code == MOBAI_EXIT_OK) exit_code = mobai_comparison_join(&comparison, o.base);
    if (exit_code == MOBAI_EXIT_OK && o.html != NULL) {
        mobai_progress("drawing %s", o.html);
        exit_code = mobai_compare_html(&comparison, o.html);
        mobai_progress_clear();
    }
    if (exit_code == MOBAI_EXIT_OK) mobai_compare_print(&comparison);
    mobai_comparison_free(&comparison);
    return exit_code;
}
