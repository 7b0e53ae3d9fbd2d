/* SPDX-License-Identifier: Apache-2.0
 *
 * mobagen: complete GPU sources and host tables from .kern files (codegen/DIALECT.md).
 *
 *   mobagen list DIALECT_DIR FILE.kern...          names of all instances, one a line
 *   mobagen emit DIALECT_DIR OUT_DIR FILE.kern...  everything; OUT_DIR/{opencl,glsl,cuda,hip} must exist
 *
 * Files that would not change are not written. Exit status 1 and one "file:line: reason" on any error.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

static int by_name(const void *a, const void *b) {
    return strcmp((*(kernel *const *)a)->name, (*(kernel *const *)b)->name);
}

static void write_to(const char *dir, const char *sub, const char *name, const char *suffix, const text *t) {
    text path = {0};
    text_add(&path, "%s/%s%s%s%s", dir, sub, *sub ? "/" : "", name, suffix);
    write_file(path.data, t);
    free(path.data);
}

static void emit_declarations(text *out, const text *rows) {
    text_add(
        out,
        "/* SPDX-License-Identifier: Apache-2.0\n *\n * Declarations of the generated tables. Made by mobagen.\n */\n"
        "#ifndef MOBAI_SIMT_TABLE_H\n#define MOBAI_SIMT_TABLE_H\n\n#include \"codegen/host/simt.h\"\n\n"
        "#define MOBAI_SIMT_ROW(name, stage, dtypes, flow, m, n, cost, scratch) \\\n"
        "    extern const mobai_simt_program mobai_program_##name; \\\n"
        "    const char *mobai_reject_##name(const moba_problem *p, const mobai_caps *c);\n");
    text_add_bytes(out, rows->data, rows->length);
    text_add(out, "#undef MOBAI_SIMT_ROW\n\n#endif\n");
}

/** Each instance in a file of its own; for CUDA and HIP also unit_<kernel>, which includes the kernel's instances. */
static void emit_texts(kernel *const *kernels, int n, const char *dir, target t, const char *prelude) {
    static const char *const suffixes[TARGET_COUNT] = {".cl", ".comp", ".cu", ".hip"};
    char name[128];
    for (int x = 0; x < n; x++) {
        instance i = {{0}};
        text unit = {0};
        do {
            text out = {0};
            emit_instance(&out, kernels[x], &i, t, prelude);
            instance_name(kernels[x], &i, name, sizeof name);
            write_to(dir, target_names[t], name, suffixes[t], &out);
            free(out.data);
            text_add(&unit, "#include \"%s%s\"\n", name, suffixes[t]);
        } while (next_instance(kernels[x], &i));
        snprintf(name, sizeof name, "unit_%s", kernels[x]->name);
        if (t == TARGET_CUDA || t == TARGET_HIP) write_to(dir, target_names[t], name, suffixes[t], &unit);
        free(unit.data);
    }
}

int main(int argc, char **argv) {
    bool list = argc > 3 && strcmp(argv[1], "list") == 0, emit = argc > 4 && strcmp(argv[1], "emit") == 0;
    if (!list && !emit) {
        fprintf(stderr,
                "usage: mobagen list DIALECT_DIR FILE.kern... | mobagen emit DIALECT_DIR OUT_DIR FILE.kern...\n");
        return 2;
    }
    int first = list ? 3 : 4, n = argc - first;
    kernel **kernels = calloc((size_t)n, sizeof *kernels);
    if (!kernels) fail_at("mobagen", 0, "no memory");
    for (int x = 0; x < n; x++)
        kernels[x] = parse_kernel(argv[first + x]);
    qsort(kernels, (size_t)n, sizeof *kernels, by_name);
    for (int x = 1; x < n; x++)
        if (strcmp(kernels[x]->name, kernels[x - 1]->name) == 0)
            fail_at(kernels[x]->path, 0, "kernel '%s' is also in %s", kernels[x]->name, kernels[x - 1]->path);
    if (list) {
        char name[128];
        for (int x = 0; x < n; x++) {
            instance i = {{0}};
            do {
                instance_name(kernels[x], &i, name, sizeof name);
                puts(name);
            } while (next_instance(kernels[x], &i));
        }
        return 0;
    }
    const char *dir = argv[3];
    char *preludes[TARGET_COUNT];
    for (int t = 0; t < TARGET_COUNT; t++) {
        text path = {0};
        text_add(&path, "%s/%s.h", argv[2], target_names[t]);
        preludes[t] = read_file(path.data, "mobagen", 0);
        emit_texts(kernels, n, dir, (target)t, preludes[t]);
        free(path.data);
    }
    text table = {0}, rows = {0}, header = {0}, opencl = {0}, spirv = {0};
    emit_table(&table, &rows, kernels, n);
    emit_declarations(&header, &rows);
    emit_opencl_source(&opencl, kernels, n, preludes[TARGET_OPENCL]);
    emit_spirv_source(&spirv, kernels, n);
    write_to(dir, "", "simt_table", ".c", &table);
    write_to(dir, "", "simt_table", ".h", &header);
    write_to(dir, "", "simt_rows", ".inc", &rows);
    write_to(dir, "", "simt_opencl", ".c", &opencl);
    write_to(dir, "", "simt_spirv", ".c", &spirv);
    return 0;
}
