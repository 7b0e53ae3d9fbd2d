/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of the CPU backend: its thread pool and the signature of its kernels. kernels/sequence.h has the addressing.
 */
#ifndef MOBAI_CPU_H
#define MOBAI_CPU_H

#include <stddef.h>
#include <stdint.h>

#include "core/backend.h"
#include "core/geometry.h"
#include "core/status.h"

/* ------------------------------------------------------------------------------------------ thread pool -- */

typedef struct mobai_cpu_pool mobai_cpu_pool;

/** One task of a parallel loop: item `i`, run by participant `thread` of this loop, in [0, n_threads). Two tasks of one
 *  loop that run at the same time have different `thread`. */
typedef void (*mobai_cpu_task)(void *context, int64_t i, int32_t thread);

/** Threads a context computes with when it asks for 0: those the process may be scheduled on, at most 1024. */
int32_t mobai_cpu_default_threads(void);

/** A pool of `n_threads` participants, the caller of a loop included: n_threads - 1 threads are started. */
moba_status mobai_cpu_pool_create(int32_t n_threads, mobai_cpu_pool **out);

/** Stops the threads and frees the pool; no loop may be running. NULL is allowed. */
void mobai_cpu_pool_destroy(mobai_cpu_pool *pool);

int32_t mobai_cpu_pool_threads(const mobai_cpu_pool *pool);

/** Runs task(context, i, thread) for i in [0, n), handed out in ascending order, and returns when all are done. May be
 *  called by several threads at once on one pool. */
void mobai_cpu_parallel_for(mobai_cpu_pool *pool, int64_t n, mobai_cpu_task task, void *context);

/* ---------------------------------------------------------------------------------------------- kernels -- */

/** One stage over one slice. Returns when the work is done. */
typedef moba_status (*mobai_cpu_kernel)(const mobai_stage_args *args, mobai_cpu_pool *pool);

/** What mobai_variant.code points to. */
typedef struct mobai_cpu_code {
    mobai_cpu_kernel run;
} mobai_cpu_code;

/** Instruction tiers of simd.h that have kernels of their own rate. */
typedef enum mobai_cpu_tier { MOBAI_CPU_PLAIN, MOBAI_CPU_AVX2, MOBAI_CPU_AVX512, MOBAI_CPU_TIERS } mobai_cpu_tier;

/** Measured float32 GFLOP/s of one thread (kernels/rate.h); a nominal figure before a device was probed. */
double mobai_cpu_tier_gflops(mobai_cpu_tier tier);

/** Capability bits of this machine, and what each tier needs of them. */
mobai_cap_set mobai_cpu_probe_caps(void);

#define MOBAI_CPU_NEEDS_AVX2 MOBAI_CAP_AVX2
#define MOBAI_CPU_NEEDS_AVX512 (MOBAI_CAP_AVX2 | MOBAI_CAP_AVX512)
#define MOBAI_CPU_NEEDS_AVX512BF16 (MOBAI_CPU_NEEDS_AVX512 | MOBAI_CAP_AVX512BF16)

/** Rows of variants.c: ten a tier, and those of AVX-512 BF16. MOBAI_CPU_TIER_<n> says what the build contains. */
#if defined(MOBAI_CPU_TIER_3)
#define MOBAI_CPU_N_VARIANTS 31
#elif defined(MOBAI_CPU_TIER_2)
#define MOBAI_CPU_N_VARIANTS 30
#else
#define MOBAI_CPU_N_VARIANTS 10
#endif
extern const mobai_variant mobai_cpu_variants[];

/** Scratch of a kernel is cut into pieces of whole cache lines, so that threads share none. */
static inline size_t mobai_cpu_align64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

#endif
