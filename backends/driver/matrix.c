/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels on matrix cores over a driver's table, and what the rows of gate_matrix.kern say of it.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backends/driver/driver.h"
#include "core/status.h"

static mobai_driver_device *base_of(mobai_device *device) { return (mobai_driver_device *)(void *)device; }

/** Number of an instance; that of all of them: there is none of that name. */
static size_t find(const char *name) {
    size_t i = 0;
    while (i < mobai_n_matrix_instances && strcmp(mobai_matrix_instances[i].name, name) != 0)
        i++;
    return i;
}

static moba_status load(mobai_device *device, const mobai_driver_matrix *kernel) {
    mobai_driver_device *base = base_of(device);
    const size_t number = find(kernel->name);
    if (number >= mobai_n_matrix_instances || number >= MOBAI_DRIVER_MAX_MATRIX_INSTANCES)
        return mobai_fail(MOBA_ERROR_INTERNAL, "%zu kernels on matrix cores, and %s is not among the first %d",
                          mobai_n_matrix_instances, kernel->name, MOBAI_DRIVER_MAX_MATRIX_INSTANCES);
    if (base->matrix_functions[number]) return MOBA_OK;
    void *module = NULL, *function = NULL;
    MOBAI_TRY(base->driver->simt_module(device, mobai_matrix_instances[number].kernel->name, &module));
    char what[200];
    snprintf(what, sizeof what, "find the kernel %s", kernel->name);
    int result = base->driver->module_function(&function, module, kernel->name);
    if (result == MOBAI_DRIVER_SUCCESS && kernel->shared_bytes > 0 && base->driver->allow_shared) {
        snprintf(what, sizeof what, "give the kernel %s %u bytes of shared memory", kernel->name, kernel->shared_bytes);
        result = base->driver->allow_shared(function, kernel->shared_bytes);
    }
    if (result != MOBAI_DRIVER_SUCCESS) return base->driver->fail(result, what);
    base->matrix_functions[number] = function;
    return MOBA_OK;
}

moba_status mobai_driver_matrix_load(mobai_device *device, const mobai_driver_matrix *kernel) {
    MOBAI_TRY(mobai_driver_simt_load(device, kernel->simt));
    pthread_mutex_lock(&base_of(device)->lock);
    moba_status status = load(device, kernel);
    pthread_mutex_unlock(&base_of(device)->lock);
    return status;
}

moba_status mobai_driver_matrix_launch(mobai_device *device, void *stream, const mobai_driver_matrix *kernel,
                                       const mobai_stage_args *args) {
    const size_t number = find(kernel->name);
    MOBAI_TRY(mobai_driver_simt_steps(device, stream, kernel->simt, kernel->simt->n_steps - 1, args));
    return mobai_driver_launch_shared(device, stream, base_of(device)->matrix_functions[number],
                                      &mobai_matrix_instances[number], kernel->shared_bytes, args);
}

const char *mobai_driver_matrix_reject_dim(const moba_problem *p, int32_t dim_tile) {
    if (p->head_dim > dim_tile) return "head_dim is larger than the tile";
    return dim_tile > 64 && p->head_dim <= dim_tile / 2 ? "head_dim fits a smaller tile" : NULL;
}

/* -------------------------------------------------------------------------------------------------- gate -- */

/** Blocks the gate has to choose in a row. */
static int32_t gate_picks(const moba_problem *p) { return p->top_k - p->n_sink_blocks - p->n_local_blocks; }

const char *mobai_driver_matrix_reject_gate(const moba_problem *p, int32_t dim_tile, int32_t list) {
    const char *why = mobai_driver_matrix_reject_dim(p, dim_tile);
    if (why) return why;
    if (p->top_k > UINT16_MAX) return "top_k is above 65535";
    if (list > 8 && gate_picks(p) <= list / 2) return "its picks fit shorter lists";
    if (gate_picks(p) <= list) return NULL;
    return list == 8 ? "its lists hold 8 picks" : list == 16 ? "its lists hold 16 picks" : "its lists hold 32 picks";
}

double mobai_driver_matrix_cost_gate(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    const double rows = (double)p->max_total_q * p->n_q_heads, picks = gate_picks(p);
    const double blocks = (double)mobai_ceil_div(p->max_seqlen_k, p->block_size) * (p->causal ? 0.5 : 1.0);
    /* Blocks in random order that are among the best so far. */
    const double entries = picks <= 0 ? 0.0 : blocks <= picks ? blocks : picks * (1.0 + log(blocks / picks));
    const double entry = picks <= 8 ? 14e3 : 34e3;
    const double row = 4.0 * p->head_dim * blocks + entries * entry + 155e3;
    return 3.0 + rows * row / (s->caps->matrix_gflops * 1e3);
}
