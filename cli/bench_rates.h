/* SPDX-License-Identifier: Apache-2.0
 *
 * What a device can do at best, as a yardstick for measurements.
 */
#ifndef MOBAI_BENCH_RATES_H
#define MOBAI_BENCH_RATES_H

#include "moba/moba.h"

/** NaN: not known. */
typedef struct mobai_device_rates {
    double copy_gbytes;   /* GB read plus GB written a second, by copies inside the device's memory */
    double matrix_tflops; /* dense matrix products: measured in float32 on the CPU; NaN on other backends */
} mobai_device_rates;

/** Measures; takes under a second. Error: OUT_OF_MEMORY, or what the backend fails with. */
moba_status mobai_bench_rates(moba_context *context, mobai_device_rates *out);

#endif
