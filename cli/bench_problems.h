/* SPDX-License-Identifier: Apache-2.0
 *
 * The problems of `moba bench --check all`: small ones that touch every rule of docs/spec.md. Each is run in f32, f16
 * and bf16, so the strings have no type.
 */
#ifndef MOBAI_BENCH_PROBLEMS_H
#define MOBAI_BENCH_PROBLEMS_H

#include <stddef.h>

typedef struct mobai_check_problem {
    const char *shape;   /* up to c or n */
    const char *options; /* after the type; "" or starting with a comma */
} mobai_check_problem;

extern const mobai_check_problem mobai_check_problems[];
extern const size_t mobai_n_check_problems;

#endif
