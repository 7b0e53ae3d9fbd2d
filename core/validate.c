/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks: the problem at plan time, a run's arguments, and (MOBA_VALIDATE=1) the run's device data. Each refusal is
 * one sentence with the name, the value and the limit.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/convert.h"
#include "core/geometry.h"
#include "core/plan.h"
#include "core/status.h"

#define INVALID(...) mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, __VA_ARGS__)
#define UNSUPPORTED(...) mobai_fail(MOBA_ERROR_UNSUPPORTED, __VA_ARGS__)

/* ---------------------------------------------------------------------------------------------- problem -- */

/** Keys of one internal tile of the dense mode, which has no routed blocks. */
#define MOBAI_DENSE_TILE 128
/** Ranks in the index are 16 bits. */
#define MOBAI_MAX_PICKS 65535

static moba_status check_flag(int32_t value, const char *name) {
    return value == 0 || value == 1 ? MOBA_OK : INVALID("%s is %d; it must be 0 or 1", name, value);
}

static moba_status check_heads(const moba_problem *p) {
    if (p->dtype != MOBA_F32 && p->dtype != MOBA_F16 && p->dtype != MOBA_BF16)
        return INVALID("dtype is %d; it must be MOBA_F32 (0), MOBA_F16 (1) or MOBA_BF16 (2)", (int)p->dtype);
    if (p->n_q_heads < 1) return INVALID("n_q_heads is %d; it must be at least 1", p->n_q_heads);
    if (p->n_kv_heads < 1) return INVALID("n_kv_heads is %d; it must be at least 1", p->n_kv_heads);
    if (p->n_q_heads % p->n_kv_heads != 0)
        return INVALID("n_q_heads is %d; it must be a multiple of n_kv_heads, which is %d", p->n_q_heads,
                       p->n_kv_heads);
    if (p->head_dim < 1) return INVALID("head_dim is %d; it must be 1..256", p->head_dim);
    if (p->head_dim > 256) return UNSUPPORTED("head_dim is %d; it must be 1..256", p->head_dim);
    if (p->kconv_width != 0 && (p->kconv_width < 2 || p->kconv_width > 8))
        return UNSUPPORTED("kconv_width is %d; it must be 0 (none) or 2..8", p->kconv_width);
    if (!isfinite(p->softmax_scale)) return INVALID("softmax_scale is %g; it must be finite", (double)p->softmax_scale);
    MOBAI_TRY(check_flag(p->causal, "causal"));
    MOBAI_TRY(check_flag(p->dense, "dense"));
    MOBAI_TRY(check_flag(p->inference, "inference"));
    if (p->reserved) return INVALID("reserved is %d; it must be 0", p->reserved);
    return check_flag(p->deterministic, "deterministic");
}

static moba_status check_bound(int64_t value, int64_t least, const char *name) {
    if (value < least) return INVALID("%s is %lld; it must be at least %lld", name, (long long)value, (long long)least);
    if (value > INT32_MAX) return UNSUPPORTED("%s is %lld; it must be below 2^31", name, (long long)value);
    return MOBA_OK;
}

static moba_status check_lengths(moba_problem *p) {
    MOBAI_TRY(check_bound(p->max_batch, 1, "max_batch"));
    MOBAI_TRY(check_bound(p->max_total_q, 0, "max_total_q"));
    MOBAI_TRY(check_bound(p->max_total_k, 0, "max_total_k"));
    MOBAI_TRY(check_bound(p->max_seqlen_q, 0, "max_seqlen_q"));
    MOBAI_TRY(check_bound(p->max_seqlen_k, 0, "max_seqlen_k"));
    if (p->max_seqlen_q == 0 || p->max_seqlen_q > p->max_total_q) p->max_seqlen_q = p->max_total_q;
    if (p->max_seqlen_k == 0 || p->max_seqlen_k > p->max_total_k) p->max_seqlen_k = p->max_total_k;
    int64_t group = p->n_q_heads / p->n_kv_heads;
    if (p->max_total_q > UINT32_MAX / group)
        return UNSUPPORTED("max_total_q is %lld with %lld query heads on a kv head; their product must be below 2^32",
                           (long long)p->max_total_q, (long long)group);
    return MOBA_OK;
}

static moba_status check_routing(moba_problem *p) {
    if (p->block_size < 1) return INVALID("block_size is %d; it must be at least 16", p->block_size);
    if (p->block_size < 16) return UNSUPPORTED("block_size is %d; it must be at least 16", p->block_size);
    if (p->top_k < 1) return INVALID("top_k is %d; it must be 1..128, or at least the number of key blocks", p->top_k);
    int64_t n = mobai_n_blocks(p->max_seqlen_k, p->block_size);
    if (p->top_k > 128 && p->top_k < n)
        return UNSUPPORTED("top_k is %d; it must be 1..128, or at least the %lld blocks of max_seqlen_k %lld", p->top_k,
                           (long long)n, (long long)p->max_seqlen_k);
    if (mobai_min64(p->top_k, n) > MOBAI_MAX_PICKS)
        return UNSUPPORTED("top_k is %d over %lld blocks; a row may attend to %d blocks at most, use dense", p->top_k,
                           (long long)n, MOBAI_MAX_PICKS);
    if (p->n_sink_blocks < 0) return INVALID("n_sink_blocks is %d; it must not be negative", p->n_sink_blocks);
    if (p->n_local_blocks < 0) return INVALID("n_local_blocks is %d; it must not be negative", p->n_local_blocks);
    if (p->n_local_blocks > 0 && !p->causal)
        return INVALID("n_local_blocks is %d without causal; it must be 0", p->n_local_blocks);
    if (p->causal && p->n_local_blocks == 0) p->n_local_blocks = 1;
    if ((int64_t)p->n_sink_blocks + p->n_local_blocks > p->top_k)
        return INVALID("n_sink_blocks %d and n_local_blocks %d (the own block counts) force %lld blocks; top_k is %d",
                       p->n_sink_blocks, p->n_local_blocks, (long long)p->n_sink_blocks + p->n_local_blocks, p->top_k);
    return MOBA_OK;
}

moba_status mobai_normalise_problem(moba_problem *p) {
    MOBAI_TRY(check_heads(p));
    if (p->softmax_scale == 0.0f) p->softmax_scale = (float)(1.0 / sqrt((double)p->head_dim));
    MOBAI_TRY(check_lengths(p));
    if (p->dense) {
        p->block_size = MOBAI_DENSE_TILE;
        p->top_k = 0;
        p->n_sink_blocks = 0;
        p->n_local_blocks = 0;
        return MOBA_OK;
    }
    return check_routing(p);
}

/* ------------------------------------------------------------------------------------------------- runs -- */

static moba_status check_buffer(const moba_plan *plan, moba_buffer buffer, size_t alignment, const char *name) {
    if (!buffer.handle) return INVALID("%s is none; this run needs it", name);
    uint64_t place = plan->context->backend->address_handles ? buffer.handle + buffer.offset : buffer.offset;
    if (place % alignment)
        return INVALID("%s is at %#llx; it must be a multiple of %zu bytes", name, (unsigned long long)place,
                       alignment);
    return MOBA_OK;
}

static moba_status check_stride(int64_t stride, int64_t count, const char *name, const char *which) {
    if (stride < 0) return INVALID("%s.%s_stride is %lld; it must not be negative", name, which, (long long)stride);
    if (count > 1 && stride > INT64_MAX / 8 / count)
        return INVALID("%s.%s_stride is %lld; with %lld rows its extent passes 2^63 bytes", name, which,
                       (long long)stride, (long long)count);
    return MOBA_OK;
}

static moba_status check_tensor(const moba_plan *plan, const mobai_run *run, const moba_tensor *t, int64_t rows,
                                int32_t heads, const char *name) {
    if (rows == 0) return MOBA_OK;
    MOBAI_TRY(check_buffer(plan, t->buffer, mobai_dtype_bytes(plan->problem.dtype), name));
    MOBAI_TRY(check_stride(t->token_stride, rows, name, "token"));
    MOBAI_TRY(check_stride(t->head_stride, heads, name, "head"));
    if (run->in.cu_seqlens_q.handle) return MOBA_OK;
    return check_stride(t->batch_stride, run->in.batch, name, "batch");
}

/** As check_tensor(), and two rows of an output may not share an element: they would race. */
static moba_status check_output(const moba_plan *plan, const mobai_run *run, const moba_tensor *t, int64_t rows,
                                int32_t heads, const char *name) {
    MOBAI_TRY(check_tensor(plan, run, t, rows, heads, name));
    int64_t d = plan->problem.head_dim;
    int64_t seq_rows = run->in.cu_seqlens_q.handle ? rows : rows / run->in.batch;
    if (seq_rows > 1 && t->token_stride < d)
        return INVALID("%s.token_stride is %lld; an output's must be at least head_dim, %lld", name,
                       (long long)t->token_stride, (long long)d);
    if (rows > 0 && heads > 1 && t->head_stride < d)
        return INVALID("%s.head_stride is %lld; an output's must be at least head_dim, %lld", name,
                       (long long)t->head_stride, (long long)d);
    return MOBA_OK;
}

static moba_status check_size(size_t bytes, size_t needed, const char *name) {
    if (bytes < needed)
        return mobai_fail(MOBA_ERROR_WORKSPACE_TOO_SMALL, "%s is %zu; this plan needs %zu", name, bytes, needed);
    return MOBA_OK;
}

static moba_status check_inputs(const moba_plan *plan, const mobai_run *run) {
    const moba_problem *p = &plan->problem;
    const moba_inputs *in = &run->in;
    if (in->batch < 1) return INVALID("batch is %lld; it must be at least 1", (long long)in->batch);
    if (in->total_q < 0) return INVALID("total_q is %lld; it must not be negative", (long long)in->total_q);
    if (in->total_k < 0) return INVALID("total_k is %lld; it must not be negative", (long long)in->total_k);
    if (in->batch > p->max_batch)
        return UNSUPPORTED("batch is %lld; the plan's max_batch is %lld", (long long)in->batch,
                           (long long)p->max_batch);
    if (in->total_q > p->max_total_q)
        return UNSUPPORTED("total_q is %lld; the plan's max_total_q is %lld", (long long)in->total_q,
                           (long long)p->max_total_q);
    if (in->total_k > p->max_total_k)
        return UNSUPPORTED("total_k is %lld; the plan's max_total_k is %lld", (long long)in->total_k,
                           (long long)p->max_total_k);
    bool has_q = in->cu_seqlens_q.handle != 0, has_k = in->cu_seqlens_k.handle != 0;
    if (has_q != has_k)
        return INVALID("cu_seqlens_%s is given and cu_seqlens_%s is none; give both or neither", has_q ? "q" : "k",
                       has_q ? "k" : "q");
    if (has_q) {
        MOBAI_TRY(check_buffer(plan, in->cu_seqlens_q, sizeof(int32_t), "cu_seqlens_q"));
        MOBAI_TRY(check_buffer(plan, in->cu_seqlens_k, sizeof(int32_t), "cu_seqlens_k"));
    } else {
        if (in->total_q % in->batch)
            return INVALID("total_q is %lld; without cu_seqlens it must be a multiple of batch, %lld",
                           (long long)in->total_q, (long long)in->batch);
        if (in->total_k % in->batch)
            return INVALID("total_k is %lld; without cu_seqlens it must be a multiple of batch, %lld",
                           (long long)in->total_k, (long long)in->batch);
        if (in->total_q / in->batch > p->max_seqlen_q)
            return UNSUPPORTED("sequences have %lld queries; the plan's max_seqlen_q is %lld",
                               (long long)(in->total_q / in->batch), (long long)p->max_seqlen_q);
        if (in->total_k / in->batch > p->max_seqlen_k)
            return UNSUPPORTED("sequences have %lld keys; the plan's max_seqlen_k is %lld",
                               (long long)(in->total_k / in->batch), (long long)p->max_seqlen_k);
    }
    if (p->kconv_width)
        MOBAI_TRY(check_buffer(plan, in->kconv_weight, mobai_dtype_bytes(p->dtype), "kconv_weight"));
    else if (in->kconv_weight.handle)
        return INVALID("kconv_weight is given, but the plan's kconv_width is 0");
    MOBAI_TRY(check_tensor(plan, run, &in->q, in->total_q, p->n_q_heads, "q"));
    MOBAI_TRY(check_tensor(plan, run, &in->k, in->total_k, p->n_kv_heads, "k"));
    if (run->kind != MOBAI_RUN_ROUTE) MOBAI_TRY(check_tensor(plan, run, &in->v, in->total_k, p->n_kv_heads, "v"));
    return MOBA_OK;
}

static moba_status check_backward(const moba_plan *plan, const mobai_run *run) {
    const moba_problem *p = &plan->problem;
    int64_t total_q = run->in.total_q, total_k = run->in.total_k;
    MOBAI_TRY(check_tensor(plan, run, &run->o, total_q, p->n_q_heads, "o"));
    MOBAI_TRY(check_tensor(plan, run, &run->dout, total_q, p->n_q_heads, "dout"));
    if (total_q) MOBAI_TRY(check_buffer(plan, run->lse, sizeof(float), "lse"));
    MOBAI_TRY(check_output(plan, run, &run->dq, total_q, p->n_q_heads, "dq"));
    MOBAI_TRY(check_output(plan, run, &run->dk, total_k, p->n_kv_heads, "dk"));
    MOBAI_TRY(check_output(plan, run, &run->dv, total_k, p->n_kv_heads, "dv"));
    if (p->kconv_width) return check_buffer(plan, run->dkconv_weight, sizeof(float), "dkconv_weight");
    if (run->dkconv_weight.handle) return INVALID("dkconv_weight is given, but the plan's kconv_width is 0");
    return MOBA_OK;
}

moba_status mobai_check_run(const moba_plan *plan, const mobai_run *run) {
    const moba_problem *p = &plan->problem;
    if (p->dense && (run->kind == MOBAI_RUN_ROUTE || run->kind == MOBAI_RUN_ATTEND))
        return INVALID("the plan is dense: it has no selection; use moba_forward");
    if (run->kind == MOBAI_RUN_BACKWARD && !plan->has_backward)
        return UNSUPPORTED("this plan has no backward: %s", plan->why_no_backward);
    MOBAI_TRY(check_inputs(plan, run));
    int64_t total_q = run->in.total_q;
    if (run->kind == MOBAI_RUN_FORWARD || run->kind == MOBAI_RUN_ATTEND)
        MOBAI_TRY(check_output(plan, run, &run->o, total_q, p->n_q_heads, "o"));
    if (run->kind == MOBAI_RUN_BACKWARD) MOBAI_TRY(check_backward(plan, run));
    if (run->lse.handle) MOBAI_TRY(check_buffer(plan, run->lse, sizeof(float), "lse"));
    bool needs_selection = total_q && (run->kind == MOBAI_RUN_ROUTE || run->kind == MOBAI_RUN_ATTEND);
    if (run->selection.handle || needs_selection) {
        if (p->dense) return INVALID("selection is given, but a dense plan has none");
        MOBAI_TRY(check_buffer(plan, run->selection, sizeof(int32_t), "selection"));
    }
    bool needs_saved = run->kind == MOBAI_RUN_BACKWARD && !p->dense;
    if (run->saved.handle && p->inference) return INVALID("saved is given, but the plan's inference is 1");
    if (run->saved.handle || needs_saved) {
        MOBAI_TRY(check_buffer(plan, run->saved, MOBAI_ALIGNMENT, "saved"));
        MOBAI_TRY(check_size(run->saved_bytes, plan->saved.bytes, "saved_bytes"));
    }
    if (plan->workspace_bytes) {
        MOBAI_TRY(
            check_size(run->workspace.handle ? run->workspace_bytes : 0, plan->workspace_bytes, "workspace_bytes"));
        MOBAI_TRY(check_buffer(plan, run->workspace, MOBAI_ALIGNMENT, "workspace"));
    }
    return MOBA_OK;
}

/* ------------------------------------------------------------------------------------------------- data -- */

static moba_status check_cu_seqlens(const int32_t *cu, int64_t batch, int64_t total, int64_t max_seqlen,
                                    const char *name) {
    if (cu[0] != 0) return mobai_fail(MOBA_ERROR_INVALID_DATA, "%s[0] is %d; it must be 0", name, cu[0]);
    for (int64_t b = 0; b < batch; b++) {
        if (cu[b + 1] < cu[b])
            return mobai_fail(MOBA_ERROR_INVALID_DATA, "%s[%lld] is %d, below %s[%lld], which is %d; it must ascend",
                              name, (long long)b + 1, cu[b + 1], name, (long long)b, cu[b]);
        if (cu[b + 1] - cu[b] > max_seqlen)
            return mobai_fail(MOBA_ERROR_INVALID_DATA, "%s: sequence %lld has %d rows; the plan's maximum is %lld",
                              name, (long long)b, cu[b + 1] - cu[b], (long long)max_seqlen);
    }
    if (cu[batch] > total)
        return mobai_fail(MOBA_ERROR_INVALID_DATA, "%s[%lld] is %d; there are %lld storage rows", name,
                          (long long)batch, cu[batch], (long long)total);
    return MOBA_OK;
}

static moba_status check_selection_row(const int32_t *row, int32_t top_k, int64_t n_blocks, int64_t t, int32_t h) {
    for (int32_t r = 0; r < top_k; r++) {
        int32_t id = row[r];
        if (id == -1) continue;
        if (id < -1 || id >= n_blocks)
            return mobai_fail(MOBA_ERROR_INVALID_DATA,
                              "selection[%lld][%d][%d] is %d; it must be -1 or a block id below %lld", (long long)t, h,
                              r, id, (long long)n_blocks);
        for (int32_t s = 0; s < r; s++)
            if (row[s] == id)
                return mobai_fail(MOBA_ERROR_INVALID_DATA, "selection[%lld][%d] holds block %d twice", (long long)t, h,
                                  id);
    }
    return MOBA_OK;
}

/** Reads selections a chunk of rows at a time, so that validation needs little memory. */
static moba_status check_selection(const moba_plan *plan, moba_stream stream, const mobai_run *run, const int32_t *cu_q,
                                   const int32_t *cu_k) {
    enum { CHUNK_ROWS = 256 };
    const moba_problem *p = &plan->problem;
    const moba_inputs *in = &run->in;
    size_t row_ids = (size_t)p->n_q_heads * (size_t)p->top_k;
    int32_t *ids = malloc(CHUNK_ROWS * row_ids * sizeof *ids);
    if (!ids)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes of selection to validate",
                          CHUNK_ROWS * row_ids * sizeof *ids);
    moba_status status = MOBA_OK;
    for (int64_t b = 0; b < in->batch && status == MOBA_OK; b++) {
        mobai_rows q = mobai_seq_rows(cu_q, in->total_q / in->batch, in->total_q, b);
        mobai_rows k = mobai_seq_rows(cu_k, in->total_k / in->batch, in->total_k, b);
        int64_t n_blocks = mobai_n_blocks(k.end - k.begin, p->block_size);
        for (int64_t t = q.begin; t < q.end && status == MOBA_OK; t += CHUNK_ROWS) {
            int64_t rows = mobai_min64(CHUNK_ROWS, q.end - t);
            moba_buffer from = run->selection;
            from.offset += (uint64_t)t * row_ids * sizeof *ids;
            status = plan->context->backend->buffer_read(plan->context->device, stream, from, ids,
                                                         (size_t)rows * row_ids * sizeof *ids);
            for (int64_t i = 0; i < rows && status == MOBA_OK; i++)
                for (int32_t h = 0; h < p->n_q_heads && status == MOBA_OK; h++)
                    status = check_selection_row(ids + (size_t)i * row_ids + (size_t)h * (size_t)p->top_k, p->top_k,
                                                 n_blocks, t + i, h);
        }
    }
    free(ids);
    return status;
}

moba_status mobai_validate_data(const moba_plan *plan, moba_stream stream, const mobai_run *run) {
    const moba_problem *p = &plan->problem;
    const moba_inputs *in = &run->in;
    const mobai_backend *backend = plan->context->backend;
    mobai_device *device = plan->context->device;
    if (backend->stream_capturing && backend->stream_capturing(device, stream))
        return mobai_fail(MOBA_ERROR_CAPTURE, "MOBA_VALIDATE is 1: it reads device data back, which a stream under "
                                              "capture cannot do");
    int32_t *cu_q = NULL, *cu_k = NULL;
    moba_status status = MOBA_OK;
    if (in->cu_seqlens_q.handle) {
        size_t bytes = ((size_t)in->batch + 1) * sizeof(int32_t);
        cu_q = malloc(bytes);
        cu_k = malloc(bytes);
        if (!cu_q || !cu_k)
            status = mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes of cu_seqlens to validate", bytes);
        if (status == MOBA_OK) status = backend->buffer_read(device, stream, in->cu_seqlens_q, cu_q, bytes);
        if (status == MOBA_OK) status = backend->buffer_read(device, stream, in->cu_seqlens_k, cu_k, bytes);
        if (status == MOBA_OK) status = check_cu_seqlens(cu_q, in->batch, in->total_q, p->max_seqlen_q, "cu_seqlens_q");
        if (status == MOBA_OK) status = check_cu_seqlens(cu_k, in->batch, in->total_k, p->max_seqlen_k, "cu_seqlens_k");
    }
    if (status == MOBA_OK && run->kind == MOBAI_RUN_ATTEND) status = check_selection(plan, stream, run, cu_q, cu_k);
    free(cu_q);
    free(cu_k);
    return status;
}
