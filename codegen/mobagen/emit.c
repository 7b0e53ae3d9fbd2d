/* SPDX-License-Identifier: Apache-2.0
 *
 * Complete device texts: header comment, axis and tile macros, prelude, parameters, body.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

const char *const target_names[TARGET_COUNT] = {"opencl", "glsl", "cuda", "hip"};

static const char *const c_types[TARGET_COUNT][TYPE_COUNT] = {
    [TARGET_OPENCL] = {"float", "int", "uint", "long", "ushort", "T", "float4"},
    [TARGET_GLSL] = {"float", "int", "uint", "int64_t", "uint16_t", "T", "vec4"},
    [TARGET_CUDA] = {"float", "int", "unsigned int", "long long", "unsigned short", "T", "float4"},
    [TARGET_HIP] = {"float", "int", "unsigned int", "long long", "unsigned short", "T", "f32x4"},
};

/** Parameters stand in the order buffers, 64-bit scalars, 32-bit scalars, on every target. */
static int param_pass(const param *p) { return p->kind == PARAM_BUFFER ? 0 : p->type == TYPE_I64 ? 1 : 2; }

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/** Instances may follow each other in one translation unit, hence the #undef. */
static void emit_macro(text *out, const char *name, const char *value) {
    text_add(out, "#undef %s\n#define %s (%s)\n", name, name, value);
}

static void emit_macros(text *out, const kernel *k, const instance *i) {
    for (int a = 0; a < k->n_axes; a++)
        if (strcmp(k->axes[a].name, "dtype") == 0)
            emit_macro(out, "DTYPE", instance_dtype(k, i) == 0 ? "0" : instance_dtype(k, i) == 1 ? "1" : "2");
        else
            emit_macro(out, k->axes[a].name, k->axes[a].values[i->value[a]]);
    for (int d = 0; d < k->n_defines; d++)
        emit_macro(out, k->defines[d].name, k->defines[d].value);
    emit_macro(out, "LANES", k->lanes);
}

static void emit_opencl_params(text *out, const kernel *k) {
    const char *comma = "";
    for (int pass = 0; pass < 3; pass++)
        for (int i = 0; i < k->n_params; i++) {
            const param *p = &k->params[i];
            if (param_pass(p) != pass) continue;
            if (pass == 0)
                text_add(out, "%s\n    __global uchar *%s_base, ulong %s_offset", comma, p->name, p->name);
            else
                text_add(out, "%s\n    %s %s", comma, c_types[TARGET_OPENCL][p->type], p->name);
            comma = ",";
        }
    text_add(out, ")\n{\n");
    for (int i = 0; i < k->n_params; i++) {
        const param *p = &k->params[i];
        if (p->kind != PARAM_BUFFER) continue;
        const char *access = p->writes ? "" : "const ", *type = c_types[TARGET_OPENCL][p->type];
        text_add(out, "    __global %s%s *%s = (__global %s%s *)(%s_base + %s_offset);\n", access, type, p->name,
                 access, type, p->name, p->name);
    }
}

static void emit_cuda_params(text *out, const kernel *k) {
    const char *comma = "";
    for (int pass = 0; pass < 3; pass++)
        for (int i = 0; i < k->n_params; i++) {
            const param *p = &k->params[i];
            if (param_pass(p) != pass) continue;
            const char *type = c_types[TARGET_CUDA][p->type];
            if (pass == 0)
                text_add(out, "%s\n    %s%s *%s%s", comma, p->writes ? "" : "const ", type,
                         p->writes ? "" : "__restrict__ ", p->name);
            else
                text_add(out, "%s\n    %s %s", comma, type, p->name);
            comma = ",";
        }
    text_add(out, ")\n{\n");
}

static void emit_shared(text *out, const kernel *k, target t) {
    const char *space = t == TARGET_OPENCL ? "    __local " : t == TARGET_GLSL ? "shared " : "    __shared__ ";
    for (int s = 0; s < k->n_shared; s++)
        text_add(out, "%s%s %s[%s];\n", space, c_types[t][k->shared[s].type], k->shared[s].name, k->shared[s].value);
}

/** How the prelude of GLSL names the accessors of a buffer, and what it holds: kind, type, bytes. */
static const char *glsl_binding(const kernel *k, const instance *i, type t) {
    static const char *const kinds[TYPE_COUNT] = {"F, float, 4",   "I, int, 4",      "U, uint, 4",
                                                  "L, int64_t, 8", "H, uint16_t, 2", NULL};
    if (t == TYPE_T) t = instance_dtype(k, i) == 0 ? TYPE_F32 : TYPE_U16;
    return kinds[t];
}

/** The parameter block, copied to globals of the same names: push constants or, past those, a uniform buffer, which
 * drivers read as they do constants (MOBA_BOUND: a storage buffer behind those of the kernel). */
static void emit_glsl_params(text *out, const kernel *k, const instance *instance) {
    bool pushed = block_bytes(k) <= PUSH_BYTES;
    int n_buffers = 0;
    for (int i = 0; i < k->n_params; i++)
        n_buffers += k->params[i].kind == PARAM_BUFFER;
    if (pushed)
        text_add(out, "layout(push_constant, std430) uniform Params_ {\n");
    else
        text_add(out,
                 "#ifdef MOBA_BOUND\nlayout(set = 0, binding = %d, std430) readonly buffer Params_ {\n#else\n"
                 "layout(set = 0, binding = 0, std140) uniform Params_ {\n#endif\n",
                 2 * n_buffers);
    for (int pass = 0; pass < 3; pass++)
        for (int i = 0; i < k->n_params; i++) {
            const param *p = &k->params[i];
            if (param_pass(p) != pass) continue;
            text_add(out, "    %s %s_;\n", p->kind == PARAM_BUFFER ? "uint64_t" : c_types[TARGET_GLSL][p->type],
                     p->name);
        }
    text_add(out, "} p_;\n");
    for (int i = 0; i < k->n_params; i++) {
        const param *p = &k->params[i];
        text_add(out, "%s %s;\n", p->kind == PARAM_BUFFER ? "uint64_t" : c_types[TARGET_GLSL][p->type], p->name);
    }
    text_add(out, "#ifdef MOBA_BOUND\n");
    for (int i = 0, binding = 0; i < k->n_params; i++)
        if (k->params[i].kind == PARAM_BUFFER)
            text_add(out, "%s(%d, %s, %s)\n", k->params[i].writes ? "BIND_OUT_" : "BIND_IN_", binding++,
                     k->params[i].name, glsl_binding(k, instance, k->params[i].type));
    text_add(out, "#endif\n");
    emit_shared(out, k, TARGET_GLSL);
    text_add(out, "void main()\n{\n");
    for (int i = 0; i < k->n_params; i++)
        text_add(out, "    %s = p_.%s_;\n", k->params[i].name, k->params[i].name);
}

static bool defines(const kernel *k, const char *name) {
    for (int d = 0; d < k->n_defines; d++)
        if (strcmp(k->defines[d].name, name) == 0) return true;
    return false;
}

void emit_instance(text *out, const kernel *k, const instance *i, target t, const char *prelude) {
    char name[128];
    instance_name(k, i, name, sizeof name);
    if (t == TARGET_GLSL) text_add(out, "#version 460\n");
    text_add(out, "/* %s: made by mobagen from %s for %s; edit that file, not this one. */\n", name, base_name(k->path),
             target_names[t]);
    emit_macros(out, k, i);
    text_add_bytes(out, prelude, strlen(prelude));
    text_add_bytes(out, k->macros.data, k->macros.length);
    switch (t) {
    case TARGET_OPENCL:
        text_add(out, "__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void moba_%s(", name);
        emit_opencl_params(out, k);
        emit_shared(out, k, t);
        break;
    case TARGET_GLSL:
        text_add(out, "layout(local_size_x = LANES) in;\n");
        emit_glsl_params(out, k, i);
        break;
    case TARGET_CUDA:
        text_add(out, "extern \"C\" __global__ void __launch_bounds__(LANES%s) moba_%s(",
                 defines(k, "RESIDENT") ? ", RESIDENT" : "", name);
        emit_cuda_params(out, k);
        emit_shared(out, k, t);
        break;
    default:
        text_add(out,
                 "extern \"C\" __global__ __attribute__((amdgpu_flat_work_group_size(LANES, LANES)%s)) void moba_%s(",
                 defines(k, "RESIDENT") ? ", amdgpu_waves_per_eu(2)" : "", name);
        emit_cuda_params(out, k);
        emit_shared(out, k, t);
        break;
    }
    text_add_bytes(out, k->body.data, k->body.length);
    text_add(out, "}\n");
}

/** A C string literal for each line. */
static void emit_literal(text *out, const char *s) {
    while (*s) {
        text_add(out, "    \"");
        for (; *s && *s != '\n'; s++)
            if (*s == '"' || *s == '\\')
                text_add(out, "\\%c", *s);
            else
                text_add_bytes(out, s, 1);
        text_add(out, "\\n\"\n");
        if (*s) s++;
    }
}

void emit_opencl_source(text *out, kernel *const *kernels, int n, const char *prelude) {
    text_add(out, "/* SPDX-License-Identifier: Apache-2.0\n *\n * OpenCL C of every generated kernel, in the order of "
                  "mobai_simt_instances. Made by mobagen.\n */\n#include \"codegen/host/simt.h\"\n\n"
                  "const char *const mobai_simt_opencl[] = {\n");
    for (int x = 0; x < n; x++) {
        instance i = {{0}};
        do {
            text t = {0};
            emit_instance(&t, kernels[x], &i, TARGET_OPENCL, prelude);
            emit_literal(out, t.data);
            text_add(out, "    ,\n");
            free(t.data);
        } while (next_instance(kernels[x], &i));
    }
    text_add(out, "};\n");
}

/** The words of every instance from <instance><suffix>.inc, and a table of them. */
static void emit_words(text *out, kernel *const *kernels, int n, const char *suffix, const char *table) {
    char name[128];
    for (int x = 0; x < n; x++) {
        instance i = {{0}};
        do {
            instance_name(kernels[x], &i, name, sizeof name);
            text_add(out, "static const uint32_t words_%s%s[] = {\n#include \"%s%s.inc\"\n};\n", name, suffix, name,
                     suffix);
        } while (next_instance(kernels[x], &i));
    }
    text_add(out, "\nconst mobai_simt_words %s[] = {\n", table);
    for (int x = 0; x < n; x++) {
        instance i = {{0}};
        do {
            instance_name(kernels[x], &i, name, sizeof name);
            text_add(out, "    {words_%s%s, sizeof words_%s%s},\n", name, suffix, name, suffix);
        } while (next_instance(kernels[x], &i));
    }
    text_add(out, "};\n");
}

void emit_spirv_source(text *out, kernel *const *kernels, int n) {
    text_add(out, "/* SPDX-License-Identifier: Apache-2.0\n *\n * SPIR-V of every generated kernel, in the order of "
                  "mobai_simt_instances: buffers by address, and bound.\n * Made by mobagen.\n */\n"
                  "#include \"codegen/host/simt.h\"\n\n");
    emit_words(out, kernels, n, "", "mobai_simt_spirv");
    text_add(out, "\n");
    emit_words(out, kernels, n, "_bound", "mobai_simt_spirv_bound");
}
