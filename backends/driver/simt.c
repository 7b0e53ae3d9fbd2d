/* SPDX-License-Identifier: Apache-2.0
 *
 * The generated tier over a driver's table: instances are looked up when a plan first uses them.
 */
#include <stdio.h>

#include "backends/driver/driver.h"
#include "core/status.h"

static mobai_driver_device *base_of(mobai_device *device) { return (mobai_driver_device *)(void *)device; }

static moba_status load_instance(mobai_device *device, uint16_t number) {
    mobai_driver_device *base = base_of(device);
    if (base->simt_functions[number]) return MOBA_OK;
    const mobai_simt_instance *instance = &mobai_simt_instances[number];
    void *module = NULL, *function = NULL;
    MOBAI_TRY(base->driver->simt_module(device, instance->kernel->name, &module));
    int result = base->driver->module_function(&function, module, instance->name);
    if (result != MOBAI_DRIVER_SUCCESS) {
        char what[200];
        snprintf(what, sizeof what, "find the generated kernel %s", instance->name);
        return base->driver->fail(result, what);
    }
    base->simt_functions[number] = function;
    return MOBA_OK;
}

moba_status mobai_driver_simt_load(mobai_device *device, const mobai_simt_program *program) {
    moba_status status = MOBA_OK;
    pthread_mutex_lock(&base_of(device)->lock);
    for (int32_t i = 0; i < program->n_steps && status == MOBA_OK; i++)
        status = load_instance(device, program->steps[i]);
    pthread_mutex_unlock(&base_of(device)->lock);
    return status;
}

moba_status mobai_driver_launch_shared(mobai_device *device, void *stream, void *function,
                                       const mobai_simt_instance *instance, unsigned shared_bytes,
                                       const mobai_stage_args *args) {
    const mobai_driver *driver = base_of(device)->driver;
    mobai_launch launch;
    mobai_simt_pack(instance, args, &launch);
    if (launch.groups[0] <= 0 || launch.groups[1] <= 0 || launch.groups[2] <= 0) return MOBA_OK;
    uint64_t addresses[MOBAI_MAX_KERNEL_PARAMS];
    void *arguments[MOBAI_MAX_KERNEL_PARAMS];
    int32_t n = 0;
    for (int32_t b = 0; b < launch.n_buffers; b++) {
        addresses[b] = launch.buffers[b].handle ? launch.buffers[b].handle + launch.buffers[b].offset : 0;
        arguments[n++] = &addresses[b];
    }
    for (int32_t w = 0; w < launch.n_wide; w++)
        arguments[n++] = &launch.wide[w];
    for (int32_t w = 0; n < instance->kernel->n_params; w++)
        arguments[n++] = &launch.narrow[w];
    int result =
        driver->launch(function, (unsigned)launch.groups[0], (unsigned)launch.groups[1], (unsigned)launch.groups[2],
                       (unsigned)instance->lanes, 1, 1, shared_bytes, stream, arguments, NULL);
    if (result == MOBAI_DRIVER_SUCCESS) return MOBA_OK;
    char what[200];
    snprintf(what, sizeof what, "launch %s on a grid of %lld x %lld x %lld", instance->name,
             (long long)launch.groups[0], (long long)launch.groups[1], (long long)launch.groups[2]);
    return driver->fail(result, what);
}

moba_status mobai_driver_launch(mobai_device *device, void *stream, void *function, const mobai_simt_instance *instance,
                                const mobai_stage_args *args) {
    return mobai_driver_launch_shared(device, stream, function, instance, 0, args);
}

moba_status mobai_driver_simt_steps(mobai_device *device, void *stream, const mobai_simt_program *program,
                                    int32_t n_steps, const mobai_stage_args *args) {
    for (int32_t i = 0; i < n_steps; i++)
        MOBAI_TRY(mobai_driver_launch(device, stream, base_of(device)->simt_functions[program->steps[i]],
                                      &mobai_simt_instances[program->steps[i]], args));
    return MOBA_OK;
}

moba_status mobai_driver_simt_launch(mobai_device *device, void *stream, const mobai_variant *variant,
                                     const mobai_stage_args *args) {
    const mobai_simt_program *program = variant->code;
    return mobai_driver_simt_steps(device, stream, program, program->n_steps, args);
}
