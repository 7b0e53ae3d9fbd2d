/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the HIP backend share: the embedded code objects and the device.
 */
#ifndef MOBAI_HIP_HIP_H
#define MOBAI_HIP_HIP_H

#include "backends/hip/runtime.h"
#include "core/backend.h"

/** All generated kernels for one architecture: a gzip stream of a code object. */
typedef struct hip_code {
    const char *arch; /* "gfx90a", without feature suffixes */
    const unsigned char *packed, *packed_end;
} hip_code;
extern const hip_code hip_codes[];
extern const size_t hip_n_codes;

/** What is known of an architecture beyond what HIP reports. Rates are peaks from AMD's data sheets. */
typedef struct hip_arch {
    const char *name;
    mobai_cap_set matrix;   /* MOBAI_CAP_MFMA or _WMMA, or none */
    double flops_per_clock; /* 16-bit matrix (packed, where there is none) operations of one multiprocessor, as HIP
                               counts them: compute units on CDNA, work-group processors of two on RDNA */
    double transfers;       /* of memory in one clock of HIP_ATTRIBUTE_MEMORY_CLOCK_KHZ: HBM 2, GDDR6 16, LPDDR5 8 */
} hip_arch;

/** The embedded code for a device that HIP names `arch`; NULL: none. */
const hip_code *hip_find_code(const char *arch);
/** Facts of an architecture; never NULL. */
const hip_arch *hip_find_arch(const char *arch);

/** Rows of the variants table: for each kernel on matrix cores one with MFMA and one with WMMA, and the generated ones.
 */
enum {
    HIP_N_MATRIX = 16,
    HIP_N_VARIANTS = 2 * HIP_N_MATRIX
#define MOBAI_SIMT_ROW(row, stage, dtypes, flow, m, n, cost, scratch) +1
#include "simt_rows.inc"
#undef MOBAI_SIMT_ROW
};

struct mobai_device {
    mobai_driver_device base;
    int index; /* HIP's */
    const hip_code *code;
    mobai_caps caps;
    void *module; /* of the generated kernels; loaded when a plan first needs one */
};

/** mobai_driver.simt_module: inflates and loads the device's code object. */
moba_status hip_simt_module(mobai_device *device, const char *kernel, void **module);

/** True for variants whose code is a mobai_driver_matrix, false for generated ones, whose code is a program. */
static inline bool hip_is_matrix(const mobai_variant *variant) { return variant->needs != 0; }
extern const mobai_variant hip_variants[HIP_N_VARIANTS];

moba_status hip_enter(const mobai_device *device);
void hip_leave(void);

#endif
