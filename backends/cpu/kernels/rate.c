/* SPDX-License-Identifier: Apache-2.0
 *
 * Times the micro-kernel on the product that attend is made of, 48 rows by 64 columns by head_dim 64.
 */
#define _POSIX_C_SOURCE 200809L
#include "backends/cpu/kernels/rate.h"

#include <time.h>

#include "backends/cpu/gemm.h"

enum { ROWS = 48, COLUMNS = 64, DEPTH = 64, PRODUCTS = 4, TRIES = 6 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double MOBAI_ISA_FN(mobai_cpu_rate)(void) {
    float a[ROWS * DEPTH], b[DEPTH * COLUMNS], c[ROWS * COLUMNS];
    for (int i = 0; i < ROWS * DEPTH; i++)
        a[i] = 0.5f;
    for (int i = 0; i < DEPTH * COLUMNS; i++)
        b[i] = 0.25f;
    for (int i = 0; i < ROWS * COLUMNS; i++)
        c[i] = 0.0f;
    double best = 1.0;
    for (int i = 0; i < TRIES; i++) {
        const double begin = seconds();
        for (int p = 0; p < PRODUCTS; p++)
            mobai_gemm(ROWS, COLUMNS, DEPTH, a, DEPTH, 1, b, (int64_t)DEPTH * MOBAI_GEMM_PANEL, c, COLUMNS, 1);
        const double took = seconds() - begin;
        if (took < best) best = took;
    }
    return 2e-9 * ROWS * COLUMNS * DEPTH * PRODUCTS / (best > 1e-9 ? best : 1e-9);
}
