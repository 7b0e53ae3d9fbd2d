/* SPDX-License-Identifier: Apache-2.0
 *
 * Packing of launches, and the bounds that the headers of .kern files compute grids and scratch from.
 */
#include "codegen/host/simt.h"

#include <string.h>

static const void *member(const mobai_stage_args *args, size_t offset) { return (const char *)args + offset; }

static int64_t batch_stride(const mobai_stage_args *args, size_t offset, const moba_buffer *cu, int64_t seqlen) {
    moba_tensor t;
    memcpy(&t, member(args, offset), sizeof t);
    return cu->handle ? 0 : t.batch_stride - seqlen * t.token_stride;
}

void mobai_simt_pack(const mobai_simt_instance *instance, const mobai_stage_args *args, mobai_launch *out) {
    const mobai_kernel *kernel = instance->kernel;
    int64_t derived[MOBAI_MAX_DERIVED];
    kernel->launch(args, instance->axes, derived, out->groups);
    out->n_buffers = out->n_wide = 0;
    int32_t n_narrow = 0;
    for (int32_t i = 0; i < kernel->n_params; i++) {
        const mobai_kernel_param *p = &kernel->params[i];
        int64_t wide = 0;
        uint32_t narrow = 0;
        switch ((mobai_param_kind)p->kind) {
        case MOBAI_PARAM_BUFFER:
            memcpy(&out->buffers[out->n_buffers++], member(args, p->offset), sizeof(moba_buffer));
            continue;
        case MOBAI_PARAM_I64:
            memcpy(&wide, member(args, p->offset), sizeof wide);
            break;
        case MOBAI_PARAM_BATCH_Q:
            wide = batch_stride(args, p->offset, &args->cu_seqlens_q, args->seqlen_q);
            break;
        case MOBAI_PARAM_BATCH_K:
            wide = batch_stride(args, p->offset, &args->cu_seqlens_k, args->seqlen_k);
            break;
        case MOBAI_PARAM_DERIVED_I64:
            wide = derived[p->offset];
            break;
        case MOBAI_PARAM_32:
            memcpy(&narrow, member(args, p->offset), sizeof narrow);
            break;
        case MOBAI_PARAM_PRESENT: {
            moba_buffer buffer;
            memcpy(&buffer, member(args, p->offset), sizeof buffer);
            narrow = buffer.handle != 0;
            break;
        }
        case MOBAI_PARAM_DERIVED_I32:
            narrow = (uint32_t)derived[p->offset];
            break;
        }
        if (p->kind < MOBAI_PARAM_32)
            out->wide[out->n_wide++] = wide;
        else
            out->narrow[n_narrow++] = narrow;
    }
}

void mobai_simt_fill_block(const mobai_simt_instance *instance, const mobai_launch *launch, const uint64_t *addresses,
                           void *block) {
    char *at = block;
    size_t n_narrow = (size_t)(instance->kernel->n_params - launch->n_buffers - launch->n_wide);
    memset(block, 0, (size_t)instance->kernel->block_bytes);
    memcpy(at, addresses, (size_t)launch->n_buffers * sizeof *addresses);
    at += (size_t)launch->n_buffers * sizeof *addresses;
    memcpy(at, launch->wide, (size_t)launch->n_wide * sizeof *launch->wide);
    at += (size_t)launch->n_wide * sizeof *launch->wide;
    memcpy(at, launch->narrow, n_narrow * sizeof *launch->narrow);
}

/* ------------------------------------------------------------------------------------- grids and scratch -- */

enum { MAX_CHUNKS = 512, MIN_CHUNK_QUERIES = 16 };

int64_t mobai_simt_chunk_queries(int64_t total_q) {
    return mobai_max64(MIN_CHUNK_QUERIES, mobai_ceil_div(total_q, MAX_CHUNKS));
}

int64_t mobai_simt_slice_picks(const mobai_stage_args *a) {
    return (a->kv_head_end - a->kv_head_begin) * (a->query_end - a->query_begin) * a->group * a->top_k;
}

int64_t mobai_simt_tiles(const mobai_stage_args *a) {
    if (a->dense) return a->total_q * a->group / 64 + a->batch;
    int64_t picks = (a->query_end - a->query_begin) * a->group * mobai_min64(a->top_k, a->n_slots);
    return picks / 64 + a->n_slots;
}

static size_t slice_heads(const mobai_shape *s) { return (size_t)s->n_slice_kv_heads; }

size_t mobai_simt_scratch_index(const mobai_shape *s) {
    int64_t chunks = mobai_min64(MAX_CHUNKS, mobai_ceil_div(s->problem->max_total_q, MIN_CHUNK_QUERIES));
    return (size_t)s->problem->n_kv_heads * (size_t)chunks * (size_t)s->n_slots * sizeof(uint32_t);
}

size_t mobai_simt_scratch_schedule(const mobai_shape *s) {
    int64_t lists = s->problem->dense ? s->problem->max_batch : s->n_slots;
    return slice_heads(s) * (size_t)(lists + 1) * sizeof(int32_t);
}

size_t mobai_simt_scratch_kconv_bwd(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    return (size_t)mobai_ceil_div(p->max_total_k, 128) * slice_heads(s) * (size_t)p->head_dim * (size_t)p->kconv_width *
           sizeof(float);
}
