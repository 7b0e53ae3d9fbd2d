/* SPDX-License-Identifier: Apache-2.0
 *
 * The plan in words: what moba_plan_explain() and MOBA_VERBOSE=plan show.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/geometry.h"
#include "core/plan.h"
#include "core/status.h"

/** A string that grows; `failed` sticks when memory runs out. */
typedef struct text {
    char *data;
    size_t used, capacity;
    bool failed;
} text;

static void append(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(text *t, const char *format, ...) {
    if (t->failed) return;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    size_t needed = t->used + (size_t)(n < 0 ? 0 : n) + 1;
    if (needed > t->capacity) {
        size_t capacity = needed * 2;
        char *data = realloc(t->data, capacity);
        if (!data) {
            t->failed = true;
            return;
        }
        t->data = data;
        t->capacity = capacity;
    }
    va_start(arguments, format);
    vsnprintf(t->data + t->used, t->capacity - t->used, format, arguments);
    va_end(arguments);
    t->used = needed - 1;
}

static const char *dtype_name(moba_dtype dtype) {
    static const char *const names[] = {"f32", "f16", "bf16"};
    return names[dtype];
}

static void append_problem(text *t, const moba_plan *plan) {
    const moba_problem *p = &plan->problem;
    append(t, "problem: %s, %d query heads on %d kv heads, head_dim %d, ", dtype_name(p->dtype), p->n_q_heads,
           p->n_kv_heads, p->head_dim);
    if (p->dense)
        append(t, "dense, ");
    else
        append(t, "block_size %d, top_k %d of at most %lld blocks, sink %d, local %d, ", p->block_size, p->top_k,
               (long long)plan->max_blocks, p->n_sink_blocks, p->n_local_blocks);
    append(t, "%s, kconv %d%s%s, scale %g\n", p->causal ? "causal" : "non-causal", p->kconv_width,
           p->deterministic ? ", deterministic" : "", p->inference ? ", inference" : "", (double)p->softmax_scale);
    append(t, "bounds: %lld sequences, %lld query rows (longest %lld), %lld key rows (longest %lld)\n",
           (long long)p->max_batch, (long long)p->max_total_q, (long long)p->max_seqlen_q, (long long)p->max_total_k,
           (long long)p->max_seqlen_k);
}

static void append_device(text *t, const moba_plan *plan) {
    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    plan->context->backend->device_info(plan->context->device, &device);
    char names[256];
    mobai_caps_format(plan->context->caps.set, names, sizeof names);
    append(t, "backend: %s on %s (%s), %d compute units, capabilities: %s\n", plan->context->backend->name, device.name,
           device.driver, plan->context->caps.n_compute_units, names[0] ? names : "none");
}

static void append_stage(text *t, const moba_plan *plan, mobai_stage stage) {
    const mobai_backend *backend = plan->context->backend;
    const mobai_variant *chosen = plan->chain[stage];
    if (!mobai_stage_needed(plan, stage)) return;
    if (chosen)
        append(t, "%-10s %s, %.1f us\n", mobai_stage_name(stage), chosen->name, plan->cost_us[stage]);
    else
        append(t, "%-10s none\n", mobai_stage_name(stage));
    mobai_shape shape = mobai_plan_shape(plan, plan->problem.n_kv_heads, plan->problem.max_total_q);
    for (size_t i = 0; i < backend->n_variants; i++) {
        const mobai_variant *v = &backend->variants[i];
        char reason_text[256];
        if (v->stage != stage || v == chosen) continue;
        const char *reason = mobai_variant_reject(plan, v, reason_text, sizeof reason_text);
        if (reason)
            append(t, "           - %s: rejected, %s\n", v->name, reason);
        else
            append(t, "           - %s: not cheapest, %.1f us\n", v->name, v->cost(&shape));
    }
}

static void append_memory(text *t, const moba_plan *plan, mobai_pass pass, const char *name) {
    const mobai_layout *l = &plan->layout[pass];
    const moba_problem *p = &plan->problem;
    int64_t n_head_slices = mobai_ceil_div(p->n_kv_heads, l->slice_kv_heads);
    int64_t n_ranges = l->slice_queries ? mobai_max64(1, mobai_ceil_div(p->max_total_q, l->slice_queries)) : 1;
    append(t,
           "%s workspace: %zu bytes in %lld slice%s of %d kv heads and %lld query rows (partials %zu, scratch %zu)\n",
           name, l->bytes, (long long)(n_head_slices * n_ranges), n_head_slices * n_ranges == 1 ? "" : "s",
           l->slice_kv_heads, (long long)l->slice_queries, l->partials.bytes, l->scratch.bytes);
}

moba_status mobai_explain_plan(moba_plan *plan) {
    text t = {0};
    append_problem(&t, plan);
    append_device(&t, plan);
    for (int s = 0; s < MOBAI_STAGE_COUNT; s++)
        append_stage(&t, plan, (mobai_stage)s);
    if (!plan->has_backward) append(&t, "no backward: %s\n", plan->why_no_backward);
    append_memory(&t, plan, MOBAI_PASS_FORWARD, "forward");
    if (plan->has_backward) append_memory(&t, plan, MOBAI_PASS_BACKWARD, "backward");
    append(&t, "saved: %zu bytes\n", plan->saved.bytes);
    if (t.failed) {
        free(t.data);
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for the plan's explanation");
    }
    plan->explanation = t.data;
    return MOBA_OK;
}
