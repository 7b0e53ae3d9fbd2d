/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba run` on a device: plan, buffers, the passes, and the output files. Tensors stream between files and device in
 * pieces, so the host holds none of them whole.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/npy.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/run.h"

#define PIECE_ELEMENTS ((size_t)1 << 20)

typedef enum output {
    OUTPUT_LSE,
    OUTPUT_SELECTION,
    OUTPUT_DW,
    OUTPUT_O,
    OUTPUT_DQ,
    OUTPUT_DK,
    OUTPUT_DV,
    OUTPUT_COUNT
} output;

/* 4-byte types first, so that every tensor of a safetensors file is aligned to its type. */
static const char *const output_names[OUTPUT_COUNT] = {"lse", "selection", "dw", "o", "dq", "dk", "dv"};

/** One result: where it lies on the device, and what it becomes in a file. */
typedef struct result {
    bool wanted;
    moba_buffer buffer;
    mobai_element element;   /* on the device */
    mobai_named_tensor file; /* in the file */
    int number;              /* of mobai_output_create() */
} result;

typedef struct machine {
    const mobai_job *job;
    moba_context *context;
    moba_plan *plan;
    moba_stream stream;
    moba_buffer inputs[MOBAI_JOB_TENSOR_COUNT];
    result results[OUTPUT_COUNT];
    moba_buffer saved, workspace;
    size_t saved_bytes, workspace_bytes;
} machine;

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        moba_status try_status = (call);                                                                               \
        if (try_status != MOBA_OK) return mobai_cli_fail(try_status);                                                  \
    } while (0)

#define TRY_EXIT(call)                                                                                                 \
    do {                                                                                                               \
        int try_exit = (call);                                                                                         \
        if (try_exit != MOBAI_EXIT_OK) return try_exit;                                                                \
    } while (0)

/* ---------------------------------------------------------------------------------------------- planning -- */

static int make_plan(machine *m) {
    const mobai_job *job = m->job;
    const mobai_job_options *o = &job->options;
    moba_context_options context_options = MOBA_CONTEXT_OPTIONS_INIT;
    context_options.backend = o->backend;
    mobai_progress("opening the device");
    TRY(moba_context_create(&context_options, &m->context));

    bool prescribed = mobai_job_has(job, MOBAI_JOB_SELECTION);
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.dtype = job->dtype;
    problem.n_q_heads = job->n_q_heads;
    problem.n_kv_heads = job->n_kv_heads;
    problem.head_dim = job->head_dim;
    problem.block_size = o->block_size;
    problem.top_k = job->top_k;
    problem.n_sink_blocks = prescribed ? 0 : o->n_sink_blocks; /* a prescribed selection gets no forced blocks */
    problem.n_local_blocks = prescribed ? 0 : o->n_local_blocks;
    problem.kconv_width = job->kconv_width;
    problem.causal = o->causal;
    problem.dense = o->dense;
    problem.deterministic = o->deterministic;
    problem.softmax_scale = o->softmax_scale;
    problem.max_batch = job->batch;
    problem.max_total_q = job->total_q;
    problem.max_total_k = job->total_k;
    problem.max_seqlen_q = job->max_seqlen_q;
    problem.max_seqlen_k = job->max_seqlen_k;
    problem.inference = !mobai_job_has(job, MOBAI_JOB_DO);
    TRY(moba_plan_create(m->context, &problem, &m->plan));
    TRY(moba_plan_workspace(m->plan, &m->workspace_bytes));
    TRY(moba_plan_saved(m->plan, &m->saved_bytes));
    return MOBAI_EXIT_OK;
}

static void set_result(machine *m, output which, mobai_element element, mobai_element file_element, int64_t d0,
                       int64_t d1, int64_t d2) {
    result *r = &m->results[which];
    r->wanted = true;
    r->element = element;
    r->file =
        (mobai_named_tensor){.name = output_names[which], .view = {.element = file_element, .shape = {d0, d1, d2}}};
    r->file.view.rank = which == OUTPUT_LSE ? 2 : 3;
}

/** Type of a result in a file: that of the input it belongs to in safetensors, else float32. */
static mobai_element file_element(const mobai_job *job, mobai_job_tensor like) {
    return job->file != NULL ? job->inputs[like].view.element : MOBAI_ELEMENT_F32;
}

static void list_results(machine *m) {
    const mobai_job *job = m->job;
    const mobai_element f32 = MOBAI_ELEMENT_F32, i32 = MOBAI_ELEMENT_I32, own = (mobai_element)job->dtype;
    int64_t tq = job->total_q, tk = job->total_k, hq = job->n_q_heads, hk = job->n_kv_heads, d = job->head_dim;
    set_result(m, OUTPUT_O, own, file_element(job, MOBAI_JOB_Q), tq, hq, d);
    set_result(m, OUTPUT_LSE, f32, f32, hq, tq, 0);
    if (!job->options.dense) set_result(m, OUTPUT_SELECTION, i32, i32, tq, hq, job->top_k);
    if (!mobai_job_has(job, MOBAI_JOB_DO)) return;
    set_result(m, OUTPUT_DQ, own, file_element(job, MOBAI_JOB_Q), tq, hq, d);
    set_result(m, OUTPUT_DK, own, file_element(job, MOBAI_JOB_K), tk, hk, d);
    set_result(m, OUTPUT_DV, own, file_element(job, MOBAI_JOB_V), tk, hk, d);
    if (job->kconv_width > 0) set_result(m, OUTPUT_DW, f32, f32, hk, d, job->kconv_width);
}

/** Number of elements of a result. */
static uint64_t result_count(const result *r) {
    uint64_t count = 1;
    for (int32_t i = 0; i < r->file.view.rank; i++)
        count *= (uint64_t)r->file.view.shape[i];
    return count;
}

/* ----------------------------------------------------------------------------------------------- buffers -- */

/** Creates a buffer; one of no bytes gets a few, so that it has a handle. */
static moba_status make_buffer(machine *m, uint64_t bytes, moba_buffer *out) {
    return moba_buffer_create(m->context, bytes > 0 ? (size_t)bytes : 256, out);
}

static mobai_element device_element(const mobai_job *job, int t) {
    return job->inputs[t].view.element == MOBAI_ELEMENT_I32 ? MOBAI_ELEMENT_I32 : (mobai_element)job->dtype;
}

static int make_buffers(machine *m) {
    const mobai_job *job = m->job;
    mobai_progress("allocating memory");
    for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++) {
        if (!mobai_job_has(job, (mobai_job_tensor)t)) continue;
        uint64_t count = mobai_view_count(&job->inputs[t].view);
        TRY(make_buffer(m, count * mobai_element_bytes(device_element(job, t)), &m->inputs[t]));
    }
    for (int i = 0; i < OUTPUT_COUNT; i++) {
        result *r = &m->results[i];
        if (!r->wanted) continue;
        if (i == OUTPUT_SELECTION && mobai_job_has(job, MOBAI_JOB_SELECTION)) {
            r->buffer = m->inputs[MOBAI_JOB_SELECTION];
        } else {
            TRY(make_buffer(m, result_count(r) * mobai_element_bytes(r->element), &r->buffer));
        }
    }
    if (mobai_job_has(job, MOBAI_JOB_DO)) TRY(make_buffer(m, m->saved_bytes, &m->saved));
    TRY(make_buffer(m, m->workspace_bytes, &m->workspace));
    return MOBAI_EXIT_OK;
}

typedef struct upload {
    machine *m;
    moba_buffer to;
    size_t element_bytes;
    moba_status status;
} upload;

static bool upload_piece(void *user, uint64_t first, const void *data, size_t n) {
    upload *u = user;
    moba_buffer to = u->to;
    to.offset += first * u->element_bytes;
    u->status = moba_buffer_write(u->m->context, u->m->stream, to, data, n * u->element_bytes);
    return u->status == MOBA_OK;
}

static int upload_inputs(machine *m) {
    const mobai_job *job = m->job;
    const int32_t *loaded[MOBAI_JOB_TENSOR_COUNT] = {[MOBAI_JOB_SELECTION] = job->selection,
                                                     [MOBAI_JOB_CU_SEQLENS_Q] = job->cu_seqlens_q,
                                                     [MOBAI_JOB_CU_SEQLENS_K] = job->cu_seqlens_k};
    for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++) {
        const mobai_job_input *input = &job->inputs[t];
        if (input->fd < 0 || input->view.n_bytes == 0) continue;
        if (loaded[t] != NULL) { /* what was checked is what is used, whatever happens to the file */
            TRY(moba_buffer_write(m->context, m->stream, m->inputs[t], loaded[t], (size_t)input->view.n_bytes));
            continue;
        }
        mobai_progress("reading %s", mobai_job_tensor_name((mobai_job_tensor)t));
        mobai_message message;
        mobai_element element = device_element(job, t);
        upload u = {m, m->inputs[t], mobai_element_bytes(element), MOBA_OK};
        switch (mobai_tensor_stream(input->fd, &input->view, element, upload_piece, &u, &message)) {
        case MOBAI_STREAM_OK:
            break;
        case MOBAI_STREAM_STOPPED:
            return mobai_cli_fail(u.status);
        case MOBAI_STREAM_UNREADABLE:
            return mobai_cli_error(message.exit_code, "%s %s", input->label, message.text);
        }
    }
    return MOBAI_EXIT_OK;
}

/* ---------------------------------------------------------------------------------------------- passes -- */

static moba_tensor view_rows(moba_buffer buffer, int32_t n_heads, int32_t head_dim, int64_t total) {
    int64_t row = (int64_t)n_heads * head_dim;
    return (moba_tensor){buffer, row, head_dim, row * total};
}

static int run_passes(machine *m) {
    const mobai_job *job = m->job;
    const int32_t hq = job->n_q_heads, hk = job->n_kv_heads, d = job->head_dim;
    const int64_t tq = job->total_q, tk = job->total_k;
    const result *r = m->results;
    moba_inputs in = {.q = view_rows(m->inputs[MOBAI_JOB_Q], hq, d, tq),
                      .k = view_rows(m->inputs[MOBAI_JOB_K], hk, d, tk),
                      .v = view_rows(m->inputs[MOBAI_JOB_V], hk, d, tk),
                      .kconv_weight = m->inputs[MOBAI_JOB_KCONV_WEIGHT],
                      .cu_seqlens_q = m->inputs[MOBAI_JOB_CU_SEQLENS_Q],
                      .cu_seqlens_k = m->inputs[MOBAI_JOB_CU_SEQLENS_K],
                      .batch = job->batch,
                      .total_q = tq,
                      .total_k = tk};
    const moba_tensor o = view_rows(r[OUTPUT_O].buffer, hq, d, tq);
    mobai_progress("forward on %s", moba_context_backend(m->context));
    if (mobai_job_has(job, MOBAI_JOB_SELECTION)) {
        moba_attend_args args = MOBA_ATTEND_ARGS_INIT;
        args.in = in;
        args.selection = m->inputs[MOBAI_JOB_SELECTION];
        args.o = o;
        args.lse = r[OUTPUT_LSE].buffer;
        args.saved = m->saved;
        args.saved_bytes = m->saved_bytes;
        args.workspace = m->workspace;
        args.workspace_bytes = m->workspace_bytes;
        TRY(moba_attend(m->plan, m->stream, &args));
    } else {
        moba_forward_args args = MOBA_FORWARD_ARGS_INIT;
        args.in = in;
        args.o = o;
        args.lse = r[OUTPUT_LSE].buffer;
        args.selection = r[OUTPUT_SELECTION].buffer;
        args.saved = m->saved;
        args.saved_bytes = m->saved_bytes;
        args.workspace = m->workspace;
        args.workspace_bytes = m->workspace_bytes;
        TRY(moba_forward(m->plan, m->stream, &args));
    }
    TRY(moba_stream_synchronize(m->context, m->stream));
    if (!mobai_job_has(job, MOBAI_JOB_DO)) return MOBAI_EXIT_OK;

    mobai_progress("backward on %s", moba_context_backend(m->context));
    moba_backward_args args = MOBA_BACKWARD_ARGS_INIT;
    args.in = in;
    args.o = o;
    args.lse = r[OUTPUT_LSE].buffer;
    args.dout = view_rows(m->inputs[MOBAI_JOB_DO], hq, d, tq);
    args.saved = m->saved;
    args.saved_bytes = m->saved_bytes;
    args.dq = view_rows(r[OUTPUT_DQ].buffer, hq, d, tq);
    args.dk = view_rows(r[OUTPUT_DK].buffer, hk, d, tk);
    args.dv = view_rows(r[OUTPUT_DV].buffer, hk, d, tk);
    args.dkconv_weight = r[OUTPUT_DW].buffer;
    args.workspace = m->workspace;
    args.workspace_bytes = m->workspace_bytes;
    TRY(moba_backward(m->plan, m->stream, &args));
    TRY(moba_stream_synchronize(m->context, m->stream));
    return MOBAI_EXIT_OK;
}

/* --------------------------------------------------------------------------------------------- outputs -- */

/** Creates the output files before the long work, so that an unwritable directory is known early. */
static int create_outputs(machine *m) {
    const mobai_job *job = m->job;
    mobai_message message;
    if (!mobai_output_directory(job->options.out, &message))
        return mobai_cli_error(message.exit_code, "%s", message.text);
    int number = -1;
    for (int i = 0; i < OUTPUT_COUNT; i++) {
        result *r = &m->results[i];
        if (!r->wanted) continue;
        if (job->file == NULL || number < 0) {
            char name[32] = "out.safetensors";
            if (job->file == NULL) snprintf(name, sizeof name, "%s.npy", output_names[i]);
            number = mobai_output_create(job->options.out, name, &message);
            if (number < 0) return mobai_cli_error(message.exit_code, "%s", message.text);
        }
        r->number = number;
    }
    return MOBAI_EXIT_OK;
}

static int write_file(int number, const void *data, size_t n_bytes) {
    mobai_message message;
    if (mobai_output_write(number, data, n_bytes, &message)) return MOBAI_EXIT_OK;
    return mobai_cli_error(message.exit_code, "%s", message.text);
}

static int write_safetensors_header(machine *m) {
    mobai_named_tensor tensors[OUTPUT_COUNT];
    size_t n = 0, n_bytes = 0;
    int number = -1;
    for (int i = 0; i < OUTPUT_COUNT; i++) {
        if (!m->results[i].wanted) continue;
        tensors[n++] = m->results[i].file;
        number = m->results[i].number;
    }
    uint8_t *header = mobai_safetensors_header(tensors, n, &n_bytes);
    if (header == NULL) return mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory for the header of out.safetensors");
    int exit_code = write_file(number, header, n_bytes);
    free(header);
    return exit_code;
}

/** Copies one result to its file in pieces. */
static int write_pieces(machine *m, const result *r, void *raw, void *converted) {
    const size_t from_bytes = mobai_element_bytes(r->element), to_bytes = mobai_element_bytes(r->file.view.element);
    const uint64_t count = result_count(r);
    mobai_progress("writing %s", r->file.name);
    for (uint64_t first = 0; first < count; first += PIECE_ELEMENTS) {
        size_t n = count - first < PIECE_ELEMENTS ? (size_t)(count - first) : PIECE_ELEMENTS;
        moba_buffer from = r->buffer;
        from.offset += first * from_bytes;
        TRY(moba_buffer_read(m->context, m->stream, from, raw, n * from_bytes));
        mobai_convert(converted, r->file.view.element, raw, r->element, n);
        TRY_EXIT(write_file(r->number, converted, n * to_bytes));
        mobai_progress_at(first + n, count);
    }
    return MOBAI_EXIT_OK;
}

static int write_results(machine *m, void *raw, void *converted) {
    if (m->job->file != NULL) TRY_EXIT(write_safetensors_header(m));
    for (int i = 0; i < OUTPUT_COUNT; i++) {
        const result *r = &m->results[i];
        if (!r->wanted) continue;
        if (m->job->file == NULL) {
            uint8_t header[MOBAI_NPY_HEADER_CAPACITY];
            size_t n_bytes = mobai_npy_header(&r->file.view, header);
            TRY_EXIT(write_file(r->number, header, n_bytes));
        }
        TRY_EXIT(write_pieces(m, r, raw, converted));
    }
    return MOBAI_EXIT_OK;
}

static int write_outputs(machine *m) {
    mobai_message message;
    void *raw = malloc(PIECE_ELEMENTS * 4), *converted = malloc(PIECE_ELEMENTS * 4);
    int exit_code = MOBAI_EXIT_OK;
    if (raw == NULL || converted == NULL) {
        exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory for %zu bytes", PIECE_ELEMENTS * 8);
    } else {
        exit_code = write_results(m, raw, converted);
    }
    free(raw);
    free(converted);
    if (exit_code != MOBAI_EXIT_OK) return exit_code;
    if (!mobai_output_commit(&message)) return mobai_cli_error(message.exit_code, "%s", message.text);
    return MOBAI_EXIT_OK;
}

static void close_machine(machine *m) {
    mobai_output_discard();
    if (m->context != NULL) {
        for (int i = 0; i < OUTPUT_COUNT; i++) {
            if (i == OUTPUT_SELECTION && mobai_job_has(m->job, MOBAI_JOB_SELECTION)) continue; /* the input's buffer */
            moba_buffer_destroy(m->context, m->results[i].buffer);
        }
        for (int t = 0; t < MOBAI_JOB_TENSOR_COUNT; t++)
            moba_buffer_destroy(m->context, m->inputs[t]);
        moba_buffer_destroy(m->context, m->saved);
        moba_buffer_destroy(m->context, m->workspace);
    }
    moba_plan_destroy(m->plan);
    moba_context_destroy(m->context);
}

static int execute(machine *m) {
    TRY_EXIT(make_plan(m));
    list_results(m);
    TRY_EXIT(create_outputs(m));
    TRY_EXIT(make_buffers(m));
    TRY_EXIT(upload_inputs(m));
    TRY_EXIT(run_passes(m));
    return write_outputs(m);
}

int mobai_job_execute(const mobai_job *job) {
    machine m = {.job = job};
    int exit_code = execute(&m);
    close_machine(&m);
    return exit_code;
}
