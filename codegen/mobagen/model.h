/* SPDX-License-Identifier: Apache-2.0
 *
 * What a .kern file says (codegen/DIALECT.md), and the functions that read it and write it out.
 */
#ifndef MOBAGEN_MODEL_H
#define MOBAGEN_MODEL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum {
    MAX_PARAMS = 64,
    MAX_DEFINES = 32,
    MAX_SHARED = 16,
    MAX_AXES = 4,
    MAX_AXIS_VALUES = 8,
    MAX_VARIANTS = 4,
    MAX_STEPS = 8
};

/** Element and scalar types of the dialect. TYPE_T is the element type of the dtype axis,
 *  TYPE_F32X4 (shared arrays only) a vector of four floats. */
typedef enum type { TYPE_F32, TYPE_I32, TYPE_U32, TYPE_I64, TYPE_U16, TYPE_T, TYPE_F32X4, TYPE_COUNT } type;
extern const char *const type_names[TYPE_COUNT];

typedef enum param_kind {
    PARAM_BUFFER,  /* moba_buffer member */
    PARAM_PRESENT, /* i32: whether an optional buffer was given */
    PARAM_MEMBER,  /* scalar member */
    PARAM_BATCH_Q, /* i64: batch stride of a tensor over query rows, as ROW() adds it */
    PARAM_BATCH_K,
    PARAM_DERIVED /* host expression */
} param_kind;

typedef struct param {
    param_kind kind;
    type type;
    bool writes, reads, optional;
    char *name;
    char *source; /* member path of mobai_stage_args, or the host expression */
} param;

typedef struct named {
    char *name;
    char *value;
    type type; /* shared arrays only */
} named;

typedef struct axis {
    char *name;   /* macro, or "dtype" */
    char *prefix; /* of the value in instance names */
    char *values[MAX_AXIS_VALUES];
    int n_values;
} axis;

/** One row of the variants table for each instance of its kernel. */
typedef struct variant {
    const char *path; /* of the line that declares it */
    int line;
    char *stage;
    char *flow;
    char *name; /* the first part of the variant's name */
    char *steps[MAX_STEPS];
    int n_steps;
    char *tile_m, *tile_n;         /* NULL: none */
    char *reject, *cost, *scratch; /* host functions; scratch NULL: none */
} variant;

typedef struct text {
    char *data;
    size_t length, capacity;
} text;

typedef struct kernel {
    char *path;
    char *name;
    char *lanes;
    axis axes[MAX_AXES];
    int n_axes;
    named defines[MAX_DEFINES];
    int n_defines;
    param params[MAX_PARAMS];
    int n_params;
    named shared[MAX_SHARED];
    int n_shared;
    char *grid[3];
    variant variants[MAX_VARIANTS];
    int n_variants;
    text macros; /* bodies of included files */
    text body;
} kernel;

typedef enum target { TARGET_OPENCL, TARGET_GLSL, TARGET_CUDA, TARGET_HIP, TARGET_COUNT } target;
extern const char *const target_names[TARGET_COUNT];

/** One choice of every axis of a kernel: value[i] indexes axes[i].values. */
typedef struct instance {
    int value[MAX_AXES];
} instance;

/** Ends the program with "path:line: message" (line 0: no line). */
_Noreturn void fail_at(const char *path, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

void text_add(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_bytes(text *t, const char *data, size_t length);
/** Whole file; ends the program with `why` when it cannot be read. */
char *read_file(const char *path, const char *why_path, int why_line);
/** Writes the file unless it already holds just that. */
void write_file(const char *path, const text *t);

/** Reads a .kern file and what it includes. */
kernel *parse_kernel(const char *path);

/** Steps through the instances of a kernel in axis order; start with a zeroed one. */
bool next_instance(const kernel *k, instance *i);
/** "attend_tile_f16_d128" */
void instance_name(const kernel *k, const instance *i, char *out, size_t capacity);
/** Index in the dtype axis's values is not the dtype: this is moba_dtype, or -1 without that axis. */
int instance_dtype(const kernel *k, const instance *i);
/** Value of an axis, NULL when the kernel has no such axis. */
const char *instance_value(const kernel *k, const instance *i, const char *axis_name);

/** Bytes of the parameter block: 8 for each buffer and i64, then 4 for each of the rest. */
int block_bytes(const kernel *k);
/** GLSL takes blocks up to this size as push constants, longer ones through an address or a binding. */
enum { PUSH_BYTES = 128 };

/** The complete text of one instance for a target. `prelude` is codegen/dialect/<target>. */
void emit_instance(text *out, const kernel *k, const instance *i, target t, const char *prelude);
/** simt_table.c and simt_rows.inc: parameters, grids, instances, variants. */
void emit_table(text *table, text *rows, kernel *const *kernels, int n);
/** Texts of all OpenCL instances as a C source, in instance order. */
void emit_opencl_source(text *out, kernel *const *kernels, int n, const char *prelude);
/** SPIR-V of all instances as a C source that includes <instance>.inc and <instance>_bound.inc, in instance order. */
void emit_spirv_source(text *out, kernel *const *kernels, int n);

#endif
