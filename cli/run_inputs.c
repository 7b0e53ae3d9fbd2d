/* SPDX-License-Identifier: Apache-2.0
 *
 * Input files of `moba run`: opening, and checking everything that can be checked on the host.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/npy.h"
#include "cli/progress.h"
#include "cli/run.h"
#include "core/geometry.h"

#define MAX_HEAD_DIM 256
#define MAX_KCONV_WIDTH 8

static const struct {
    const char *name, *option;
} tensors[MOBAI_JOB_TENSOR_COUNT] = {
    [MOBAI_JOB_Q] = {"q", "q"},
    [MOBAI_JOB_K] = {"k", "k"},
    [MOBAI_JOB_V] = {"v", "v"},
    [MOBAI_JOB_DO] = {"do", "do"},
    [MOBAI_JOB_KCONV_WEIGHT] = {"kconv_weight", "kconv-weight"},
    [MOBAI_JOB_SELECTION] = {"selection", "selection"},
    [MOBAI_JOB_CU_SEQLENS_Q] = {"cu_seqlens_q", "cu-seqlens-q"},
    [MOBAI_JOB_CU_SEQLENS_K] = {"cu_seqlens_k", "cu-seqlens-k"},
};

const char *mobai_job_tensor_name(mobai_job_tensor tensor) { return tensors[tensor].name; }
const char *mobai_job_tensor_option(mobai_job_tensor tensor) { return tensors[tensor].option; }

static bool is_integer(mobai_job_tensor tensor) {
    return tensor == MOBAI_JOB_SELECTION || tensor == MOBAI_JOB_CU_SEQLENS_Q || tensor == MOBAI_JOB_CU_SEQLENS_K;
}

/* ---------------------------------------------------------------------------------------------- opening -- */

static bool open_npy(mobai_job_input *input, const char *path, mobai_message *message) {
    uint64_t file_bytes = 0;
    snprintf(input->label, sizeof input->label, "%s", path);
    input->fd = mobai_file_open(path, &file_bytes, message);
    input->owns_fd = input->fd >= 0;
    return input->fd >= 0 && mobai_npy_read_header(input->fd, file_bytes, &input->view, message);
}

/** Takes tensor `t` from the safetensors file if it is there. */
static int take_from_file(mobai_job *job, mobai_job_tensor t) {
    mobai_job_input *input = &job->inputs[t];
    const mobai_job_options *o = &job->options;
    mobai_message message;
    if (t == MOBAI_JOB_SELECTION && o->dense) return MOBAI_EXIT_OK;
    switch (mobai_safetensors_find(job->file, tensors[t].name, &input->view, &message)) {
    case MOBAI_FIND_NONE:
        return MOBAI_EXIT_OK;
    case MOBAI_FIND_REFUSED:
        return mobai_cli_error(message.exit_code, "%s %s", o->input, message.text);
    case MOBAI_FIND_OK:
        break;
    }
    if (o->paths[t] != NULL) {
        return mobai_cli_error(MOBAI_EXIT_USAGE, "%s is given twice: by --%s and by %s", tensors[t].name,
                               tensors[t].option, o->input);
    }
    snprintf(input->label, sizeof input->label, "%s of %s", tensors[t].name, o->input);
    input->fd = mobai_safetensors_fd(job->file);
    return MOBAI_EXIT_OK;
}

static int open_all(mobai_job *job) {
    const mobai_job_options *o = &job->options;
    mobai_message message;
    if (o->input != NULL) {
        job->file = mobai_safetensors_open(o->input, &message);
        if (job->file == NULL) return mobai_cli_error(message.exit_code, "%s %s", o->input, message.text);
    }
    for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++) {
        if (job->file != NULL) {
            int exit_code = take_from_file(job, (mobai_job_tensor)t);
            if (exit_code != MOBAI_EXIT_OK) return exit_code;
        }
        if (o->paths[t] != NULL && !open_npy(&job->inputs[t], o->paths[t], &message)) {
            return mobai_cli_error(message.exit_code, "%s %s", o->paths[t], message.text);
        }
    }
    for (int t = MOBAI_JOB_Q; t <= MOBAI_JOB_V; t++) {
        if (!mobai_job_has(job, (mobai_job_tensor)t)) {
            return mobai_cli_error(MOBAI_EXIT_USAGE, "%s has no tensor '%s', and --%s is not given", o->input,
                                   tensors[t].name, tensors[t].option);
        }
    }
    return MOBAI_EXIT_OK;
}

/* --------------------------------------------------------------------------------------- types, shapes -- */

static int check_types(mobai_job *job) {
    const mobai_job_input *q = &job->inputs[MOBAI_JOB_Q];
    for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++) {
        const mobai_job_input *input = &job->inputs[t];
        if (input->fd < 0) continue;
        const char *type = mobai_element_name(input->view.element);
        bool integer = input->view.element == MOBAI_ELEMENT_I32;
        if (integer != is_integer((mobai_job_tensor)t)) {
            return mobai_cli_error(MOBAI_EXIT_USAGE, "%s is %s; %s must be %s", input->label, type, tensors[t].name,
                                   integer ? "a float type" : "int32");
        }
        if (!integer && !job->options.has_dtype && input->view.element != q->view.element) {
            return mobai_cli_error(MOBAI_EXIT_USAGE, "%s is %s, but %s is %s; --dtype rounds them all to one type",
                                   input->label, type, q->label, mobai_element_name(q->view.element));
        }
    }
    job->dtype = job->options.has_dtype ? job->options.dtype : (moba_dtype)q->view.element;
    return MOBAI_EXIT_OK;
}

static int refuse_shape(const mobai_job_input *input, const char *needed) {
    char shape[200];
    return mobai_cli_error(MOBAI_EXIT_USAGE, "%s has shape %s; %s", input->label,
                           mobai_shape_text(&input->view, shape, sizeof shape), needed);
}

/** Refuses `input` unless it has rank 3 and, where `expected` is not -1, those sizes. `meaning` names the dimensions.
 */
static int check_shape(const mobai_job_input *input, const char *meaning, int64_t d0, int64_t d1, int64_t d2) {
    const int64_t expected[3] = {d0, d1, d2};
    bool matches = input->view.rank == 3;
    for (int i = 0; i < 3 && matches; i++)
        matches = expected[i] < 0 || input->view.shape[i] == expected[i];
    if (matches) return MOBAI_EXIT_OK;
    char needed[256], sizes[3][24];
    for (int i = 0; i < 3; i++)
        snprintf(sizes[i], sizeof sizes[i], expected[i] < 0 ? "any" : "%" PRId64, expected[i]);
    snprintf(needed, sizeof needed, "%s is needed, here [%s, %s, %s]", meaning, sizes[0], sizes[1], sizes[2]);
    return refuse_shape(input, needed);
}

static int check_heads(mobai_job *job) {
    const mobai_job_input *q = &job->inputs[MOBAI_JOB_Q], *k = &job->inputs[MOBAI_JOB_K];
    const int64_t *qs = q->view.shape, *ks = k->view.shape;
    const int64_t row_limit = INT32_MAX; /* 2^31 rows and more are refused */
    if (qs[2] < 1 || qs[2] > MAX_HEAD_DIM) return refuse_shape(q, "head_dim, the last dimension, must be 1 to 256");
    if (qs[1] < 1 || qs[1] > INT32_MAX) return refuse_shape(q, "there must be at least one head and fewer than 2^31");
    if (ks[1] < 1 || ks[1] > qs[1] || qs[1] % ks[1] != 0) {
        char needed[128];
        snprintf(needed, sizeof needed, "the %" PRId64 " query heads of q must be a multiple of its heads", qs[1]);
        return refuse_shape(k, needed);
    }
    if (qs[0] > row_limit) return refuse_shape(q, "there must be fewer than 2^31 rows");
    if (ks[0] > row_limit) return refuse_shape(k, "there must be fewer than 2^31 rows");
    job->total_q = qs[0];
    job->total_k = ks[0];
    job->n_q_heads = (int32_t)qs[1];
    job->n_kv_heads = (int32_t)ks[1];
    job->head_dim = (int32_t)qs[2];
    return MOBAI_EXIT_OK;
}

static int check_shapes(mobai_job *job) {
    const char *keys = "[total_k, n_kv_heads, head_dim]";
    int code = check_shape(&job->inputs[MOBAI_JOB_Q], "[total_q, n_q_heads, head_dim]", -1, -1, -1);
    if (code != MOBAI_EXIT_OK) return code;
    code = check_shape(&job->inputs[MOBAI_JOB_K], keys, -1, -1, job->inputs[MOBAI_JOB_Q].view.shape[2]);
    if (code != MOBAI_EXIT_OK) return code;
    code = check_heads(job);
    if (code != MOBAI_EXIT_OK) return code;
    code = check_shape(&job->inputs[MOBAI_JOB_V], keys, job->total_k, job->n_kv_heads, job->head_dim);
    if (code != MOBAI_EXIT_OK) return code;
    if (mobai_job_has(job, MOBAI_JOB_DO)) {
        code = check_shape(&job->inputs[MOBAI_JOB_DO], "the shape of q", job->total_q, job->n_q_heads, job->head_dim);
        if (code != MOBAI_EXIT_OK) return code;
    }
    if (mobai_job_has(job, MOBAI_JOB_KCONV_WEIGHT)) {
        const mobai_job_input *w = &job->inputs[MOBAI_JOB_KCONV_WEIGHT];
        code = check_shape(w, "[n_kv_heads, head_dim, width]", job->n_kv_heads, job->head_dim, -1);
        if (code != MOBAI_EXIT_OK) return code;
        if (w->view.shape[2] < 2 || w->view.shape[2] > MAX_KCONV_WIDTH) {
            return refuse_shape(w, "the width of the convolution, its last dimension, must be 2 to 8");
        }
        job->kconv_width = (int32_t)w->view.shape[2];
    }
    job->top_k = job->options.top_k;
    if (mobai_job_has(job, MOBAI_JOB_SELECTION)) {
        return check_shape(&job->inputs[MOBAI_JOB_SELECTION], "[total_q, n_q_heads, top_k] with top_k as in --top-k",
                           job->total_q, job->n_q_heads, job->top_k);
    }
    return MOBAI_EXIT_OK;
}

/* ------------------------------------------------------------------------------------- integer tensors -- */

static int load_integers(mobai_job *job, mobai_job_tensor t, int32_t **out) {
    mobai_job_input *input = &job->inputs[t];
    mobai_message message;
    void *data = NULL;
    mobai_progress("reading %s", tensors[t].name);
    if (!mobai_tensor_load(input->fd, &input->view, MOBAI_ELEMENT_I32, &data, &message)) {
        return mobai_cli_error(message.exit_code, "%s %s", input->label, message.text);
    }
    *out = data;
    return MOBAI_EXIT_OK;
}

/** Checks one cu_seqlens and finds the longest sequence. */
static int check_cu_seqlens(const mobai_job *job, mobai_job_tensor t, const int32_t *cu, int64_t total,
                            int64_t *max_seqlen) {
    const mobai_job_input *input = &job->inputs[t];
    if (cu[0] != 0)
        return mobai_cli_error(MOBAI_EXIT_USAGE, "%s begins with %d; it must begin with 0", input->label, cu[0]);
    *max_seqlen = 0;
    for (int64_t b = 0; b < job->batch; b++) {
        if (cu[b + 1] < cu[b]) {
            return mobai_cli_error(MOBAI_EXIT_USAGE,
                                   "%s is not ascending: entry %" PRId64 " is %d, entry %" PRId64 " is %d",
                                   input->label, b, cu[b], b + 1, cu[b + 1]);
        }
        *max_seqlen = mobai_max64(*max_seqlen, cu[b + 1] - cu[b]);
    }
    if (cu[job->batch] > total) {
        return mobai_cli_error(MOBAI_EXIT_USAGE, "%s ends with %d, but there are only %" PRId64 " rows", input->label,
                               cu[job->batch], total);
    }
    return MOBAI_EXIT_OK;
}

static int open_cu_seqlens(mobai_job *job) {
    const mobai_job_input *q = &job->inputs[MOBAI_JOB_CU_SEQLENS_Q], *k = &job->inputs[MOBAI_JOB_CU_SEQLENS_K];
    job->batch = 1;
    job->max_seqlen_q = job->total_q;
    job->max_seqlen_k = job->total_k;
    if (q->fd < 0 && k->fd < 0) return MOBAI_EXIT_OK;
    if (q->fd < 0 || k->fd < 0) {
        return mobai_cli_error(MOBAI_EXIT_USAGE, "%s is given without %s; packed sequences need both",
                               q->fd < 0 ? "cu_seqlens_k" : "cu_seqlens_q",
                               q->fd < 0 ? "cu_seqlens_q" : "cu_seqlens_k");
    }
    const char *needed = "[batch + 1] with at least one sequence is needed";
    if (q->view.rank != 1 || q->view.shape[0] < 2 || q->view.shape[0] > INT32_MAX) return refuse_shape(q, needed);
    if (k->view.rank != 1 || k->view.shape[0] != q->view.shape[0]) {
        return refuse_shape(k, "it must have as many entries as cu_seqlens_q");
    }
    job->batch = q->view.shape[0] - 1;
    int code = load_integers(job, MOBAI_JOB_CU_SEQLENS_Q, &job->cu_seqlens_q);
    if (code == MOBAI_EXIT_OK) code = load_integers(job, MOBAI_JOB_CU_SEQLENS_K, &job->cu_seqlens_k);
    if (code == MOBAI_EXIT_OK) {
        code = check_cu_seqlens(job, MOBAI_JOB_CU_SEQLENS_Q, job->cu_seqlens_q, job->total_q, &job->max_seqlen_q);
    }
    if (code == MOBAI_EXIT_OK) {
        code = check_cu_seqlens(job, MOBAI_JOB_CU_SEQLENS_K, job->cu_seqlens_k, job->total_k, &job->max_seqlen_k);
    }
    return code;
}

/** One row list: block ids of the sequence, ascending, then -1 to the end. */
static int check_row(const mobai_job *job, const int32_t *row, int64_t n_blocks, int64_t t, int32_t h) {
    const char *label = job->inputs[MOBAI_JOB_SELECTION].label;
    for (int32_t r = 0; r < job->top_k; r++) {
        int32_t id = row[r], before = r > 0 ? row[r - 1] : -1;
        if (id == -1) continue;
        const char *fault = NULL;
        if (id < -1 || id >= n_blocks) {
            return mobai_cli_error(MOBAI_EXIT_USAGE,
                                   "%s at [%" PRId64 ", %d, %d] holds block %d; the sequence of that row has %" PRId64
                                   " blocks of %d keys, and -1 means none",
                                   label, t, h, r, id, n_blocks, job->options.block_size);
        }
        if (r > 0 && before == -1) {
            fault = "after -1; -1 may stand only at the end of a row";
        } else if (before == id) {
            fault = "twice; a block may be selected once";
        } else if (before > id) {
            fault = "after a larger one; ids must ascend";
        }
        if (fault != NULL) {
            return mobai_cli_error(MOBAI_EXIT_USAGE, "%s at [%" PRId64 ", %d, %d] holds block %d %s", label, t, h, r,
                                   id, fault);
        }
    }
    return MOBAI_EXIT_OK;
}

/** Rows past the last sequence are not looked at: they belong to no sequence and get zeros. */
static int check_selection(const mobai_job *job) {
    if (job->options.block_size < 1) {
        return mobai_cli_error(MOBAI_EXIT_USAGE, "--block-size is %d; it must be at least 16", job->options.block_size);
    }
    for (int64_t b = 0; b < job->batch; b++) {
        mobai_rows q = mobai_seq_rows(job->cu_seqlens_q, job->total_q, job->total_q, b);
        mobai_rows k = mobai_seq_rows(job->cu_seqlens_k, job->total_k, job->total_k, b);
        int64_t n_blocks = mobai_n_blocks(k.end - k.begin, job->options.block_size);
        for (int64_t t = q.begin; t < q.end; t++) {
            for (int32_t h = 0; h < job->n_q_heads; h++) {
                const int32_t *row = job->selection + (t * job->n_q_heads + h) * (int64_t)job->top_k;
                int code = check_row(job, row, n_blocks, t, h);
                if (code != MOBAI_EXIT_OK) return code;
            }
        }
    }
    return MOBAI_EXIT_OK;
}

int mobai_job_open(mobai_job *job) {
    for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++)
        job->inputs[t].fd = -1;
    int code = open_all(job);
    if (code == MOBAI_EXIT_OK) code = check_types(job);
    if (code == MOBAI_EXIT_OK) code = check_shapes(job);
    if (code == MOBAI_EXIT_OK) code = open_cu_seqlens(job);
    if (code == MOBAI_EXIT_OK && mobai_job_has(job, MOBAI_JOB_SELECTION)) {
        code = load_integers(job, MOBAI_JOB_SELECTION, &job->selection);
        if (code == MOBAI_EXIT_OK) code = check_selection(job);
    }
    return code;
}

void mobai_job_close(mobai_job *job) {
    for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++) {
        if (job->inputs[t].owns_fd) close(job->inputs[t].fd);
    }
    mobai_safetensors_close(job->file);
    free(job->cu_seqlens_q);
    free(job->cu_seqlens_k);
    free(job->selection);
}
