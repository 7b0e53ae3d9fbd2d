/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the sm_90a stages put attend's pieces of work: within the workspace that the plan asked for, whatever the run's
 * size, and where attend and combine look for them. On the device of fake_device.c, which computes nothing.
 */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/cuda/kernels/sm90/params.h"
#include "moba/moba.h"

#define WORKSPACE ((uint64_t)1 << 44)
#define LATER 4096 /* most launches of a forward that are noted */

static int failed;
static char run_text[256];         /* the run under test */
static size_t workspace_bytes;     /* of its plan */
static uint64_t cut_counts[LATER]; /* counters of the kv heads and query ranges that have been cut */
static int64_t n_cut, n_cut_launches, n_attended;

static void complain(const char *what, long long got, long long wanted) {
    if (failed++ < 20) fprintf(stderr, "%s: %s is %lld, wanted %lld\n", run_text, what, got, wanted);
}

/** [address, address + bytes) lies in the workspace. */
static void expect_inside(const char *what, uint64_t address, uint64_t bytes) {
    if (address < WORKSPACE || address + bytes > WORKSPACE + workspace_bytes)
        complain(what, (long long)(address + bytes - WORKSPACE), (long long)workspace_bytes);
}

static void watch(const char *kernel, const unsigned grid[3], void **arguments) {
    const int cuts = strcmp(kernel, "index_items") == 0, attends = strncmp(kernel, "attend_", 7) == 0;
    if (!cuts && !attends && strncmp(kernel, "combine_", 8) != 0) return;
    const mobai_sm90_params *p = arguments[0];
    const uint64_t heads =
        cuts ? (uint64_t)(grid[1] - 1) * (uint64_t)p->range_kv_heads + grid[0] : (uint64_t)p->n_slice_kv_heads;
    const uint64_t item_bytes = (uint64_t)p->n_item_capacity * sizeof(mobai_sm90_item);
    const uint64_t list_bytes = (uint64_t)p->n_list_capacity * sizeof(mobai_sm90_list);
    expect_inside("end of counters", p->item_counts, heads * sizeof(mobai_sm90_item_count));
    expect_inside("end of items", p->items, heads * item_bytes);
    expect_inside("end of lists", p->item_lists, heads * list_bytes);
    if (p->item_counts + heads * sizeof(mobai_sm90_item_count) > p->items)
        complain("first item", (long long)p->items, (long long)p->item_counts);
    if (p->items + heads * item_bytes > p->item_lists)
        complain("first list", (long long)p->item_lists, (long long)p->items);
    if (p->n_item_steps < 1 || p->n_item_steps > MOBAI_SM90_ITEM_STEPS ||
        (int64_t)p->n_item_steps * p->n_slots > p->n_list_capacity)
        complain("number of steps", p->n_item_steps, p->n_slots > 0 ? p->n_list_capacity / p->n_slots : 0);
    if (p->item_tiles < MOBAI_SM90_ITEM_MIN_TILES || p->item_tiles > MOBAI_SM90_ITEM_MAX_TILES)
        complain("row tiles of a piece", p->item_tiles, MOBAI_SM90_ITEM_MAX_TILES);
    if (p->places &&
        p->item_counts < p->places + (uint64_t)p->total_q * (uint64_t)p->n_q_heads * (uint64_t)p->top_k * 4)
        complain("first counter", (long long)p->item_counts, (long long)p->places);
    if (cuts) {
        if (++n_cut_launches == 1 || (int64_t)grid[1] == 1) n_cut = 0;
        for (uint64_t i = 0; i < heads && n_cut < LATER; i++)
            cut_counts[n_cut++] = p->item_counts + i * sizeof(mobai_sm90_item_count);
    } else if (attends) {
        n_attended++;
        int64_t i = 0;
        while (i < n_cut && cut_counts[i] != p->item_counts)
            i++;
        if (i == n_cut) complain("place of a slice's counters", (long long)(p->item_counts - WORKSPACE), -1);
    }
}

static uint32_t state = 1;
static int64_t pick(int64_t low, int64_t high) {
    state = state * 1664525u + 1013904223u;
    return low + (int64_t)((state >> 8) % (uint64_t)(high - low + 1));
}

/** One plan and three runs of it, the first as large as the plan allows. */
static void check(moba_context *context, int64_t batch, int64_t length, int32_t group, uint64_t limit) {
    moba_problem p = MOBA_PROBLEM_INIT;
    moba_plan *plan = NULL;
    p.dtype = MOBA_BF16;
    p.n_kv_heads = (int32_t)pick(1, 16);
    p.n_q_heads = p.n_kv_heads * group;
    p.head_dim = pick(0, 1) ? 64 : 128;
    p.block_size = 64 * (int32_t)pick(1, 4);
    p.top_k = (int32_t)pick(1, 32);
    p.max_total_q = p.max_total_k = batch * length;
    p.max_batch = batch;
    p.workspace_limit = limit;
    p.inference = 1;
    snprintf(run_text, sizeof run_text, "plan b%lld length %lld h%d g%d B%d k%d", (long long)batch, (long long)length,
             p.n_q_heads, p.n_kv_heads, p.block_size, p.top_k);
    if (limit == 1) { /* the least that there is */
        if (moba_plan_create(context, &p, &plan) == MOBA_OK) complain("a limit of a byte", 0, 1);
        const char *least = strstr(moba_last_error(), "at least ");
        if (!least) complain(moba_last_error(), 0, 0);
        p.workspace_limit = (least ? strtoull(least + 9, NULL, 10) : 0) << pick(0, 2);
    }
    if (moba_plan_create(context, &p, &plan) != MOBA_OK || moba_plan_workspace(plan, &workspace_bytes) != MOBA_OK) {
        complain(moba_last_error(), 0, 0);
        return;
    }
    for (int i = 0; i < 3; i++) {
        const int64_t b = i == 0 ? batch : pick(1, batch), n = i == 0 ? length : pick(1, batch * length / b);
        moba_forward_args args = MOBA_FORWARD_ARGS_INIT;
        const moba_tensor q = {
            {(uint64_t)1 << 40, 0}, (int64_t)p.n_q_heads * p.head_dim, p.head_dim, n * p.n_q_heads * p.head_dim};
        const moba_tensor k = {
            {(uint64_t)1 << 41, 0}, (int64_t)p.n_kv_heads * p.head_dim, p.head_dim, n * p.n_kv_heads * p.head_dim};
        args.in = (moba_inputs){.q = q, .k = k, .v = k, .batch = b, .total_q = b * n, .total_k = b * n};
        args.o = q;
        args.workspace = (moba_buffer){WORKSPACE, 0};
        args.workspace_bytes = workspace_bytes;
        n_cut = n_cut_launches = n_attended = 0;
        if (moba_forward(plan, (moba_stream){NULL}, &args) != MOBA_OK) complain(moba_last_error(), 0, 0);
        if (n_attended == 0) complain("number of slices", 0, 1);
        if (n_cut_launches != 1 && n_cut_launches != n_attended) complain("number of cuts", n_cut_launches, n_attended);
    }
    moba_plan_destroy(plan);
}

int main(void) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "cuda";
    setenv("FAKE_CUDA_DEVICE", "90 232448", 1);
    void (*set_watch)(void (*)(const char *, const unsigned[3], void **)) = NULL;
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *symbol = library ? dlsym(library, "fake_cuda_watch") : NULL;
    memcpy(&set_watch, &symbol, sizeof symbol);
    if (!set_watch || moba_context_create(&options, &context) != MOBA_OK) {
        fprintf(stderr, "no fake device: %s\n", moba_last_error());
        return 1;
    }
    set_watch(watch);
    for (int i = 0; i < 300; i++) {
        const int64_t length = pick(1, (int64_t)64 << pick(0, 13)), batch = length > 65536 ? pick(1, 2) : pick(1, 20);
        const int kind = (int)pick(0, 2);
        check(context, batch, length, (int32_t)pick(1, length > 65536 ? 2 : 8),
              kind == 0   ? 0
              : kind == 1 ? MOBA_WORKSPACE_UNLIMITED
                          : 1);
    }
    moba_context_destroy(context);
    return failed != 0;
}
