/* SPDX-License-Identifier: Apache-2.0
 *
 * Turns the generated rows into initialisers of mobai_variant. Include it, then include "simt_rows.inc" inside the
 * braces of a variants table. Rows need no capability.
 */
#ifndef MOBAI_SIMT_ROW_H
#define MOBAI_SIMT_ROW_H

#include "simt_table.h"

#define MOBAI_SIMT_ROW(row, stage_name, dtype_set, flow_name, m, n, cost_fn, scratch_fn)                               \
    {.name = #row,                                                                                                     \
     .stage = MOBAI_STAGE_##stage_name,                                                                                \
     .dtypes = dtype_set,                                                                                              \
     .flow = MOBAI_FLOW_##flow_name,                                                                                   \
     .tile_m = m,                                                                                                      \
     .tile_n = n,                                                                                                      \
     .reject = mobai_reject_##row,                                                                                     \
     .cost = cost_fn,                                                                                                  \
     .scratch_bytes = scratch_fn,                                                                                      \
     .code = &mobai_program_##row},

#endif
