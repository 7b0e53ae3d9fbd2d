/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba advise`: which block_size and top_k a length needs, what they cost by the model, and where MoBA beats dense
 * attention. With --measure, the model against the clock on six shapes.
 */
#include <argp.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_device.h"
#include "cli/progress.h"

enum { DEFAULT_ROWS = 12, MAX_ROWS = 200 };

/** The model's promise: predicted within this share of measured. */
#define MODEL_TOLERANCE 0.30

typedef struct advise_options {
    const char *backend;
    int64_t length, batch, n_heads, n_kv_heads, head_dim, max_keys, n_threads, n_rows, repeat;
    int64_t cluster_size;
    double delta_mu, cluster_delta;
    moba_dtype dtype;
    bool non_causal, json, measure;
} advise_options;

/* ------------------------------------------------------------------------------------------------ advice -- */

/** "1.5 us", "23 ms", "1.2 s"; "-" when unknown. */
static const char *time_text(double us, char out[32]) {
    if (!isfinite(us)) {
        snprintf(out, 32, "-");
    } else if (us < 1e3) {
        snprintf(out, 32, "%.3g us", us);
    } else if (us < 1e6) {
        snprintf(out, 32, "%.3g ms", us * 1e-3);
    } else {
        snprintf(out, 32, "%.3g s", us * 1e-6);
    }
    return out;
}

static int print_advice_json(const advise_options *o, const char *backend, const moba_advice *advice, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const moba_advice *a = &advice[i];
        json_t *line = json_pack(
            "{s:s, s:I, s:i, s:i, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "backend", backend, "length",
            (json_int_t)o->length, "block_size", (int)a->block_size, "top_k", (int)a->top_k, "reliable",
            (int)(a->recall >= 0.99), "snr", mobai_json_real(a->snr), "snr_required", mobai_json_real(a->snr_required),
            "recall", mobai_json_real(a->recall), "forward_us", mobai_json_real(a->forward_us), "backward_us",
            mobai_json_real(a->backward_us), "dense_forward_us", mobai_json_real(a->dense_forward_us),
            "dense_backward_us", mobai_json_real(a->dense_backward_us), "break_even", (json_int_t)a->break_even);
        const int exit_code = mobai_cli_print_json(line, false);
        if (exit_code != MOBAI_EXIT_OK) return exit_code;
    }
    return MOBAI_EXIT_OK;
}

static void print_advice(const advise_options *o, const char *backend, const char *device, const moba_advice *advice,
                         int32_t n, int32_t n_all) {
    char a[32], b[32], even[32];
    printf("%s (%s): %" PRId64 " x %" PRId64 " tokens, %s, %" PRId64 " query heads, %" PRId64
           " key-value heads, head_dim %" PRId64 ", %s, affinity gap %g\n",
           backend, device, o->batch, o->length, o->non_causal ? "non-causal" : "causal", o->n_heads, o->n_kv_heads,
           o->head_dim, mobai_dtype_name(o->dtype), o->delta_mu);
    if (o->cluster_size > 1) {
        printf("clusters of %" PRId64 " keys, %g above the others\n", o->cluster_size, o->cluster_delta);
    }
    if (n == 0) {
        printf("no choice fits: raise --max-keys\n");
        return;
    }
    printf("dense: forward %s, backward %s (model)\n\n", time_text(advice[0].dense_forward_us, a),
           time_text(advice[0].dense_backward_us, b));
    printf("%10s %6s %7s %7s %8s %10s %10s %9s %11s\n", "block_size", "top_k", "SNR", "needed", "recall", "forward",
           "backward", "x dense", "break-even");
    for (int32_t i = 0; i < n; i++) {
        const moba_advice *x = &advice[i];
        if (x->break_even >= 0) {
            snprintf(even, sizeof even, "%" PRId64, x->break_even);
        } else {
            snprintf(even, sizeof even, "-");
        }
        char needed[32];
        snprintf(needed, sizeof needed, "%.2f", x->snr_required);
        if (!isfinite(x->snr_required)) snprintf(needed, sizeof needed, "%s", x->snr_required < 0.0 ? "none" : "never");
        printf("%10" PRId32 " %6" PRId32 " %7.2f %7s %7.2f%% %10s %10s %9.2f %11s%s\n", x->block_size, x->top_k, x->snr,
               needed, 100.0 * x->recall, time_text(x->forward_us, a), time_text(x->backward_us, b),
               x->dense_forward_us / x->forward_us, even, x->recall >= 0.99 ? "" : "  unreliable");
    }
    if (n < n_all) printf("(%" PRId32 " of %" PRId32 " choices; --rows shows more)\n", n, n_all);
    printf(
        "\nrecall: the relevant block is among those routed to. needed: the SNR from which it usually is. x dense: how "
        "many\ntimes faster than dense the forward is, by the model. break-even: least length from which it is "
        "faster.\n");
}

static int advise(const advise_options *o, moba_context *context) {
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.dtype = o->dtype;
    problem.n_q_heads = (int32_t)o->n_heads;
    problem.n_kv_heads = (int32_t)o->n_kv_heads;
    problem.head_dim = (int32_t)o->head_dim;
    problem.causal = !o->non_causal;
    problem.max_batch = o->batch;
    problem.max_total_q = problem.max_total_k = o->batch * o->length;
    problem.max_seqlen_q = problem.max_seqlen_k = o->length;
    /* The same SNR as with one key of this affinity: Dmu_eff of docs/theory.md. */
    const double delta_mu = o->delta_mu + (double)(o->cluster_size - 1) * o->cluster_delta;
    static moba_advice advice[MAX_ROWS];
    advice[0].struct_size = sizeof advice[0];
    int32_t n_all = 0;
    mobai_progress("weighing choices");
    moba_status status = moba_advise(context, &problem, delta_mu, o->max_keys, advice, MAX_ROWS, &n_all);
    if (status != MOBA_OK) return mobai_cli_fail(status);
    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    status = moba_context_device(context, &device);
    if (status != MOBA_OK) return mobai_cli_fail(status);
    mobai_progress_end();
    const int32_t n = n_all < o->n_rows ? n_all : (int32_t)o->n_rows;
    if (o->json) return print_advice_json(o, moba_context_backend(context), advice, n);
    print_advice(o, moba_context_backend(context), device.name, advice, n, n_all);
    return MOBAI_EXIT_OK;
}

/* ----------------------------------------------------------------------------------------------- measure -- */

/** Six shapes that differ in length, block, top_k, head_dim, grouping and mask. Types and batch are the options'. */
typedef struct measured_shape {
    int64_t length;
    int32_t n_q_heads, n_kv_heads, head_dim, block_size, top_k;
    bool causal;
} measured_shape;
static const measured_shape shapes[] = {
    {4096, 8, 8, 128, 128, 8, true}, {8192, 8, 8, 64, 64, 16, true},  {16384, 4, 4, 128, 128, 8, true},
    {8192, 8, 2, 128, 256, 4, true}, {4096, 4, 4, 128, 64, 8, false}, {32768, 2, 2, 64, 512, 3, true},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

typedef struct measured_time {
    double predicted_us, measured_us;
} measured_time;

/** Forward and backward of one shape: model, and the least time of the runs, which other work on the machine disturbs
 *  least. The outputs are those `moba bench` would verify. */
static int measure_shape(const advise_options *o, moba_context *context, const mobai_bench_problem *problem,
                         measured_time out[2]) {
    mobai_bench_inputs inputs;
    mobai_bench_device device;
    mobai_message message;
    if (!mobai_inputs_random(problem, 1, &inputs, &message)) {
        return mobai_cli_error(MOBAI_EXIT_FAILED, "%s", message.text);
    }
    moba_status status = mobai_bench_open(context, problem, &inputs, true, &device);
    if (status == MOBA_OK) {
        for (int p = 0; p < 2 && status == MOBA_OK; p++) {
            mobai_timing timing = {0};
            status = moba_plan_cost(device.plan, p == 0 ? "fwd" : "bwd", &out[p].predicted_us);
            if (status == MOBA_OK) {
                status =
                    mobai_bench_time(&device, p == 0 ? MOBAI_PASS_FWD : MOBAI_PASS_BWD, (int32_t)o->repeat, &timing);
            }
            out[p].measured_us = 1e3 * timing.min_ms;
        }
        mobai_bench_close(&device);
    }
    mobai_inputs_free(&inputs);
    return status == MOBA_OK ? MOBAI_EXIT_OK : mobai_cli_fail(status);
}

static int measure(const advise_options *o, moba_context *context) {
    double worst = 0.0;
    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    const moba_status status = moba_context_device(context, &device);
    if (status != MOBA_OK) return mobai_cli_fail(status);
    if (!o->json) {
        printf("%s (%s)\n%-42s %5s %12s %12s %9s\n", moba_context_backend(context), device.name, "problem", "pass",
               "model", "measured", "off by");
    }
    for (size_t i = 0; i < N_SHAPES; i++) {
        const measured_shape *s = &shapes[i];
        mobai_bench_problem problem = {.batch = o->batch,
                                       .seqlen_q = s->length,
                                       .seqlen_k = s->length,
                                       .n_q_heads = s->n_q_heads,
                                       .n_kv_heads = s->n_kv_heads,
                                       .head_dim = s->head_dim,
                                       .block_size = s->block_size,
                                       .top_k = s->top_k,
                                       .causal = s->causal,
                                       .dtype = o->dtype};
        char *text = mobai_problem_print(&problem);
        if (text == NULL) return mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory");
        mobai_progress("measuring %s", text);
        measured_time times[2] = {{0.0, 0.0}, {0.0, 0.0}};
        int exit_code = measure_shape(o, context, &problem, times);
        for (int p = 0; p < 2 && exit_code == MOBAI_EXIT_OK; p++) {
            const double off = times[p].predicted_us / times[p].measured_us - 1.0;
            if (fabs(off) > worst) worst = fabs(off);
            char model[32], clock[32];
            if (o->json) {
                exit_code = mobai_cli_print_json(
                    json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "backend", moba_context_backend(context), "device",
                              device.name, "problem", text, "pass", p == 0 ? "fwd" : "bwd", "predicted_us",
                              mobai_json_real(times[p].predicted_us), "measured_us",
                              mobai_json_real(times[p].measured_us), "off", mobai_json_real(off)),
                    false);
                continue;
            }
            mobai_progress_clear();
            printf("%-42s %5s %12s %12s %+8.0f%%\n", text, p == 0 ? "fwd" : "bwd",
                   time_text(times[p].predicted_us, model), time_text(times[p].measured_us, clock), 100.0 * off);
        }
        free(text);
        if (exit_code != MOBAI_EXIT_OK) return exit_code;
    }
    if (worst <= MODEL_TOLERANCE) return MOBAI_EXIT_OK;
    return mobai_cli_error(MOBAI_EXIT_CHECK, "the cost model is off by %.0f %%, above %.0f %%", 100.0 * worst,
                           100.0 * MODEL_TOLERANCE);
}

/* ----------------------------------------------------------------------------------------------- options -- */

enum { OPTION_JSON = 256, OPTION_MEASURE, OPTION_THREADS, OPTION_DTYPE, OPTION_BATCH, OPTION_ROWS, OPTION_REPEAT };

static const struct argp_option options[] = {
    {"length", 'n', "N", 0, "tokens of a sequence (needed, unless --measure)", 0},
    {"heads", 'h', "N", 0, "query heads (default 16)", 0},
    {"kv-heads", 'g', "N", 0, "key-value heads (default: as many)", 0},
    {"head-dim", 'd', "N", 0, "head_dim (default 128)", 0},
    {"batch", OPTION_BATCH, "N", 0, "sequences (default 1)", 0},
    {"dtype", OPTION_DTYPE, "TYPE", 0, "f32, f16 or bf16 (default bf16)", 0},
    {"non-causal", 'N', NULL, 0, "no causal mask", 0},
    {"delta-mu", 'm', "X", 0,
     "how much more affine the relevant key is to the query than others, for vectors of unit norm (default 0.8)", 0},
    {"cluster", 'c', "M,X", 0, "the relevant block holds M such keys; the others of them are X more affine", 0},
    {"max-keys", 'k', "N", 0, "keys a row may attend to: top_k * block_size (default 1024)", 0},
    {"backend", 'b', "NAME", 0, "cpu, cuda, hip, opencl or vulkan (default: MOBA_BACKEND, else the best)", 0},
    {"threads", OPTION_THREADS, "N", 0, "threads of the CPU backend (default: all)", 0},
    {"rows", OPTION_ROWS, "N", 0, "choices to show, 1 to 200 (default 12)", 0},
    {"json", OPTION_JSON, NULL, 0, "JSON lines", 0},
    {"measure", OPTION_MEASURE, NULL, 0,
     "time six shapes forward and backward and compare the cost model with the least times; exit 1 when one is off by "
     "over 30 %",
     0},
    {"repeat", OPTION_REPEAT, "N", 0, "with --measure: timed runs, 1 to 1000 (default: as `moba bench`)", 0},
    {0}};

static void read_int(struct argp_state *state, const char *name, const char *text, int64_t low, int64_t high,
                     int64_t *out) {
    if (!mobai_parse_int(text, low, high, out)) {
        argp_error(state, "%s is '%s', must be %" PRId64 " to %" PRId64, name, text, low, high);
    }
}

static void read_cluster(advise_options *o, char *text, struct argp_state *state) {
    char size[32] = "";
    const size_t length = strcspn(text, ",");
    if (text[length] == ',' && length < sizeof size) memcpy(size, text, length);
    if (!mobai_parse_int(size, 1, INT32_MAX, &o->cluster_size) ||
        !mobai_parse_double(text + length + 1, &o->cluster_delta)) {
        argp_error(state, "--cluster is '%s', must be M,X such as 4,0.2", text);
    }
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    advise_options *o = state->input;
    switch (key) {
    case 'n':
        read_int(state, "--length", argument, 1, 1 << 30, &o->length);
        return 0;
    case 'h':
        read_int(state, "--heads", argument, 1, 1 << 20, &o->n_heads);
        return 0;
    case 'g':
        read_int(state, "--kv-heads", argument, 1, 1 << 20, &o->n_kv_heads);
        return 0;
    case 'd':
        read_int(state, "--head-dim", argument, 1, 256, &o->head_dim);
        return 0;
    case 'k':
        read_int(state, "--max-keys", argument, 16, INT32_MAX, &o->max_keys);
        return 0;
    case 'N':
        o->non_causal = true;
        return 0;
    case 'b':
        o->backend = argument;
        return 0;
    case 'c':
        read_cluster(o, argument, state);
        return 0;
    case 'm':
        if (!mobai_parse_double(argument, &o->delta_mu))
            argp_error(state, "--delta-mu is '%s', must be a number", argument);
        return 0;
    case OPTION_BATCH:
        read_int(state, "--batch", argument, 1, 1 << 20, &o->batch);
        return 0;
    case OPTION_THREADS:
        read_int(state, "--threads", argument, 1, 1024, &o->n_threads);
        return 0;
    case OPTION_ROWS:
        read_int(state, "--rows", argument, 1, MAX_ROWS, &o->n_rows);
        return 0;
    case OPTION_REPEAT:
        read_int(state, "--repeat", argument, 1, MOBAI_BENCH_MAX_REPEAT, &o->repeat);
        return 0;
    case OPTION_DTYPE:
        if (!mobai_parse_dtype(argument, &o->dtype))
            argp_error(state, "--dtype is '%s', must be f32, f16 or bf16", argument);
        return 0;
    case OPTION_JSON:
        o->json = true;
        return 0;
    case OPTION_MEASURE:
        o->measure = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", argument);
        return 0;
    case ARGP_KEY_END:
        if (o->length == 0 && !o->measure) argp_error(state, "--length is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int mobai_cli_advise(int argc, char **argv) {
    static const struct argp argp = {
        options,
        parse_option,
        NULL,
        "Ranks choices of block_size and top_k for a length: the reliable ones by time, then the others by recall."
        "\v"
        "Reliable means that the block with the relevant key is routed to in 99 % of cases, by the theory of arXiv "
        "2511.11571 section 3 (docs/theory.md). Times are those of the library's cost model for this device.",
        NULL,
        NULL,
        NULL};
    advise_options o = {.batch = 1,
                        .n_heads = 16,
                        .head_dim = 128,
                        .n_rows = DEFAULT_ROWS,
                        .cluster_size = 1,
                        .delta_mu = 0.8,
                        .dtype = MOBA_BF16};
    int exit_code = mobai_cli_options(&argp, argc, argv, &o);
    if (exit_code != MOBAI_EXIT_OK) return exit_code;
    if (o.n_kv_heads == 0) o.n_kv_heads = o.n_heads;
    moba_context_options context_options = MOBA_CONTEXT_OPTIONS_INIT;
    context_options.backend = o.backend;
    context_options.n_threads = (int32_t)o.n_threads;
    moba_context *context = NULL;
    mobai_progress("opening the device");
    const moba_status status = moba_context_create(&context_options, &context);
    if (status != MOBA_OK) return mobai_cli_fail(status);
    exit_code = o.measure ? measure(&o, context) : advise(&o, context);
    moba_context_destroy(context);
    return exit_code;
}
