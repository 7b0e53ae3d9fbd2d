/* SPDX-License-Identifier: Apache-2.0
 *
 * The host's side of the kernels: parameter offsets, grids, instances, and the rows of the variants table.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

static int type_bytes(type t) { return t == TYPE_F32X4 ? 16 : t == TYPE_I64 ? 8 : t == TYPE_U16 ? 2 : 4; }

static const char *param_kind_name(const param *p) {
    switch (p->kind) {
    case PARAM_BUFFER:
        return "MOBAI_PARAM_BUFFER";
    case PARAM_PRESENT:
        return "MOBAI_PARAM_PRESENT";
    case PARAM_BATCH_Q:
        return "MOBAI_PARAM_BATCH_Q";
    case PARAM_BATCH_K:
        return "MOBAI_PARAM_BATCH_K";
    case PARAM_DERIVED:
        return p->type == TYPE_I64 ? "MOBAI_PARAM_DERIVED_I64" : "MOBAI_PARAM_DERIVED_I32";
    default:
        return p->type == TYPE_I64 ? "MOBAI_PARAM_I64" : "MOBAI_PARAM_32";
    }
}

static void emit_params(text *out, const kernel *k) {
    int derived = 0;
    for (int i = 0; i < k->n_params; i++) {
        const param *p = &k->params[i];
        if (p->kind != PARAM_MEMBER) continue;
        text_add(out, "_Static_assert(sizeof ((mobai_stage_args *)0)->%s == %d, \"%s: %s\");\n", p->source,
                 type_bytes(p->type), type_names[p->type], p->source);
    }
    text_add(out, "static const mobai_kernel_param params_%s[] = {\n", k->name);
    for (int pass = 0; pass < 3; pass++) {
        int index = 0;
        for (int i = 0; i < k->n_params; i++) {
            const param *p = &k->params[i];
            int which = p->kind == PARAM_DERIVED ? index++ : 0;
            if ((p->kind == PARAM_BUFFER ? 0 : p->type == TYPE_I64 ? 1 : 2) != pass) continue;
            if (p->kind == PARAM_DERIVED)
                text_add(out, "    {%s, %d, %d, \"%s\"},\n", param_kind_name(p), p->writes, which, p->name);
            else
                text_add(out, "    {%s, %d, offsetof(mobai_stage_args, %s), \"%s\"},\n", param_kind_name(p), p->writes,
                         p->source, p->name);
        }
        derived = index;
    }
    text_add(out, "};\n");
    text_add(
        out,
        "static void launch_%s(const mobai_stage_args *a, const int32_t *axes, int64_t *derived, int64_t *groups) {\n",
        k->name);
    text_add(out, "    (void)a, (void)axes, (void)derived;\n");
    for (int x = 0; x < k->n_axes; x++)
        if (strcmp(k->axes[x].name, "dtype") != 0)
            text_add(out, "    const int64_t %s = axes[%d];\n    (void)%s;\n", k->axes[x].name, x, k->axes[x].name);
    int index = 0;
    for (int i = 0; i < k->n_params; i++) {
        const param *p = &k->params[i];
        if (p->kind != PARAM_DERIVED) continue;
        text_add(out, "    int64_t %s = derived[%d] = %s;\n    (void)%s;\n", p->name, index++, p->source, p->name);
    }
    for (int g = 0; g < 3; g++)
        text_add(out, "    groups[%d] = %s;\n", g, k->grid[g]);
    text_add(out, "}\n");
    text_add(out, "static const mobai_kernel kernel_%s = {\"%s\", params_%s, %d, %d, launch_%s};\n\n", k->name, k->name,
             k->name, k->n_params, block_bytes(k), k->name);
    (void)derived;
}

static void emit_instances(text *out, kernel *const *kernels, int n) {
    char name[128];
    for (int x = 0; x < n; x++) {
        const kernel *k = kernels[x];
        instance i = {{0}};
        do {
            instance_name(k, &i, name, sizeof name);
            for (int a = 0; a < k->n_axes; a++)
                if (strcmp(k->axes[a].name, "dtype") != 0)
                    text_add(out, "#define %s %s\n", k->axes[a].name, k->axes[a].values[i.value[a]]);
            for (int d = 0; d < k->n_defines; d++)
                text_add(out, "#define %s (%s)\n", k->defines[d].name, k->defines[d].value);
            text_add(out, "enum { lanes_%s = %s, shared_%s = 0", name, k->lanes, name);
            for (int s = 0; s < k->n_shared; s++)
                text_add(out, " + %d * (%s)", type_bytes(k->shared[s].type), k->shared[s].value);
            text_add(out, " };\n");
            for (int d = 0; d < k->n_defines; d++)
                text_add(out, "#undef %s\n", k->defines[d].name);
            for (int a = 0; a < k->n_axes; a++)
                if (strcmp(k->axes[a].name, "dtype") != 0) text_add(out, "#undef %s\n", k->axes[a].name);
        } while (next_instance(k, &i));
    }
    text_add(out, "\nconst mobai_simt_instance mobai_simt_instances[] = {\n");
    for (int x = 0; x < n; x++) {
        instance i = {{0}};
        do {
            instance_name(kernels[x], &i, name, sizeof name);
            text_add(out, "    {\"moba_%s\", &kernel_%s, lanes_%s, shared_%s, {", name, kernels[x]->name, name, name);
            for (int a = 0; a < kernels[x]->n_axes; a++)
                if (strcmp(kernels[x]->axes[a].name, "dtype") == 0)
                    text_add(out, "%s%d", a ? ", " : "", instance_dtype(kernels[x], &i));
                else
                    text_add(out, "%s%s", a ? ", " : "", kernels[x]->axes[a].values[i.value[a]]);
            text_add(out, kernels[x]->n_axes ? "}},\n" : "0}},\n");
        } while (next_instance(kernels[x], &i));
    }
    text_add(
        out,
        "};\nconst size_t mobai_n_simt_instances = sizeof mobai_simt_instances / sizeof mobai_simt_instances[0];\n\n");
}

/** Index in the instances table of the step's instance whose axes agree with those of `i`. */
static int step_index(kernel *const *kernels, int n, const kernel *k, const variant *v, const instance *i,
                      const char *step) {
    int index = 0;
    bool known = false;
    for (int x = 0; x < n; x++) {
        const kernel *s = kernels[x];
        instance j = {{0}};
        do {
            bool match = strcmp(s->name, step) == 0;
            known = known || match;
            for (int a = 0; match && a < s->n_axes; a++) {
                const char *wanted = instance_value(k, i, s->axes[a].name);
                if (!wanted)
                    fail_at(v->path, v->line, "step '%s' has the axis %s, which %s lacks", step, s->axes[a].name,
                            k->name);
                match = strcmp(wanted, s->axes[a].values[j.value[a]]) == 0;
            }
            if (match) return index;
            index++;
        } while (next_instance(s, &j));
    }
    fail_at(v->path, v->line, known ? "step '%s' lacks an instance that '%s' needs" : "step '%s' of '%s' is no kernel",
            step, k->name);
}

static const char *tile_value(const kernel *k, const instance *i, const char *tile) {
    const char *v = instance_value(k, i, tile);
    return v ? v : tile;
}

/** gate_f16__simt_m64n64 */
static void variant_name(const kernel *k, const variant *v, const instance *i, text *out) {
    text_add(out, "%s", v->name);
    const char *dtype = instance_value(k, i, "dtype"), *dim = instance_value(k, i, "DT");
    if (dtype) text_add(out, "_%s", dtype);
    if (dim) text_add(out, "_d%s", dim);
    text_add(out, "__simt");
    if (v->tile_m) text_add(out, "_m%sn%s", tile_value(k, i, v->tile_m), tile_value(k, i, v->tile_n));
}

static void emit_variant(text *table, text *rows, kernel *const *kernels, int n, const kernel *k, const variant *v) {
    instance i = {{0}};
    do {
        text name = {0};
        variant_name(k, v, &i, &name);
        text_add(table, "const mobai_simt_program mobai_program_%s = {%d, {", name.data, v->n_steps);
        for (int s = 0; s < v->n_steps; s++)
            text_add(table, "%s%d", s ? ", " : "", step_index(kernels, n, k, v, &i, v->steps[s]));
        text_add(table, "}};\n");
        const char *dim = instance_value(k, &i, "DT"), *tile = v->tile_m ? tile_value(k, &i, v->tile_m) : "0";
        text_add(table, "const char *mobai_reject_%s(const moba_problem *p, const mobai_caps *c) {\n", name.data);
        text_add(table, "    const char *why = mobai_simt_reject(&mobai_program_%s, p, c, %s);\n", name.data,
                 dim ? dim : "0");
        if (v->reject)
            text_add(table, "    return why ? why : %s(p, %s);\n}\n", v->reject, tile);
        else
            text_add(table, "    return why;\n}\n");
        text_add(rows, "    MOBAI_SIMT_ROW(%s, %s, %s, %s, %s, %s, %s, %s)\n", name.data, v->stage,
                 instance_dtype(k, &i) < 0    ? "7u"
                 : instance_dtype(k, &i) == 0 ? "1u"
                 : instance_dtype(k, &i) == 1 ? "2u"
                                              : "4u",
                 v->flow, tile, v->tile_n ? tile_value(k, &i, v->tile_n) : "0", v->cost,
                 v->scratch ? v->scratch : "NULL");
        free(name.data);
    } while (next_instance(k, &i));
}

void emit_table(text *table, text *rows, kernel *const *kernels, int n) {
    text_add(table, "/* SPDX-License-Identifier: Apache-2.0\n *\n * Parameters, grids and instances of every generated "
                    "kernel, and the programs of its variants. Made by mobagen.\n */\n#include \"simt_table.h\"\n\n");
    for (int x = 0; x < n; x++)
        emit_params(table, kernels[x]);
    emit_instances(table, kernels, n);
    text_add(rows, "/* One row for each generated variant. Made by mobagen. */\n");
    for (int x = 0; x < n; x++)
        for (int v = 0; v < kernels[x]->n_variants; v++)
            emit_variant(table, rows, kernels, n, kernels[x], &kernels[x]->variants[v]);
}
