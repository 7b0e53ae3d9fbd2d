/* SPDX-License-Identifier: Apache-2.0
 *
 * The `moba` program: finds the subcommand and calls it.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/progress.h"

typedef struct subcommand {
    const char *name;
    const char *full_name;
    const char *help;
    int (*run)(int argc, char **argv);
} subcommand;

static const subcommand subcommands[] = {
    {"info", "moba info", "backends, devices, capabilities, and why a backend cannot be used", mobai_cli_info},
    {"run", "moba run", "attention of q, k, v from .npy or .safetensors files; gradients too", mobai_cli_run},
    {"bench", "moba bench", "time problems on every backend, verified against float64; JSON lines", mobai_cli_bench},
    {"compare", "moba compare", "measurements of several backends and machines side by side; a page with plots",
     mobai_cli_compare},
    {"advise", "moba advise", "which block_size and top_k to choose, and where MoBA beats dense", mobai_cli_advise},
    {"explain", "moba explain", "the kernels and memory a problem would use, and why", mobai_cli_explain},
};
#define N_SUBCOMMANDS (sizeof subcommands / sizeof subcommands[0])

static void print_usage(FILE *out) {
    fprintf(out, "Usage: moba SUBCOMMAND [OPTION...]\n"
                 "Mixture-of-Block-Attention on CPUs and GPUs.\n\n");
    for (size_t i = 0; i < N_SUBCOMMANDS; i++)
        fprintf(out, "  %-8s %s\n", subcommands[i].name, subcommands[i].help);
    fprintf(out, "\n`moba SUBCOMMAND --help` tells the options of each; `moba --version` prints the version.\n"
                 "Exit codes: 0 done; 1 a check failed; 2 bad usage, unreadable input or unwritable output;\n"
                 "3 the backend is unknown, not built or not usable; 4 the run failed (out of memory, device lost).\n");
}

/** A full disk or a closed descriptor must not look like success. */
static int check_stdout(int exit_code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return exit_code;
    if (exit_code != MOBAI_EXIT_OK) return exit_code;
    return mobai_cli_error(MOBAI_EXIT_USAGE, "cannot write standard output: %s", strerror(errno));
}

int main(int argc, char **argv) {
    static char version[64];
    snprintf(version, sizeof version, "moba %s", moba_version());
    argp_program_version = version;
    argp_err_exit_status = MOBAI_EXIT_USAGE;
    mobai_json_guard();

    if (argc < 2) {
        print_usage(stderr);
        return MOBAI_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "-?") == 0) {
        print_usage(stdout);
        return check_stdout(MOBAI_EXIT_OK);
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        puts(version);
        return check_stdout(MOBAI_EXIT_OK);
    }
    for (size_t i = 0; i < N_SUBCOMMANDS; i++) {
        if (strcmp(argv[1], subcommands[i].name) != 0) continue;
        char full_name[32];
        snprintf(full_name, sizeof full_name, "%s", subcommands[i].full_name);
        argv[1] = full_name;
        mobai_cli_set_name(subcommands[i].full_name);
        int exit_code = subcommands[i].run(argc - 1, argv + 1);
        mobai_progress_end();
        return check_stdout(exit_code);
    }
    char shown[64];
    mobai_cli_error(MOBAI_EXIT_USAGE, "unknown subcommand '%s'",
                    mobai_printable(shown, sizeof shown, argv[1], strlen(argv[1])));
    print_usage(stderr);
    return MOBAI_EXIT_USAGE;
}
