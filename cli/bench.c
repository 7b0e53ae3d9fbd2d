/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba bench`: times problems on every backend, and verifies the very outputs of a timed run against float64.
 */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "cli/bench_device.h"
#include "cli/bench_problems.h"
#include "cli/bench_rates.h"
#include "cli/progress.h"
#include "core/env.h"

enum { MAX_BACKENDS = 16 };

typedef struct bench_options {
    const char *backends;
    const char *input;
    const char *passes;
    uint64_t seed;
    int64_t repeat, n_threads, device;
    bool check, check_all, rates;
    double matrix_tflops; /* NaN: not given */
    char **problems;
    size_t n_problems, capacity;
} bench_options;

/** What `--check` counts. */
typedef struct bench_state {
    const bench_options *options;
    bool passes[3];
    bool quiet;                      /* no line for a verified measurement */
    const mobai_device_rates *rates; /* of the present device; NULL: not asked for */
    int64_t n_verified, n_failed, n_refused;
    int exit_code;   /* the first that is not 0 */
    json_t *kernels; /* of `--check all`: the names of all that ran, as keys; else NULL */
    json_t *faults;  /* of `--check all`: what failed, an array of text; else NULL */
} bench_state;

static int keep_exit(bench_state *state, int exit_code) {
    if (state->exit_code == MOBAI_EXIT_OK) state->exit_code = exit_code;
    return exit_code;
}

/* ------------------------------------------------------------------------------------------------ lines -- */

static json_t *kernel_names(const moba_plan *plan, mobai_pass pass) {
    static const char *const stages[] = {"kconv",   "centroid", "gate",       "index",  "attend",
                                         "combine", "delta",    "attend_bwd", "dq_sum", "kconv_bwd"};
    enum { FIRST_BACKWARD = 6, AFTER_GATE = 3, N_STAGES = sizeof stages / sizeof stages[0] };
    const size_t begin = pass == MOBAI_PASS_BWD ? FIRST_BACKWARD : 0;
    const size_t end = pass == MOBAI_PASS_BWD ? N_STAGES : pass == MOBAI_PASS_ROUTE ? AFTER_GATE : FIRST_BACKWARD;
    json_t *names = json_object();
    for (size_t i = begin; names != NULL && i < end; i++) {
        const char *name = moba_plan_kernel(plan, stages[i]);
        if (name != NULL) json_object_set_new(names, stages[i], json_string(name));
    }
    return names;
}

/** GB of the caller's tensors that the pass must read or write once. */
static double least_gbytes(const mobai_bench_device *device, mobai_pass pass) {
    const size_t *bytes = device->bytes;
    const size_t *b = bytes;
    double sum = (double)b[MOBAI_BENCH_Q] + (double)b[MOBAI_BENCH_K] + (double)b[MOBAI_BENCH_WEIGHT];
    if (pass == MOBAI_PASS_ROUTE) {
        sum += (double)b[MOBAI_BENCH_SELECTION];
    } else {
        sum += (double)b[MOBAI_BENCH_V] + (double)b[MOBAI_BENCH_O] + (double)b[MOBAI_BENCH_LSE];
    }
    if (pass == MOBAI_PASS_BWD) {
        sum += (double)b[MOBAI_BENCH_DOUT] + (double)b[MOBAI_BENCH_DQ] + (double)b[MOBAI_BENCH_DK] +
               (double)b[MOBAI_BENCH_DV] + (double)b[MOBAI_BENCH_DW];
    }
    return sum * 1e-9;
}

/** Useful floating-point operations: 4 d a selected pair forward, 10 d backward; 2 d a scored candidate when routing.
 */
static double useful_flops(const mobai_reference *reference, const mobai_bench_outputs *outputs, mobai_pass pass) {
    if (pass == MOBAI_PASS_ROUTE) return 2.0 * reference->dim * (double)mobai_count_candidates(reference);
    return (pass == MOBAI_PASS_FWD ? 4.0 : 10.0) * reference->dim *
           (double)mobai_count_pairs(reference, outputs->selection);
}

static int print_line(const bench_state *state, const mobai_reference *reference, const mobai_bench_device *device,
                      const mobai_bench_outputs *outputs, const char *problem, mobai_pass pass,
                      const mobai_timing *timing, const mobai_verdict *verdict) {
    moba_device_description description = MOBA_DEVICE_DESCRIPTION_INIT;
    const moba_status status = moba_context_device(device->context, &description);
    if (status != MOBA_OK) return mobai_cli_fail(status);
    const double tflops = useful_flops(reference, outputs, pass) / timing->median_ms * 1e-9;
    json_t *ms = json_pack("{s:o, s:o, s:o}", "min", mobai_json_real(timing->min_ms), "median",
                           mobai_json_real(timing->median_ms), "p90", mobai_json_real(timing->p90_ms));
    json_t *line =
        json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:s, s:o}", "device", description.name, "driver", description.driver,
                  "version", moba_version(), "backend", moba_context_backend(device->context), "variant",
                  kernel_names(device->plan, pass), "problem", problem, "pass", mobai_pass_name(pass), "ms", ms);
    json_t *rest = json_pack(
        "{s:o, s:o, s:I, s:I, s:b, s:o, s:o, s:I, s:i, s:i}", "useful_tflops", mobai_json_real(tflops), "gbytes",
        mobai_json_real(least_gbytes(device, pass)), "workspace_bytes", (json_int_t)device->workspace_bytes,
        "saved_bytes", (json_int_t)device->saved_bytes, "verified", (int)verdict->verified, "max_err",
        mobai_json_real(verdict->max_err), "rel_err", mobai_json_real(verdict->rel_err), "seed",
        (json_int_t)state->options->seed, "repeat", (int)timing->n, "threads", (int)description.n_compute_units);
    bool good = line != NULL && rest != NULL && json_object_update(line, rest) == 0;
    json_decref(rest);
    if (good && state->rates != NULL) {
        good = json_object_set_new(line, "device_copy_gbytes", mobai_json_real(state->rates->copy_gbytes)) == 0 &&
               json_object_set_new(line, "device_matrix_tflops", mobai_json_real(state->rates->matrix_tflops)) == 0;
    }
    if (!good) {
        json_decref(line);
        line = NULL;
    }
    return mobai_cli_print_json(line, false);
}

/** Says what failed, and the command that shows it again. */
static void report_fault(bench_state *state, const char *problem, const char *backend, mobai_pass pass,
                         const mobai_verdict *verdict) {
    const bench_options *o = state->options;
    keep_exit(state, mobai_cli_error(MOBAI_EXIT_CHECK, "%s, %s on %s: %s", problem, mobai_pass_name(pass), backend,
                                     verdict->fault.text));
    fprintf(stderr, "moba bench --check '%s' --seed %" PRIu64 " --backend %s --pass %s", problem, o->seed, backend,
            mobai_pass_name(pass));
    if (o->input != NULL) fprintf(stderr, " --input '%s'", o->input);
    if (o->n_threads > 0) fprintf(stderr, " --threads %" PRId64, o->n_threads);
    if (o->device >= 0) fprintf(stderr, " --device %" PRId64, o->device);
    fputc('\n', stderr);
}

/** Notes for the report of `--check all` which kernels ran and what failed; false without memory. */
static bool keep_for_report(bench_state *state, const moba_plan *plan, const char *problem, const char *backend,
                            mobai_pass pass, const mobai_verdict *verdict) {
    json_t *names = kernel_names(plan, pass);
    bool good = names != NULL;
    const char *stage;
    json_t *name;
    json_object_foreach(names, stage, name) {
        good = good && json_object_set_new(state->kernels, json_string_value(name), json_true()) == 0;
    }
    json_decref(names);
    if (good && !verdict->verified) {
        good = json_array_append_new(state->faults, json_sprintf("%s, %s on %s: %s", problem, mobai_pass_name(pass),
                                                                 backend, verdict->fault.text)) == 0;
    }
    return good;
}

/* --------------------------------------------------------------------------------------------- measuring -- */

/** Times, reads back, verifies and reports one pass. *verified tells whether its outputs may be built upon. */
static int measure(bench_state *state, const mobai_reference *reference, mobai_bench_device *device,
                   const char *problem, mobai_pass pass, bool report, mobai_bench_outputs *outputs, bool *verified) {
    const char *backend = moba_context_backend(device->context);
    mobai_timing timing;
    mobai_verdict verdict;
    mobai_message message;
    mobai_progress("%s %s on %s", problem, mobai_pass_name(pass), backend);
    *verified = false;
    moba_status status = mobai_bench_time(device, pass, report ? (int32_t)state->options->repeat : 1, &timing);
    message.text[0] = '\0';
    if (status == MOBA_OK) status = mobai_bench_read(device, pass, outputs, &message);
    if (status != MOBA_OK) {
        if (message.text[0] != '\0') return mobai_cli_error(MOBAI_EXIT_FAILED, "%s", message.text);
        return mobai_cli_error(mobai_cli_exit_code(status), "%s, %s on %s: %s", problem, mobai_pass_name(pass), backend,
                               moba_last_error());
    }
    if (!mobai_verify(reference, outputs, pass, state->options->seed, &verdict, &message)) {
        return mobai_cli_error(MOBAI_EXIT_FAILED, "%s", message.text);
    }
    *verified = verdict.verified;
    if (report || !verdict.verified) {
        state->n_verified += verdict.verified;
        state->n_failed += !verdict.verified;
    }
    int exit_code = MOBAI_EXIT_OK;
    if (report && !state->quiet) {
        exit_code = print_line(state, reference, device, outputs, problem, pass, &timing, &verdict);
    }
    if (!verdict.verified) report_fault(state, problem, backend, pass, &verdict);
    if (state->kernels != NULL && !keep_for_report(state, device->plan, problem, backend, pass, &verdict)) {
        return mobai_cli_error(MOBAI_EXIT_FAILED, "no memory for the report");
    }
    return exit_code;
}

/** All asked passes of one problem in one context. A failed check is no error here: it is in `state`. */
static int bench_in_context(bench_state *state, moba_context *context, const mobai_reference *reference,
                            const char *text) {
    const mobai_bench_problem *problem = reference->problem;
    const bool backward = state->passes[MOBAI_PASS_BWD] && !problem->inference;
    if (!backward && !state->passes[MOBAI_PASS_FWD] && !state->passes[MOBAI_PASS_ROUTE]) {
        return mobai_cli_error(MOBAI_EXIT_USAGE, "%s: there is no backward of a problem with inference", text);
    }
    mobai_bench_device device;
    mobai_bench_outputs outputs = {0};
    mobai_progress("%s: planning", text);
    const moba_status status = mobai_bench_open(context, problem, reference->in, backward, &device);
    if (status == MOBA_ERROR_UNSUPPORTED && state->options->check_all && problem->deterministic) {
        state->n_refused++; /* an honest answer, docs/spec.md section 7 */
        return MOBAI_EXIT_OK;
    }
    if (status != MOBA_OK) {
        return mobai_cli_error(mobai_cli_exit_code(status), "%s on %s: %s", text, moba_context_backend(context),
                               moba_last_error());
    }
    int exit_code = MOBAI_EXIT_OK;
    bool verified = false;
    if (state->passes[MOBAI_PASS_ROUTE] && !problem->dense) {
        exit_code = measure(state, reference, &device, text, MOBAI_PASS_ROUTE, true, &outputs, &verified);
    }
    if (exit_code == MOBAI_EXIT_OK && (state->passes[MOBAI_PASS_FWD] || backward)) {
        exit_code = measure(state, reference, &device, text, MOBAI_PASS_FWD, state->passes[MOBAI_PASS_FWD], &outputs,
                            &verified);
        /* A backward of a wrong forward says nothing. */
        if (exit_code == MOBAI_EXIT_OK && backward && verified) {
            exit_code = measure(state, reference, &device, text, MOBAI_PASS_BWD, true, &outputs, &verified);
        }
    }
    mobai_bench_close(&device);
    return exit_code;
}

/** Contexts of all backends that are measured. */
typedef struct bench_contexts {
    moba_context *at[MAX_BACKENDS];
    mobai_device_rates rates[MAX_BACKENDS]; /* with --rates */
    size_t n;
} bench_contexts;

static int open_context(const bench_options *o, const char *backend, bench_contexts *contexts) {
    if (contexts->n == MAX_BACKENDS) {
        return mobai_cli_error(MOBAI_EXIT_USAGE, "more than %d backends are named", MAX_BACKENDS);
    }
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = backend;
    options.n_threads = (int32_t)o->n_threads;
    if (o->device >= 0) options.device = (int32_t)o->device;
    mobai_progress("opening %s", backend != NULL ? backend : "the device");
    const moba_status status = moba_context_create(&options, &contexts->at[contexts->n]);
    if (status != MOBA_OK) return mobai_cli_fail(status);
    const size_t i = contexts->n++;
    if (!o->rates) return MOBAI_EXIT_OK;
    const moba_status measured = mobai_bench_rates(contexts->at[i], &contexts->rates[i]);
    if (!isnan(o->matrix_tflops)) contexts->rates[i].matrix_tflops = o->matrix_tflops;
    return measured == MOBA_OK ? MOBAI_EXIT_OK : mobai_cli_fail(measured);
}

/** --backend names each one; else MOBA_BACKEND chooses one as always; else every usable backend with a real device. */
static int open_contexts(const bench_options *o, bench_contexts *contexts) {
    if (o->backends != NULL) {
        char name[64];
        for (const char *rest = o->backends; rest != NULL;) {
            rest = mobai_env_next_item(rest, name, sizeof name);
            const int exit_code = open_context(o, name, contexts);
            if (exit_code != MOBAI_EXIT_OK) return exit_code;
        }
        return MOBAI_EXIT_OK;
    }
    if (mobai_env_get(MOBAI_ENV_BACKEND) != NULL) return open_context(o, NULL, contexts);
    for (int32_t i = 0; i < moba_backend_count(); i++) {
        moba_backend_description backend = MOBA_BACKEND_DESCRIPTION_INIT;
        const moba_status status = moba_backend_info(i, &backend);
        if (status != MOBA_OK) return mobai_cli_fail(status);
        bool real = false;
        for (int32_t d = 0; backend.usable && d < backend.n_devices; d++) {
            moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
            real = real || (moba_device_info(i, d, &device) == MOBA_OK && !device.is_software);
        }
        if (!real) continue;
        const int exit_code = open_context(o, backend.name, contexts);
        if (exit_code != MOBAI_EXIT_OK) return exit_code;
    }
    if (contexts->n == 0) return mobai_cli_error(MOBAI_EXIT_BACKEND, "no backend is usable here; see `moba info`");
    return MOBAI_EXIT_OK;
}

static void close_contexts(bench_contexts *contexts) {
    for (size_t i = 0; i < contexts->n; i++)
        moba_context_destroy(contexts->at[i]);
}

/** The library's refusals, before work on inputs: the reference relies on the limits it keeps. Whether gradients can be
 *  deterministic is each backend's own answer. */
static int check_problem(const bench_contexts *contexts, const mobai_bench_problem *problem, const char *shown) {
    moba_problem bounds = mobai_problem_bounds(problem);
    bounds.deterministic = 0;
    moba_plan *plan = NULL;
    const moba_status status = moba_plan_create(contexts->at[0], &bounds, &plan);
    moba_plan_destroy(plan);
    if (status == MOBA_OK) return MOBAI_EXIT_OK;
    return mobai_cli_error(mobai_cli_exit_code(status), "problem '%s': %s", shown, moba_last_error());
}

/** One problem string on every backend. The inputs and the reference are made once. */
static int bench_problem(bench_state *state, const bench_contexts *contexts, const char *text) {
    const bench_options *o = state->options;
    mobai_bench_problem problem;
    mobai_bench_inputs inputs;
    mobai_reference reference;
    mobai_message message;
    char shown[160];
    mobai_printable(shown, sizeof shown, text, strlen(text));
    if (!mobai_problem_parse(text, o->input != NULL, &problem, &message)) {
        return mobai_cli_error(message.exit_code, "problem '%s': %s", shown, message.text);
    }
    int exit_code = o->input == NULL ? check_problem(contexts, &problem, shown) : MOBAI_EXIT_OK;
    if (exit_code == MOBAI_EXIT_OK) {
        const bool loaded = o->input != NULL ? mobai_inputs_load(o->input, &problem, o->seed, &inputs, &message)
                                             : mobai_inputs_random(&problem, o->seed, &inputs, &message);
        if (!loaded && o->input != NULL) {
            exit_code = mobai_cli_error(message.exit_code, "%s: %s", o->input, message.text);
        } else if (!loaded) {
            exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "%s", message.text);
        }
    }
    if (exit_code != MOBAI_EXIT_OK) {
        mobai_problem_free(&problem);
        return exit_code;
    }
    if (o->input != NULL) exit_code = check_problem(contexts, &problem, shown);
    char *canonical = mobai_problem_print(&problem);
    mobai_progress("%s: float64 reference", shown);
    if (canonical == NULL) {
        exit_code =
            mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory for a problem of %" PRId64 " sequences", problem.batch);
    } else if (exit_code == MOBAI_EXIT_OK && !mobai_reference_open(&problem, &inputs, &reference, &message)) {
        exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "%s", message.text);
    } else if (exit_code == MOBAI_EXIT_OK) {
        for (size_t i = 0; i < contexts->n && exit_code == MOBAI_EXIT_OK; i++) {
            state->rates = o->rates ? &contexts->rates[i] : NULL;
            exit_code = bench_in_context(state, contexts->at[i], &reference, canonical);
        }
        mobai_reference_close(&reference);
    }
    free(canonical);
    mobai_inputs_free(&inputs);
    mobai_problem_free(&problem);
    return exit_code;
}

/** A block that says what was checked and where, to be reported as it stands. */
static void print_report(const bench_state *state, const bench_contexts *contexts, size_t n_problems) {
    enum { WIDTH = 100 };
    struct utsname system;
    printf("---- moba selftest ----\nlibmoba       %s", moba_version());
    if (uname(&system) == 0) printf(", %s %s %s", system.sysname, system.release, system.machine);
    for (size_t i = 0; i < contexts->n; i++) {
        moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
        printf("\nbackend       %s", moba_context_backend(contexts->at[i]));
        if (moba_context_device(contexts->at[i], &device) != MOBA_OK) continue;
        printf("\ndevice        %s, %.1f GiB\ndriver        %s\ncapabilities  %s", device.name,
               (double)device.memory_bytes / (1024.0 * 1024.0 * 1024.0), device.driver,
               device.capabilities[0] ? device.capabilities : "none");
    }
    printf("\nkernels      ");
    int column = 13;
    const char *name;
    json_t *ignored;
    json_object_foreach(state->kernels, name, ignored) {
        if (column + (int)strlen(name) >= WIDTH) column = printf("\n             ") - 1;
        column += printf(" %s", name);
    }
    size_t i;
    json_t *fault;
    json_array_foreach(state->faults, i, fault) printf("\nfailed        %s", json_string_value(fault));
    printf("\nresult        %zu problems, %" PRId64 " passes verified, %" PRId64 " failed, %" PRId64
           " refused because deterministic gradients cannot be had\n---- end ----\n",
           n_problems, state->n_verified, state->n_failed, state->n_refused);
}

/** The built-in list in every type, then the report. */
static int check_all(bench_state *state, const bench_contexts *contexts) {
    static const char *const types[] = {"f32", "f16", "bf16"};
    int exit_code = MOBAI_EXIT_OK;
    const size_t n = mobai_n_check_problems;
    state->kernels = json_object();
    state->faults = json_array();
    if (state->kernels == NULL || state->faults == NULL)
        exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "no memory for the report");
    for (size_t i = 0; exit_code != MOBAI_EXIT_FAILED && i < 3 * n; i++) {
        char text[192];
        snprintf(text, sizeof text, "%s,%s%s", mobai_check_problems[i % n].shape, types[i / n],
                 mobai_check_problems[i % n].options);
        const int one = bench_problem(state, contexts, text);
        if (exit_code == MOBAI_EXIT_OK || one == MOBAI_EXIT_FAILED) exit_code = one;
    }
    mobai_progress_clear();
    if (exit_code != MOBAI_EXIT_FAILED) print_report(state, contexts, 3 * n);
    json_decref(state->kernels);
    json_decref(state->faults);
    return exit_code;
}

/* ---------------------------------------------------------------------------------------------- options -- */

enum {
    OPTION_CHECK = 256,
    OPTION_INPUT,
    OPTION_SEED,
    OPTION_REPEAT,
    OPTION_PROBLEMS,
    OPTION_THREADS,
    OPTION_DEVICE,
    OPTION_RATES
};

static const struct argp_option options[] = {
    {"backend", 'b', "LIST", 0,
     "backends to measure, each of them: cpu,cuda,hip,opencl,vulkan (default: MOBA_BACKEND, else all that have a "
     "usable "
     "device which is not software)",
     0},
    {"pass", 'p', "LIST", 0, "fwd, bwd, route, or several with commas (default: fwd,bwd; with --check all three)", 0},
    {"check", OPTION_CHECK, "all", OPTION_ARG_OPTIONAL,
     "verify: one timed run each, exit 1 when a check fails; `--check all` runs a built-in list instead of PROBLEM", 0},
    {"input", OPTION_INPUT, "FILE", 0,
     "q, k, v (and do, kconv_weight, cu_seqlens_q, cu_seqlens_k) from a safetensors file; the shape may then be left "
     "out "
     "of PROBLEM, as in B64t8c",
     0},
    {"problems", OPTION_PROBLEMS, "FILE", 0, "read problems from FILE, one a line, # starts a comment; also @FILE", 0},
    {"seed", OPTION_SEED, "N", 0, "seed of the random inputs and of the sampling (default 1)", 0},
    {"repeat", OPTION_REPEAT, "N", 0, "timed runs, 1 to 1000 (default 20; 50 when under 5 ms, 10 from 0.5 s)", 0},
    {"threads", OPTION_THREADS, "N", 0, "threads of the CPU backend (default: all)", 0},
    {"rates", OPTION_RATES, "TFLOPS", OPTION_ARG_OPTIONAL,
     "measure the device's copy bandwidth and write it to each line, with its rate of matrix products: measured in f32 "
     "on the CPU; elsewhere TFLOPS, which another program measured",
     0},
    {"device", OPTION_DEVICE, "N", 0, "device index (default: MOBA_DEVICE, else the best)", 0},
    {0}};

static const char documentation[] =
    "Times problems on every backend and verifies the outputs of a timed run against float64.\v"
    "PROBLEM is a string such as b2q8192k8192h16g16d128B128t8c,bf16: b sequences, q query rows, k keys, h query heads, "
    "g "
    "key-value heads, d head_dim, B block_size, t top_k, c causal or n non-causal, type f32, f16 or bf16; then any of "
    "sink=N, local=N, kconv=N, dense, det (deterministic gradients), inference (no backward), lens=513+0+129/600+5+129 "
    "(lengths of the queries, "
    "then of the keys), each after a comma. q and k are lengths of one sequence. Left out: b is 1, q is k, k is q, g "
    "is "
    "h; B and t only with dense. With lens, b is the number of lengths, q and k are the longest ones, and may be left "
    "out.\n\n"
    "Each measurement is one JSON line on stdout: device, driver, version, backend, variant (kernel of each stage), "
    "problem, pass, ms {min, median, p90}, useful_tflops (4 d operations a selected query-key pair forward, 10 d "
    "backward, "
    "2 d a scored block when routing), gbytes (GB of the caller's tensors that the pass reads or writes at least "
    "once), "
    "workspace_bytes, saved_bytes, verified, max_err, rel_err (of the sampled rows and key blocks; for route, max_err "
    "is "
    "the largest regret), seed, repeat, threads (compute units on a GPU); with --rates also device_copy_gbytes (GB "
    "read plus written a "
    "second) and device_matrix_tflops.\n\n"
    "Verification: outputs hold NaN before the last timed run; afterwards at least 256 rows, 64 rows of dq and 8 whole "
    "key blocks of dk and dv are compared with float64, given the selection, by the rules of docs/spec.md section 7. "
    "Exit code 1: something was not verified.";

static bool add_problem(bench_options *o, const char *text, size_t length) {
    if (o->n_problems == o->capacity) {
        const size_t capacity = o->capacity > 0 ? 2 * o->capacity : 16;
        char **problems = realloc(o->problems, capacity * sizeof *problems);
        if (problems == NULL) return false;
        o->problems = problems;
        o->capacity = capacity;
    }
    char *copy = malloc(length + 1);
    if (copy == NULL) return false;
    memcpy(copy, text, length);
    copy[length] = '\0';
    o->problems[o->n_problems++] = copy;
    return true;
}

static void read_problems(bench_options *o, const char *path, struct argp_state *state) {
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        argp_failure(state, MOBAI_EXIT_USAGE, errno, "%s", path);
        return;
    }
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, file) >= 0) {
        const char *begin = line + strspn(line, " \t");
        const size_t length = strcspn(begin, " \t\r\n#");
        if (length > 0 && !add_problem(o, begin, length)) argp_failure(state, MOBAI_EXIT_FAILED, ENOMEM, "%s", path);
    }
    const int error = feof(file) ? 0 : errno;
    free(line);
    fclose(file);
    if (error != 0) argp_failure(state, error == ENOMEM ? MOBAI_EXIT_FAILED : MOBAI_EXIT_USAGE, error, "%s", path);
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    bench_options *o = state->input;
    int64_t value = 0;
    switch (key) {
    case 'b':
        o->backends = argument;
        return 0;
    case 'p':
        o->passes = argument;
        return 0;
    case OPTION_INPUT:
        o->input = argument;
        return 0;
    case OPTION_PROBLEMS:
        read_problems(o, argument, state);
        return 0;
    case OPTION_CHECK:
        o->check = true;
        if (argument != NULL && strcmp(argument, "all") != 0) {
            argp_error(state, "--check is '%s', must be 'all' or have no value", argument);
        }
        o->check_all = o->check_all || argument != NULL;
        return 0;
    case OPTION_SEED:
        if (!mobai_parse_int(argument, 0, INT64_MAX, &value)) {
            argp_error(state, "--seed is '%s', must be a whole number from 0", argument);
        }
        o->seed = (uint64_t)value;
        return 0;
    case OPTION_REPEAT:
        if (!mobai_parse_int(argument, 1, MOBAI_BENCH_MAX_REPEAT, &o->repeat)) {
            argp_error(state, "--repeat is '%s', must be 1 to %d", argument, MOBAI_BENCH_MAX_REPEAT);
        }
        return 0;
    case OPTION_THREADS:
        if (!mobai_parse_int(argument, 1, 1024, &o->n_threads)) {
            argp_error(state, "--threads is '%s', must be 1 to 1024", argument);
        }
        return 0;
    case OPTION_DEVICE:
        if (!mobai_parse_int(argument, 0, 1023, &o->device)) {
            argp_error(state, "--device is '%s', must be 0 to 1023", argument);
        }
        return 0;
    case OPTION_RATES:
        o->rates = true;
        if (argument != NULL && (!mobai_parse_double(argument, &o->matrix_tflops) || !(o->matrix_tflops > 0.0))) {
            argp_error(state, "--rates is '%s', must be TFLOP/s above 0 or have no value", argument);
        }
        return 0;
    case ARGP_KEY_ARG:
        if (o->check && strcmp(argument, "all") == 0) {
            o->check_all = true;
        } else if (argument[0] == '@') {
            read_problems(o, argument + 1, state);
        } else if (!add_problem(o, argument, strlen(argument))) {
            argp_failure(state, MOBAI_EXIT_FAILED, ENOMEM, "%s", argument);
        }
        return 0;
    case ARGP_KEY_END:
        if (o->n_problems == 0 && !o->check_all) argp_error(state, "PROBLEM is missing");
        if (o->check_all && (o->n_problems > 0 || o->input != NULL)) {
            argp_error(state, "--check all has its own problems; leave PROBLEM and --input out");
        }
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/** Reads --pass; false when it names something else. */
static bool choose_passes(const bench_options *o, bool passes[3]) {
    const char *rest = o->passes != NULL ? o->passes : o->check ? "fwd,bwd,route" : "fwd,bwd";
    char name[16];
    while (rest != NULL) {
        rest = mobai_env_next_item(rest, name, sizeof name);
        bool known = false;
        for (int p = 0; p < 3; p++) {
            if (strcmp(name, mobai_pass_name((mobai_pass)p)) != 0) continue;
            passes[p] = known = true;
        }
        if (!known) return false;
    }
    return true;
}

int mobai_cli_bench(int argc, char **argv) {
    static const struct argp argp = {options, parse_option, "[PROBLEM...]", documentation, NULL, NULL, NULL};
    bench_options o = {.seed = 1, .device = -1, .matrix_tflops = NAN};
    int exit_code = mobai_cli_options(&argp, argc, argv, &o);
    if (o.check && o.repeat == 0) o.repeat = 1;
    bench_state state = {.options = &o, .quiet = o.check_all};
    bench_contexts contexts = {.n = 0};
    if (exit_code == MOBAI_EXIT_OK && !choose_passes(&o, state.passes)) {
        exit_code = mobai_cli_error(MOBAI_EXIT_USAGE, "--pass is '%s', must be fwd, bwd, route, or several with commas",
                                    o.passes);
    }
    if (exit_code == MOBAI_EXIT_OK) exit_code = open_contexts(&o, &contexts);
    if (exit_code == MOBAI_EXIT_OK && o.check_all) exit_code = check_all(&state, &contexts);
    for (size_t i = 0; exit_code == MOBAI_EXIT_OK && i < o.n_problems; i++) {
        exit_code = bench_problem(&state, &contexts, o.problems[i]);
    }
    close_contexts(&contexts);
    for (size_t i = 0; i < o.n_problems; i++)
        free(o.problems[i]);
    free(o.problems);
    return exit_code != MOBAI_EXIT_OK ? exit_code : state.exit_code;
}
