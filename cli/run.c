/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba run`: the command line.
 */
#include <argp.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/run.h"

enum {
    KEY_TENSOR = 0x100, /* KEY_TENSOR + tensor: the path of that tensor */
    KEY_INPUT = 0x200,
    KEY_BLOCK_SIZE,
    KEY_TOP_K,
    KEY_NON_CAUSAL,
    KEY_DENSE,
    KEY_SINK,
    KEY_LOCAL,
    KEY_SOFTMAX_SCALE,
    KEY_DETERMINISTIC,
    KEY_DTYPE,
    KEY_BACKEND,
    KEY_OUT
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Input", 1},
    {"q", KEY_TENSOR + MOBAI_JOB_Q, "FILE", 0, "Queries [total_q][n_q_heads][head_dim], npy float32 or float16", 0},
    {"k", KEY_TENSOR + MOBAI_JOB_K, "FILE", 0, "Keys [total_k][n_kv_heads][head_dim]", 0},
    {"v", KEY_TENSOR + MOBAI_JOB_V, "FILE", 0, "Values, like k", 0},
    {"do", KEY_TENSOR + MOBAI_JOB_DO, "FILE", 0, "Gradient of the output, like q: asks for dq, dk and dv", 0},
    {"kconv-weight", KEY_TENSOR + MOBAI_JOB_KCONV_WEIGHT, "FILE", 0,
     "Key convolution [n_kv_heads][head_dim][width]; tap 0 is the current key", 0},
    {"selection", KEY_TENSOR + MOBAI_JOB_SELECTION, "FILE", 0,
     "Use these key blocks instead of the gate's: int32 [total_q][n_q_heads][top_k], ascending, padded with -1", 0},
    {"cu-seqlens-q", KEY_TENSOR + MOBAI_JOB_CU_SEQLENS_Q, "FILE", 0,
     "First query row of each packed sequence, and the end: int32 [batch + 1]", 0},
    {"cu-seqlens-k", KEY_TENSOR + MOBAI_JOB_CU_SEQLENS_K, "FILE", 0, "The same for keys", 0},
    {"input", KEY_INPUT, "FILE", 0,
     "A safetensors file with tensors q k v, and any of do kconv_weight selection cu_seqlens_q cu_seqlens_k", 0},

    {NULL, 0, NULL, 0, "Problem", 2},
    {"block-size", KEY_BLOCK_SIZE, "B", 0, "Keys in a block, 16 or more", 0},
    {"top-k", KEY_TOP_K, "K", 0, "Blocks that a query attends to, its own and forced ones included", 0},
    {"non-causal", KEY_NON_CAUSAL, NULL, 0, "Let queries see later keys", 0},
    {"dense", KEY_DENSE, NULL, 0, "Attend to every key; block size and top-k may be left out", 0},
    {"sink", KEY_SINK, "N", 0, "Always take the first N blocks", 0},
    {"local", KEY_LOCAL, "N", 0, "Always take the N most recent blocks", 0},
    {"softmax-scale", KEY_SOFTMAX_SCALE, "X", 0, "Factor on the scores (default: 1 / sqrt(head_dim))", 0},
    {"deterministic", KEY_DETERMINISTIC, NULL, 0, "Gradients that are the same, bit for bit, in every run", 0},
    {"dtype", KEY_DTYPE, "TYPE", 0, "Compute in f32, f16 or bf16 (default: the files' type)", 0},
    {"backend", KEY_BACKEND, "NAME", 0, "cpu, cuda, hip, opencl or vulkan (default: MOBA_BACKEND, else the best)", 0},

    {NULL, 0, NULL, 0, "Output", 3},
    {"out", KEY_OUT, "DIR", 0, "Directory for the results; made when missing", 0},
    {0}};

static const char doc[] =
    "Mixture-of-Block-Attention of q, k and v from files."
    "\v"
    "With .npy input the results are DIR/o.npy, lse.npy and selection.npy, and with --do dq.npy, dk.npy and dv.npy "
    "(and dw.npy with --kconv-weight), in float32 and int32. With --input they are the tensors of those names in "
    "DIR/out.safetensors: o and dq in the type that q has in the file, dk and dv in those of k and v, lse and dw in "
    "F32, "
    "selection in I32. With --dense there is no selection, and one in the --input file is not used. A tensor that "
    "the --input file lacks may come from its own option. Files of an earlier run are replaced only when all is done.";

static int32_t parse_count(const struct argp_state *state, const char *option, const char *text) {
    int64_t value = 0;
    if (!mobai_parse_int(text, 0, INT32_MAX, &value)) {
        argp_error(state, "--%s is '%s'; a whole number from 0 to %d is needed", option, text, INT32_MAX);
    }
    return (int32_t)value;
}

static float parse_scale(const struct argp_state *state, const char *text) {
    double value = 0;
    if (!mobai_parse_double(text, &value) || fabs(value) > (double)FLT_MAX || (float)value == 0.0f) {
        argp_error(state,
                   "--softmax-scale is '%s'; a finite float32 other than 0 is needed (leave the option out for the "
                   "default)",
                   text);
    }
    return (float)value;
}

/** What the options must be as a whole. */
static void check_options(const struct argp_state *state, const mobai_job_options *o) {
    const mobai_job_tensor required[] = {MOBAI_JOB_Q, MOBAI_JOB_K, MOBAI_JOB_V};
    for (size_t i = 0; i < 3 && o->input == NULL; i++) {
        if (o->paths[required[i]] == NULL) {
            argp_error(state, "--%s is missing; give --q, --k and --v, or --input",
                       mobai_job_tensor_option(required[i]));
        }
    }
    if (o->out == NULL) argp_error(state, "--out is missing");
    if (!o->dense && !o->has_block_size) argp_error(state, "--block-size is missing (only --dense does without)");
    if (!o->dense && !o->has_top_k) argp_error(state, "--top-k is missing (only --dense does without)");
    if (o->dense && o->paths[MOBAI_JOB_SELECTION] != NULL) {
        argp_error(state, "--dense and --selection exclude each other: dense attention selects nothing");
    }
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    mobai_job_options *o = state->input;
    if (key >= KEY_TENSOR && key < KEY_TENSOR + MOBAI_JOB_TENSOR_COUNT) {
        o->paths[key - KEY_TENSOR] = argument;
        return 0;
    }
    switch (key) {
    case KEY_INPUT:
        o->input = argument;
        break;
    case KEY_BLOCK_SIZE:
        o->block_size = parse_count(state, "block-size", argument);
        o->has_block_size = true;
        break;
    case KEY_TOP_K:
        o->top_k = parse_count(state, "top-k", argument);
        o->has_top_k = true;
        break;
    case KEY_NON_CAUSAL:
        o->causal = false;
        break;
    case KEY_DENSE:
        o->dense = true;
        break;
    case KEY_SINK:
        o->n_sink_blocks = parse_count(state, "sink", argument);
        break;
    case KEY_LOCAL:
        o->n_local_blocks = parse_count(state, "local", argument);
        break;
    case KEY_SOFTMAX_SCALE:
        o->softmax_scale = parse_scale(state, argument);
        break;
    case KEY_DETERMINISTIC:
        o->deterministic = true;
        break;
    case KEY_DTYPE:
        if (!mobai_parse_dtype(argument, &o->dtype)) {
            argp_error(state, "--dtype is '%s'; f32, f16 or bf16 is needed", argument);
        }
        o->has_dtype = true;
        break;
    case KEY_BACKEND:
        o->backend = argument;
        break;
    case KEY_OUT:
        o->out = argument;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", argument);
        break;
    case ARGP_KEY_END:
        check_options(state, o);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int mobai_cli_run(int argc, char **argv) {
    static const struct argp argp = {options, parse_option, NULL, doc, NULL, NULL, NULL};
    mobai_job job = {.options = {.causal = true}};
    int exit_code = mobai_cli_options(&argp, argc, argv, &job.options);
    if (exit_code != MOBAI_EXIT_OK) return exit_code;

    exit_code = mobai_job_open(&job);
    if (exit_code == MOBAI_EXIT_OK) exit_code = mobai_job_execute(&job);
    mobai_job_close(&job);
    return exit_code;
}
