/* SPDX-License-Identifier: Apache-2.0
 *
 * Turns the generated rows into initialisers of mobai_variant. Include it, then include "simt_rows.inc" inside the
 * braces of a variants table. Rows need no capability.
 */
#ifndef MOBAI_SIMT_ROW_H
#define MOBAI_SIMT_ROW_H

#include "simt_table.h"

#define MOBAI_SIMT_ROW(name, stage, dtypes, flow, m, n, cost, scratch)                                                 \
    {#name, MOBAI_STAGE_##stage, dtypes, 0, MOBAI_FLOW_##flow, m, n, mobai_reject_##name, cost, scratch, NULL, &mobai_program_##name},

#endif
