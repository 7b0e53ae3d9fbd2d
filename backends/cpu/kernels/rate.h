/* SPDX-License-Identifier: Apache-2.0
 *
 * Rate of the matrix micro-kernel on this machine, one copy per instruction tier (simd.h): what costs are made of.
 */
#ifndef MOBAI_CPU_RATE_H
#define MOBAI_CPU_RATE_H

/** Best float32 GFLOP/s of one thread over a few products that stay in cache; takes well under a millisecond. */
double mobai_cpu_rate_plain(void);
double mobai_cpu_rate_avx2(void);
double mobai_cpu_rate_avx512(void);

#endif
