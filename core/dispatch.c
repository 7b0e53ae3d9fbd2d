/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel chain selection: capability bits, each variant's own reject, MOBA_KERNEL, then the cheapest chain. Ties go to
 * the row that stands first in the backend's table.
 */
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/env.h"
#include "core/plan.h"
#include "core/status.h"

bool mobai_stage_needed(const moba_plan *plan, mobai_stage stage) {
    const moba_problem *p = &plan->problem;
    if (p->inference && stage >= MOBAI_STAGE_DELTA) return false;
    switch (stage) {
    case MOBAI_STAGE_KCONV:
    case MOBAI_STAGE_KCONV_BWD:
        return p->kconv_width != 0;
    case MOBAI_STAGE_CENTROID:
    case MOBAI_STAGE_GATE:
    case MOBAI_STAGE_INDEX:
        return !p->dense;
    case MOBAI_STAGE_COMBINE:
    case MOBAI_STAGE_DQ_SUM:
        return !p->dense; /* where a flow with partials is taken */
    default:
        return true;
    }
}

const char *mobai_variant_reject(const moba_plan *plan, const mobai_variant *variant, char *text, size_t capacity) {
    const moba_problem *p = &plan->problem;
    const mobai_caps *caps = &plan->context->caps;
    if (!(variant->dtypes & (1u << p->dtype))) return "other dtype";
    mobai_cap_set missing = variant->needs & ~caps->set;
    if (missing) {
        char names[128];
        mobai_caps_format(missing, names, sizeof names);
        snprintf(text, capacity, "needs %s (absent or masked)", names);
        return text;
    }
    if (p->dense && variant->flow != MOBAI_FLOW_ONE_PASS) return "dense mode has no partials";
    char pattern[128];
    if (mobai_env_kernel_pattern(plan->context->kernel, mobai_stage_name(variant->stage), pattern, sizeof pattern) &&
        fnmatch(pattern, variant->name, 0) != 0) {
        snprintf(text, capacity, "MOBA_KERNEL asks for %s", pattern);
        return text;
    }
    return variant->reject ? variant->reject(p, caps) : NULL;
}

/** Cheapest usable variant of a stage; `flow` MOBAI_FLOW_COUNT: of any flow. NULL when there is none. */
static const mobai_variant *cheapest(const moba_plan *plan, mobai_stage stage, mobai_flow flow, double *cost) {
    const mobai_backend *backend = plan->context->backend;
    mobai_shape shape = mobai_plan_shape(plan, plan->problem.n_kv_heads, plan->problem.max_total_q);
    const mobai_variant *best = NULL;
    for (size_t i = 0; i < backend->n_variants; i++) {
        const mobai_variant *v = &backend->variants[i];
        char text[256];
        if (v->stage != stage || (flow != MOBAI_FLOW_COUNT && v->flow != flow)) continue;
        if (mobai_variant_reject(plan, v, text, sizeof text)) continue;
        double c = v->cost(&shape);
        if (!best || c < *cost) {
            best = v;
            *cost = c;
        }
    }
    return best;
}

/** One sentence of why `stage` has no variant: every row and its reason. */
static void collect_reasons(const moba_plan *plan, mobai_stage stage, char *text, size_t capacity) {
    const mobai_backend *backend = plan->context->backend;
    size_t used = (size_t)snprintf(text, capacity, "no kernel of backend %s serves stage %s", backend->name,
                                   mobai_stage_name(stage));
    const char *separator = ": ";
    for (size_t i = 0; i < backend->n_variants && used < capacity; i++) {
        const mobai_variant *v = &backend->variants[i];
        char reason_text[256];
        const char *reason;
        if (v->stage != stage || !(v->dtypes & (1u << plan->problem.dtype))) continue;
        reason = mobai_variant_reject(plan, v, reason_text, sizeof reason_text);
        used += (size_t)snprintf(text + used, capacity - used, "%s%s: %s", separator, v->name,
                                 reason ? reason : "its partner stage has none");
        separator = "; ";
    }
}

/**
 * Takes the cheapest pair (`stage`, `merge`) of one flow over all flows; ONE_PASS has no merge stage. When there is
 * none, `lacking` becomes the stage to name.
 */
static bool choose_pair(moba_plan *plan, mobai_stage stage, mobai_stage merge, mobai_stage *lacking) {
    bool found = false, any = false;
    double best = 0;
    for (int f = 0; f < MOBAI_FLOW_COUNT; f++) {
        double cost = 0, merge_cost = 0;
        const mobai_variant *v = cheapest(plan, stage, (mobai_flow)f, &cost), *m = NULL;
        if (!v) continue;
        any = true;
        if (f != MOBAI_FLOW_ONE_PASS && !(m = cheapest(plan, merge, (mobai_flow)f, &merge_cost))) continue;
        if (found && cost + merge_cost >= best) continue;
        found = true;
        best = cost + merge_cost;
        plan->chain[stage] = v;
        plan->chain[merge] = m;
        plan->cost_us[stage] = cost;
        plan->cost_us[merge] = merge_cost;
    }
    *lacking = any ? merge : stage;
    return found;
}

static bool choose_one(moba_plan *plan, mobai_stage stage) {
    if (!mobai_stage_needed(plan, stage)) return true;
    plan->chain[stage] = cheapest(plan, stage, MOBAI_FLOW_COUNT, &plan->cost_us[stage]);
    return plan->chain[stage] != NULL;
}

/** First stage of the backward without a kernel; MOBAI_STAGE_COUNT when all are served. */
static mobai_stage choose_backward(moba_plan *plan) {
    mobai_stage lacking;
    if (!choose_one(plan, MOBAI_STAGE_DELTA)) return MOBAI_STAGE_DELTA;
    if (!choose_pair(plan, MOBAI_STAGE_ATTEND_BWD, MOBAI_STAGE_DQ_SUM, &lacking)) return lacking;
    if (!choose_one(plan, MOBAI_STAGE_KCONV_BWD)) return MOBAI_STAGE_KCONV_BWD;
    return MOBAI_STAGE_COUNT;
}

moba_status mobai_choose_chain(moba_plan *plan) {
    static const mobai_stage singles[] = {MOBAI_STAGE_KCONV, MOBAI_STAGE_CENTROID, MOBAI_STAGE_GATE, MOBAI_STAGE_INDEX};
    char reasons[1536];
    mobai_stage lacking = MOBAI_STAGE_COUNT;
    for (size_t i = 0; i < sizeof singles / sizeof singles[0] && lacking == MOBAI_STAGE_COUNT; i++)
        if (!choose_one(plan, singles[i])) lacking = singles[i];
    mobai_stage pair_lacks;
    if (lacking == MOBAI_STAGE_COUNT && !choose_pair(plan, MOBAI_STAGE_ATTEND, MOBAI_STAGE_COMBINE, &pair_lacks))
        lacking = pair_lacks;
    if (lacking != MOBAI_STAGE_COUNT) {
        collect_reasons(plan, lacking, reasons, sizeof reasons);
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "%s", reasons);
    }
    reasons[0] = '\0';
    const bool inference = plan->problem.inference != 0;
    if (!inference) lacking = choose_backward(plan);
    plan->has_backward = !inference && lacking == MOBAI_STAGE_COUNT;
    if (!plan->has_backward) {
        if (inference)
            snprintf(reasons, sizeof reasons, "inference is set");
        else
            collect_reasons(plan, lacking, reasons, sizeof reasons);
        if (!inference && plan->problem.deterministic)
            return mobai_fail(MOBA_ERROR_UNSUPPORTED, "deterministic is set, but cannot be honoured: %s", reasons);
        for (int s = MOBAI_STAGE_DELTA; s < MOBAI_STAGE_COUNT; s++) {
            plan->chain[s] = NULL;
            plan->cost_us[s] = 0;
        }
    }
    size_t bytes = strlen(reasons) + 1;
    plan->why_no_backward = malloc(bytes);
    if (!plan->why_no_backward) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes", bytes);
    memcpy(plan->why_no_backward, reasons, bytes);
    return MOBA_OK;
}
