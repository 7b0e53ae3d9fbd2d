/* SPDX-License-Identifier: Apache-2.0
 *
 * Which devices and problems the rows on mma.sync serve, why they refuse the others, and what they ask of the driver:
 * on the device of fake_device.c.
 */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"

static int failed;

static void complain(const char *device, const char *what, const char *got) {
    fprintf(stderr, "device %s: wanted \"%s\", got: %s\n", device, what, got ? got : "(none)");
    failed = 1;
}

/** A plan of `p` on that device; its kernel of the stage must be `wanted`, and `reason` in what it says of the others.
 */
static void expect_of(const char *stage, const char *device, const char *mask, const moba_problem *p,
                      const char *wanted, const char *reason) {
    static char text[1 << 16];
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    moba_plan *plan = NULL;
    options.backend = "cuda";
    setenv("FAKE_CUDA_DEVICE", device, 1);
    setenv("MOBA_CAPS_MASK", mask, 1);
    if (moba_context_create(&options, &context) != MOBA_OK || moba_plan_create(context, p, &plan) != MOBA_OK) {
        complain(device, wanted, moba_last_error());
    } else {
        const char *kernel = moba_plan_kernel(plan, stage);
        if (!kernel || strcmp(kernel, wanted) != 0) complain(device, wanted, kernel);
        if (moba_plan_explain(plan, text, sizeof text) != MOBA_OK || !strstr(text, reason))
            complain(device, reason, text);
    }
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

static void expect(const char *device, const char *mask, const moba_problem *p, const char *wanted,
                   const char *reason) {
    expect_of("attend", device, mask, p, wanted, reason);
}

static moba_problem problem(moba_dtype dtype, int head_dim) {
    moba_problem p = MOBA_PROBLEM_INIT;
    p.dtype = dtype;
    p.n_q_heads = p.n_kv_heads = 4;
    p.head_dim = head_dim;
    p.max_total_q = p.max_total_k = 4096;
    return p;
}

/** The log of a forward on a device with mma.sync: the room that is asked for, once, and what is launched last. */
static void expect_launch(void) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    moba_plan *plan = NULL;
    moba_buffer data;
    const moba_problem p = problem(MOBA_BF16, 128);
    moba_forward_args args = MOBA_FORWARD_ARGS_INIT;
    const size_t bytes = (size_t)4096 * 4 * 128 * 2;
    options.backend = "cuda";
    setenv("FAKE_CUDA_DEVICE", "80 166912", 1);
    setenv("MOBA_CAPS_MASK", "", 1);
    moba_status status = moba_context_create(&options, &context);
    if (status == MOBA_OK) status = moba_plan_create(context, &p, &plan);
    if (status == MOBA_OK) status = moba_buffer_create(context, 4 * bytes, &data);
    if (status == MOBA_OK) status = moba_plan_workspace(plan, &args.workspace_bytes);
    if (status == MOBA_OK) status = moba_buffer_create(context, args.workspace_bytes, &args.workspace);
    if (status == MOBA_OK) status = moba_plan_saved(plan, &args.saved_bytes);
    if (status == MOBA_OK) status = moba_buffer_create(context, args.saved_bytes, &args.saved);
    if (status == MOBA_OK) {
        moba_tensor t[4];
        for (int i = 0; i < 4; i++)
            t[i] = (moba_tensor){{data.handle, data.offset + (uint64_t)i * bytes}, 4 * 128, 128, 0};
        args.in = (moba_inputs){.q = t[0], .k = t[1], .v = t[2], .batch = 1, .total_q = 4096, .total_k = 4096};
        args.o = t[3];
        status = moba_forward(plan, (moba_stream){NULL}, &args);
        moba_buffer_destroy(context, args.saved);
        moba_buffer_destroy(context, args.workspace);
        moba_buffer_destroy(context, data);
    }
    if (status != MOBA_OK) complain("80", "a forward", moba_last_error());
    moba_plan_destroy(plan);
    moba_context_destroy(context);

    const char *(*get_log)(void) = NULL;
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *symbol = library ? dlsym(library, "fake_cuda_log") : NULL;
    memcpy(&get_log, &symbol, sizeof symbol);
    const char *log = get_log ? get_log() : "";
    const char *allow = "allow moba_attend_matrix_bf16_d128 81920\n";
    const char *launch =
        "launch moba_schedule 0\nlaunch moba_attend_matrix_bf16_d128 81920\nlaunch moba_combine_bf16 0\n";
    if (!strstr(log, allow)) complain("80", allow, log);
    if (!strstr(log, launch)) complain("80", launch, log);
}

/** Of the gate: by head_dim, picks and capability. */
static void expect_gates(void) {
    static const char *const a100 = "80 166912", *const row = "gate_bf16_d128__sm80_mma_m128n32_k8";
    moba_problem p = problem(MOBA_BF16, 128);
    p.top_k = 9;
    expect_of("gate", a100, "", &p, row, "m128n32_k16: rejected, its picks fit shorter lists");
    expect_of("gate", a100, "-mma", &p, "gate_bf16__simt_m64n64", "m128n32_k8: rejected, needs mma");
    expect_of("gate", "75 65536", "", &p, "gate_bf16__simt_m64n64", "m128n32_k8: rejected, needs mma");
    expect_of("gate", "90 232448", "-wgmma", &p, row, "gate_f16_d128__sm80_mma_m128n32_k8: rejected, other dtype");
    p.top_k = 10;
    expect_of("gate", a100, "", &p, "gate_bf16_d128__sm80_mma_m128n32_k16",
              "m128n32_k8: rejected, its lists hold 8 picks");
    p.top_k = 17;
    expect_of("gate", a100, "", &p, "gate_bf16_d128__sm80_mma_m128n32_k16",
              "m128n32_k32: rejected, its picks fit shorter lists");
    p.top_k = 33;
    expect_of("gate", a100, "", &p, "gate_bf16_d128__sm80_mma_m128n32_k32",
              "m128n32_k16: rejected, its lists hold 16 picks");
    p.top_k = 34;
    expect_of("gate", a100, "", &p, "gate_bf16__simt_m16n64", "m128n32_k32: rejected, its lists hold 32 picks");
    p.top_k = 70000;
    expect_of("gate", a100, "", &p, "gate_bf16__simt_m64n64", "m128n32_k32: rejected, top_k is above 65535");
    p = problem(MOBA_BF16, 128); /* long lists of many blocks: costlier still without matrix cores */
    p.max_total_q = p.max_total_k = 65536;
    p.block_size = 64;
    p.top_k = 32;
    expect_of("gate", a100, "", &p, "gate_bf16_d128__sm80_mma_m128n32_k32", "gate_bf16__simt_m64n64: not cheapest");
    p = problem(MOBA_F16, 65);
    expect_of("gate", a100, "", &p, "gate_f16_d128__sm80_mma_m128n32_k8",
              "gate_f16_d64__sm80_mma_m128n32_k8: rejected, head_dim is larger");
    p = problem(MOBA_F16, 64);
    expect_of("gate", a100, "", &p, "gate_f16_d64__sm80_mma_m128n32_k8",
              "gate_f16_d128__sm80_mma_m128n32_k8: rejected, head_dim fits a smaller");
    p = problem(MOBA_BF16, 129);
    expect_of("gate", a100, "", &p, "gate_bf16__simt_m64n64",
              "gate_bf16_d128__sm80_mma_m128n32_k8: rejected, head_dim is larger");
    p = problem(MOBA_F32, 128);
    expect_of("gate", a100, "", &p, "gate_f32__simt_m64n64",
              "gate_bf16_d128__sm80_mma_m128n32_k8: rejected, other dtype");
}

int main(void) {
    static const char *const a100 = "80 166912", *const h100 = "90 232448";
    static const char *const row128 = "attend_bf16_d128__sm80_mma_m64n128", *const simt =
                                                                                "attend_bf16_d128__simt_m64n64";
    moba_problem p = problem(MOBA_BF16, 128);
    expect(a100, "", &p, row128, "attend_bf16_d64__sm80_mma_m64n128: rejected, head_dim is larger than the tile");
    expect(a100, "", &p, row128, "attend_bf16_d128__sm90_wgmma_m64n128: rejected, needs wgmma");
    expect(a100, "-mma", &p, simt, "attend_bf16_d128__sm80_mma_m64n128: rejected, needs mma");
    expect("75 65536", "", &p, simt, "attend_bf16_d128__sm80_mma_m64n128: rejected, needs mma");
    expect("80 65536", "", &p, simt,
           "attend_bf16_d128__sm80_mma_m64n128: rejected, the device's shared memory is too small");
    expect(h100, "", &p, "attend_bf16_d128__sm90_wgmma_m64n128", row128);
    expect(h100, "-wgmma", &p, row128, "attend_f16_d128__sm80_mma_m64n128: rejected, other dtype");
    expect("120 101376", "", &p, row128, "attend_bf16_d128__sm90_wgmma_m64n128: rejected, needs wgmma");
    p = problem(MOBA_F16, 65);
    expect(a100, "", &p, "attend_f16_d128__sm80_mma_m64n128",
           "attend_f16_d64__sm80_mma_m64n128: rejected, head_dim is");
    p = problem(MOBA_F16, 64);
    expect(a100, "", &p, "attend_f16_d64__sm80_mma_m64n128",
           "attend_f16_d128__sm80_mma_m64n128: rejected, head_dim fits a smaller tile");
    expect("80 65536", "", &p, "attend_f16_d64__sm80_mma_m64n128",
           "attend_bf16_d64__sm80_mma_m64n128: rejected, other");
    p = problem(MOBA_BF16, 200);
    expect(a100, "", &p, "attend_bf16_d256__simt_m64n64",
           "attend_bf16_d128__sm80_mma_m64n128: rejected, head_dim is larger than the tile");
    p = problem(MOBA_F32, 128);
    expect(a100, "", &p, "attend_f32_d128__simt_m64n64", "attend_bf16_d128__sm80_mma_m64n128: rejected, other dtype");
    p = problem(MOBA_BF16, 128);
    p.dense = 1;
    expect(a100, "", &p, "attend_dense_bf16_d128__simt_m64n64", "attend_bf16_d128__sm80_mma_m64n128: rejected, dense");
    expect_gates();
    expect_launch();
    return failed;
}
