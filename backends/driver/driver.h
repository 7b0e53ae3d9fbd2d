/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver APIs of CUDA and HIP have in common, once: a table of the calls that differ in name alone, and the
 * slots of a backend (memory, streams, events, generated kernels) written over that table. A backend opens its vendor's
 * library, fills the table, and keeps a mobai_driver_device as the first member of its struct mobai_device.
 */
#ifndef MOBAI_DRIVER_H
#define MOBAI_DRIVER_H

#include <pthread.h>

#include "codegen/host/simt.h"
#include "core/backend.h"

/* Handles are the vendor's pointers; device addresses are 64 bits wide in both APIs. X(member, arguments): every call
 * returns an int, 0 for success. */
#define MOBAI_DRIVER_API(X)                                                                                            \
    X(init, (unsigned))                                                                                                \
    X(driver_version, (int *))                                                                                         \
    X(device_count, (int *))                                                                                           \
    X(device_get, (int *, int))                                                                                        \
    X(device_name, (char *, int, int))                                                                                 \
    X(device_memory, (size_t *, int))                                                                                  \
    X(device_attribute, (int *, int, int))                                                                             \
    X(memory_alloc, (uint64_t *, size_t))                                                                              \
    X(memory_free, (uint64_t))                                                                                         \
    X(memory_info, (size_t *, size_t *))                                                                               \
    X(copy_to_device, (uint64_t, const void *, size_t, void *))                                                        \
    X(copy_to_host, (void *, uint64_t, size_t, void *))                                                                \
    X(copy_inside, (uint64_t, uint64_t, size_t, void *))                                                               \
    X(fill8, (uint64_t, unsigned char, size_t, void *))                                                                \
    X(stream_create, (void **, unsigned))                                                                              \
    X(stream_destroy, (void *))                                                                                        \
    X(stream_synchronize, (void *))                                                                                    \
    X(stream_capture, (void *, int *))                                                                                 \
    X(event_create, (void **, unsigned))                                                                               \
    X(event_destroy, (void *))                                                                                         \
    X(event_record, (void *, void *))                                                                                  \
    X(event_synchronize, (void *))                                                                                     \
    X(event_elapsed, (float *, void *, void *))                                                                        \
    X(module_load, (void **, const void *))                                                                            \
    X(module_unload, (void *))                                                                                         \
    X(module_function, (void **, void *, const char *))                                                                \
    X(launch, (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **))

/* Numbers that both APIs share. */
enum {
    MOBAI_DRIVER_SUCCESS = 0,
    MOBAI_DRIVER_OUT_OF_MEMORY = 2,
    MOBAI_DRIVER_NO_DEVICE = 100,
    MOBAI_DRIVER_STREAM_NON_BLOCKING = 1,
    MOBAI_DRIVER_NOT_CAPTURING = 0
};

typedef struct mobai_driver {
#define MOBAI_DRIVER_MEMBER(member, arguments) int(*member) arguments;
    MOBAI_DRIVER_API(MOBAI_DRIVER_MEMBER)
#undef MOBAI_DRIVER_MEMBER
    /** Sets the error sentence for a failed call and returns its status. `what` completes "<API> could not ...". */
    moba_status (*fail)(int result, const char *what);
    /** Makes the device current on this thread; pair with leave(), which brings back what was current before. */
    moba_status (*enter)(const mobai_device *device);
    void (*leave)(void);
    /** The module, loaded, that holds the instances of a generated kernel. Called under `lock`, inside enter(). */
    moba_status (*simt_module)(mobai_device *device, const char *kernel, void **module);
    /** Optional: lets launches of a function ask for so many bytes of shared memory beside its own arrays. */
    int (*allow_shared)(void *function, unsigned bytes);
} mobai_driver;

/** One symbol of the vendor's library and where its address goes. */
typedef struct mobai_driver_symbol {
    const char *name;
    void *member; /* of the table: a function pointer */
} mobai_driver_symbol;

/** Looks up all symbols; the first missing one, or NULL. */
const char *mobai_driver_lookup(void *library, const mobai_driver_symbol *symbols, size_t n);

/** A failed call, in the vendor's words. */
typedef struct mobai_driver_error {
    const char *api; /* "CUDA" or "HIP" */
    int result;
    const char *name, *text; /* NULL: the vendor has none */
    int major, minor;        /* of what is installed */
} mobai_driver_error;

/** Sets the error sentence and returns its status. `what` completes "<API> could not ...". */
moba_status mobai_driver_fail(const mobai_driver_error *error, const char *what);

enum { MOBAI_DRIVER_MAX_SIMT_INSTANCES = 256, MOBAI_DRIVER_MAX_MATRIX_INSTANCES = 32 };

/** First member of the struct mobai_device of a backend that uses this layer. */
typedef struct mobai_driver_device {
    const mobai_driver *driver;
    pthread_mutex_t lock; /* guards loading */
    void *simt_functions[MOBAI_DRIVER_MAX_SIMT_INSTANCES];
    void *matrix_functions[MOBAI_DRIVER_MAX_MATRIX_INSTANCES];
} mobai_driver_device;

/** Fills `base`; undone by mobai_driver_device_end(). */
moba_status mobai_driver_device_begin(mobai_driver_device *base, const mobai_driver *driver);
void mobai_driver_device_end(mobai_driver_device *base);

/** Rates that a driver does not tell, and the default workspace limit: 1.1 GiB, at most an eighth of the memory. */
void mobai_driver_complete_caps(mobai_caps *caps);

/* Slots of mobai_backend. */
moba_status mobai_driver_buffer_create(mobai_device *device, size_t bytes, moba_buffer *out);
void mobai_driver_buffer_destroy(mobai_device *device, moba_buffer buffer);
moba_status mobai_driver_buffer_write(mobai_device *device, moba_stream stream, moba_buffer buffer, const void *data,
                                      size_t bytes);
moba_status mobai_driver_buffer_read(mobai_device *device, moba_stream stream, moba_buffer buffer, void *data,
                                     size_t bytes);
moba_status mobai_driver_buffer_fill(mobai_device *device, moba_stream stream, moba_buffer buffer, uint8_t value,
                                     size_t bytes);
moba_status mobai_driver_buffer_copy(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                                     size_t bytes);
moba_status mobai_driver_stream_create(mobai_device *device, moba_stream *out);
void mobai_driver_stream_destroy(mobai_device *device, moba_stream stream);
moba_status mobai_driver_stream_synchronize(mobai_device *device, moba_stream stream);
bool mobai_driver_stream_capturing(mobai_device *device, moba_stream stream);
moba_status mobai_driver_event_create(mobai_device *device, moba_event *out);
void mobai_driver_event_destroy(mobai_device *device, moba_event event);
moba_status mobai_driver_event_record(mobai_device *device, moba_stream stream, moba_event event);
moba_status mobai_driver_event_elapsed(mobai_device *device, moba_event begin, moba_event end, double *ms);

/** prepare() and launch() of a generated variant, whose code is the program. The device must be current. */
moba_status mobai_driver_simt_load(mobai_device *device, const mobai_simt_program *program);
moba_status mobai_driver_simt_launch(mobai_device *device, void *stream, const mobai_variant *variant,
                                     const mobai_stage_args *args);
/** The first n_steps of a program that is loaded. */
moba_status mobai_driver_simt_steps(mobai_device *device, void *stream, const mobai_simt_program *program,
                                    int32_t n_steps, const mobai_stage_args *args);
/** Packs and enqueues one generated kernel. */
moba_status mobai_driver_launch(mobai_device *device, void *stream, void *function, const mobai_simt_instance *instance,
                                const mobai_stage_args *args);
/** The same with so many bytes of shared memory beside the kernel's own arrays. */
moba_status mobai_driver_launch_shared(mobai_device *device, void *stream, void *function,
                                       const mobai_simt_instance *instance, unsigned shared_bytes,
                                       const mobai_stage_args *args);

/** A kernel on matrix cores, which takes the place of the last step of a generated program: what is the code of its
 *  variant. The instances are a table of their own, made by mobagen from backends/hip/kernels. */
typedef struct mobai_driver_matrix {
    const char *name;      /* of its instance */
    unsigned shared_bytes; /* beside the kernel's own arrays */
    const mobai_simt_program *simt;
} mobai_driver_matrix;
extern const mobai_simt_instance mobai_matrix_instances[];
extern const size_t mobai_n_matrix_instances;

/** prepare() and launch() of such a variant. The device must be current. */
moba_status mobai_driver_matrix_load(mobai_device *device, const mobai_driver_matrix *kernel);
moba_status mobai_driver_matrix_launch(mobai_device *device, void *stream, const mobai_driver_matrix *kernel,
                                       const mobai_stage_args *args);
/** Why kernels on matrix cores with tiles of so many dims cannot serve a problem; NULL: they can. */
const char *mobai_driver_matrix_reject_dim(const moba_problem *p, int32_t dim_tile);
/** Why gate_matrix with tiles of so many dims and lists of so many picks cannot serve a problem; NULL: it can. */
const char *mobai_driver_matrix_reject_gate(const moba_problem *p, int32_t dim_tile, int32_t list);
/** Products at half of the matrix rate; an entry into a list costs what the products of 27 blocks of head_dim 128 do,
 * of 66 with more than 8 picks. */
double mobai_driver_matrix_cost_gate(const mobai_shape *shape);

#endif
