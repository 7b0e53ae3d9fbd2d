/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads a .kern file: directives, one a line, up to "body"; the rest is the kernel's body. Included files are read the
 * same way, their body goes in front of the kernel.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

const char *const type_names[TYPE_COUNT] = {"f32", "i32", "u32", "i64", "u16", "T", "f32x4"};

/** One directive line, cut into words. */
typedef struct line {
    const char *path;
    int number;
    char *rest; /* unread part */
} line;

static char *copy_range(const char *begin, const char *end) {
    char *s = malloc((size_t)(end - begin) + 1);
    if (!s) fail_at("mobagen", 0, "no memory");
    memcpy(s, begin, (size_t)(end - begin));
    s[end - begin] = '\0';
    return s;
}
static char *copy(const char *s) { return copy_range(s, s + strlen(s)); }

static void skip_spaces(line *l) {
    while (*l->rest == ' ' || *l->rest == '\t')
        l->rest++;
}

/** Next word, NULL at the end of the line. */
static char *word_or_end(line *l) {
    skip_spaces(l);
    const char *begin = l->rest;
    while (*l->rest && !isspace((unsigned char)*l->rest))
        l->rest++;
    return l->rest == begin ? NULL : copy_range(begin, l->rest);
}

static char *word(line *l, const char *what) {
    char *w = word_or_end(l);
    if (!w) fail_at(l->path, l->number, "%s is missing", what);
    return w;
}

/** What is left of the line, trimmed. */
static char *remainder_of(line *l, const char *what) {
    skip_spaces(l);
    const char *end = l->rest + strlen(l->rest);
    while (end > l->rest && isspace((unsigned char)end[-1]))
        end--;
    if (end == l->rest) fail_at(l->path, l->number, "%s is missing", what);
    char *s = copy_range(l->rest, end);
    l->rest += strlen(l->rest);
    return s;
}

/** For what a kernel has once. */
static void expect_first(line *l, const char *before, const char *what) {
    if (before) fail_at(l->path, l->number, "a second '%s'", what);
}

static void expect_end(line *l) {
    char *w = word_or_end(l);
    if (w) fail_at(l->path, l->number, "unexpected '%s' at the end of the line", w);
}

/** A type of parameters; shared arrays alone may also be f32x4. */
static type parse_type(line *l, const char *w) {
    for (int i = 0; i < TYPE_F32X4; i++)
        if (strcmp(w, type_names[i]) == 0) return (type)i;
    fail_at(l->path, l->number, "unknown type '%s' (f32, i32, u32, i64, u16, T)", w);
}

static void check_name(line *l, const char *name) {
    bool ok = isalpha((unsigned char)name[0]) || name[0] == '_';
    for (const char *c = name; *c; c++)
        ok = ok && (isalnum((unsigned char)*c) || *c == '_');
    if (!ok) fail_at(l->path, l->number, "'%s' is not a name", name);
}

static const char *const kind_words[] = {"buffer", "flag", "scalar", "stride", "stride", "derived value"};

static void add_param(kernel *k, line *l, param p) {
    check_name(l, p.name);
    for (int i = 0; i < k->n_params; i++) {
        param *old = &k->params[i];
        if (strcmp(old->name, p.name) != 0) continue;
        if (old->kind != p.kind || old->type != p.type || strcmp(old->source, p.source) != 0)
            fail_at(l->path, l->number, "'%s' was declared before as another %s", p.name, kind_words[old->kind]);
        old->writes = old->writes || p.writes;
        old->reads = old->reads || p.reads;
        return;
    }
    if (k->n_params == MAX_PARAMS) fail_at(l->path, l->number, "more than %d parameters", MAX_PARAMS);
    k->params[k->n_params++] = p;
}

static char *joined(const char *a, const char *b) {
    text t = {0};
    text_add(&t, "%s%s", a, b);
    return t.data;
}

static void parse_access(line *l, param *p) {
    char *w = word(l, "in, out or inout");
    p->reads = strcmp(w, "in") == 0 || strcmp(w, "inout") == 0;
    p->writes = strcmp(w, "out") == 0 || strcmp(w, "inout") == 0;
    if (!p->reads && !p->writes) fail_at(l->path, l->number, "'%s' is not in, out or inout", w);
}

/** "= source" or, without it, the name itself. */
static char *parse_source(line *l, const char *name, bool *optional) {
    char *w;
    while ((w = word_or_end(l)) != NULL) {
        if (optional && strcmp(w, "optional") == 0)
            *optional = true;
        else if (strcmp(w, "=") == 0)
            return remainder_of(l, "the source after '='");
        else
            fail_at(l->path, l->number, "unexpected '%s'", w);
    }
    return copy(name);
}

static void parse_buffer(kernel *k, line *l) {
    param p = {.kind = PARAM_BUFFER};
    p.type = parse_type(l, word(l, "the element type"));
    p.name = word(l, "the buffer's name");
    parse_access(l, &p);
    p.source = parse_source(l, p.name, &p.optional);
    add_param(k, l, p);
    if (p.optional)
        add_param(
            k, l,
            (param){.kind = PARAM_PRESENT, .type = TYPE_I32, .name = joined("has_", p.name), .source = copy(p.source)});
}

/** tensor NAME q|k ACCESS [= member]: a buffer of T with strides NAME_ts, NAME_hs and NAME_bs. */
static void parse_tensor(kernel *k, line *l) {
    param p = {.kind = PARAM_BUFFER, .type = TYPE_T};
    p.name = word(l, "the tensor's name");
    char *rows = word(l, "q or k (whose rows it has)");
    bool q = strcmp(rows, "q") == 0;
    if (!q && strcmp(rows, "k") != 0)
        fail_at(l->path, l->number, "'%s' is not q or k (whose rows the tensor has)", rows);
    parse_access(l, &p);
    char *member = parse_source(l, p.name, NULL);
    p.source = joined(member, ".buffer");
    add_param(k, l, p);
    add_param(k, l,
              (param){.kind = PARAM_MEMBER,
                      .type = TYPE_I64,
                      .name = joined(p.name, "_ts"),
                      .source = joined(member, ".token_stride")});
    add_param(k, l,
              (param){.kind = PARAM_MEMBER,
                      .type = TYPE_I64,
                      .name = joined(p.name, "_hs"),
                      .source = joined(member, ".head_stride")});
    add_param(k, l,
              (param){.kind = q ? PARAM_BATCH_Q : PARAM_BATCH_K,
                      .type = TYPE_I64,
                      .name = joined(p.name, "_bs"),
                      .source = member});
}

static type parse_scalar_type(line *l) {
    type t = parse_type(l, word(l, "the type"));
    if (t != TYPE_I32 && t != TYPE_I64 && t != TYPE_F32) fail_at(l->path, l->number, "a scalar is i32, i64 or f32");
    return t;
}

static void parse_scalars(kernel *k, line *l) {
    type t = parse_scalar_type(l);
    char *name = word(l, "the scalar's name");
    do {
        add_param(k, l, (param){.kind = PARAM_MEMBER, .type = t, .name = name, .source = copy(name)});
    } while ((name = word_or_end(l)) != NULL);
}

static void parse_derive(kernel *k, line *l) {
    type t = parse_scalar_type(l);
    if (t == TYPE_F32) fail_at(l->path, l->number, "a derived value is i32 or i64");
    char *name = word(l, "the derived value's name");
    char *equals = word(l, "'='");
    if (strcmp(equals, "=") != 0) fail_at(l->path, l->number, "'=' is missing after '%s'", name);
    add_param(k, l,
              (param){.kind = PARAM_DERIVED, .type = t, .name = name, .source = remainder_of(l, "the expression")});
}

/** Adds a macro or array; the same one again, from a file included twice, is no error. */
static void add_named(named *all, int *n, int capacity, const named *d, line *l, const char *what) {
    for (int i = 0; i < *n; i++) {
        if (strcmp(all[i].name, d->name) != 0) continue;
        if (strcmp(all[i].value, d->value) == 0 && all[i].type == d->type) return;
        fail_at(l->path, l->number, "'%s' was declared before as something else", d->name);
    }
    if (*n == capacity) fail_at(l->path, l->number, "more than %d %s", capacity, what);
    all[(*n)++] = *d;
}

static void parse_shared(kernel *k, line *l) {
    char *element = word(l, "the element type");
    named s = {.type = strcmp(element, type_names[TYPE_F32X4]) == 0 ? TYPE_F32X4 : parse_type(l, element)};
    if (s.type == TYPE_T || s.type == TYPE_U16)
        fail_at(l->path, l->number, "a shared array is f32, i32, u32, i64 or f32x4");
    char *w = remainder_of(l, "NAME[SIZE]");
    char *open = strchr(w, '['), *close = strrchr(w, ']');
    if (!open || !close || close < open || close[1]) fail_at(l->path, l->number, "'%s' is not NAME[SIZE]", w);
    s.name = copy_range(w, open);
    s.value = copy_range(open + 1, close);
    check_name(l, s.name);
    add_named(k->shared, &k->n_shared, MAX_SHARED, &s, l, "shared arrays");
}

static void parse_axis(kernel *k, line *l) {
    if (k->n_axes == MAX_AXES) fail_at(l->path, l->number, "more than %d axes", MAX_AXES);
    axis *a = &k->axes[k->n_axes++];
    a->name = word(l, "the axis' name");
    check_name(l, a->name);
    for (const axis *b = k->axes; b < a; b++)
        if (strcmp(b->name, a->name) == 0) fail_at(l->path, l->number, "a second axis '%s'", a->name);
    a->prefix = strcmp(a->name, "dtype") == 0 ? copy("") : word(l, "the prefix of the axis' values");
    char *w = word(l, "a value");
    do {
        if (a->n_values == MAX_AXIS_VALUES) fail_at(l->path, l->number, "more than %d values", MAX_AXIS_VALUES);
        a->values[a->n_values++] = w;
        if (strcmp(a->name, "dtype") == 0 && strcmp(w, "f32") != 0 && strcmp(w, "f16") != 0 && strcmp(w, "bf16") != 0)
            fail_at(l->path, l->number, "dtype '%s' is not f32, f16 or bf16", w);
    } while ((w = word_or_end(l)) != NULL);
}

/** variant NAME KEY VALUE...: keys stage, flow, tile M N, reject, cost, scratch, and last: steps KERNEL... */
static void parse_variant(kernel *k, line *l) {
    if (k->n_variants == MAX_VARIANTS) fail_at(l->path, l->number, "more than %d variants", MAX_VARIANTS);
    variant *v = &k->variants[k->n_variants++];
    v->path = l->path;
    v->line = l->number;
    v->name = word(l, "the variant's name");
    char *key;
    while ((key = word_or_end(l)) != NULL) {
        if (strcmp(key, "steps") == 0) {
            char *step;
            while ((step = word_or_end(l)) != NULL) {
                if (v->n_steps == MAX_STEPS) fail_at(l->path, l->number, "more than %d steps", MAX_STEPS);
                v->steps[v->n_steps++] = step;
            }
            break;
        }
        char *value = word(l, key);
        if (strcmp(key, "stage") == 0)
            v->stage = value;
        else if (strcmp(key, "flow") == 0)
            v->flow = value;
        else if (strcmp(key, "tile") == 0)
            v->tile_m = value, v->tile_n = word(l, "the tile's second size");
        else if (strcmp(key, "reject") == 0)
            v->reject = value;
        else if (strcmp(key, "cost") == 0)
            v->cost = value;
        else if (strcmp(key, "scratch") == 0)
            v->scratch = value;
        else
            fail_at(l->path, l->number, "unknown key '%s' of a variant", key);
    }
    if (!v->stage || !v->flow || !v->cost || v->n_steps == 0)
        fail_at(l->path, l->number, "variant '%s' needs stage, flow, cost and steps", v->name);
}

static void parse_grid(kernel *k, line *l) {
    expect_first(l, k->grid[0], "grid");
    char *all = remainder_of(l, "the grid"), *begin = all;
    int depth = 0, n = 0;
    for (char *c = all;; c++) {
        depth += (*c == '(') - (*c == ')');
        if (*c && (*c != ',' || depth > 0)) continue;
        if (n == 3) fail_at(l->path, l->number, "a grid has at most 3 sizes");
        while (*begin == ' ')
            begin++;
        k->grid[n++] = copy_range(begin, c);
        if (!*c) break;
        begin = c + 1;
    }
    while (n < 3)
        k->grid[n++] = copy("1");
}

static void parse_file(kernel *k, const char *path, const char *from, int from_line, int depth);

static void parse_include(kernel *k, line *l, int depth) {
    if (depth > 4) fail_at(l->path, l->number, "includes are nested more than 4 deep");
    char *name = word(l, "the file's name");
    const char *slash = strrchr(l->path, '/');
    text path = {0};
    text_add(&path, "%.*s%s", slash ? (int)(slash - l->path + 1) : 0, l->path, name);
    parse_file(k, path.data, l->path, l->number, depth + 1);
}

static void parse_directive(kernel *k, line *l, int depth) {
    char *w = word_or_end(l);
    if (!w) return;
    if (strcmp(w, "kernel") == 0)
        expect_first(l, k->name, w), k->name = word(l, "the kernel's name"), check_name(l, k->name);
    else if (strcmp(w, "lanes") == 0)
        expect_first(l, k->lanes, w), k->lanes = remainder_of(l, "the number of lanes");
    else if (strcmp(w, "axis") == 0)
        parse_axis(k, l);
    else if (strcmp(w, "tensor") == 0)
        parse_tensor(k, l);
    else if (strcmp(w, "buffer") == 0)
        parse_buffer(k, l);
    else if (strcmp(w, "scalar") == 0)
        parse_scalars(k, l);
    else if (strcmp(w, "derive") == 0)
        parse_derive(k, l);
    else if (strcmp(w, "shared") == 0)
        parse_shared(k, l);
    else if (strcmp(w, "variant") == 0)
        parse_variant(k, l);
    else if (strcmp(w, "grid") == 0)
        parse_grid(k, l);
    else if (strcmp(w, "include") == 0)
        parse_include(k, l, depth);
    else if (strcmp(w, "define") == 0) {
        named d = {.name = word(l, "the macro's name")};
        check_name(l, d.name);
        d.value = remainder_of(l, "the macro's value");
        add_named(k->defines, &k->n_defines, MAX_DEFINES, &d, l, "defines");
    } else
        fail_at(l->path, l->number, "unknown directive '%s'", w);
    expect_end(l);
}

static void parse_file(kernel *k, const char *path, const char *from, int from_line, int depth) {
    char *data = read_file(path, from, from_line), *next = data;
    for (int number = 1; *next; number++) {
        char *begin = next, *end = strchr(begin, '\n');
        next = end ? end + 1 : begin + strlen(begin);
        if (end) *end = '\0';
        char *comment = strstr(begin, "//");
        if (comment) *comment = '\0';
        line l = {path, number, begin};
        skip_spaces(&l);
        if (strcmp(l.rest, "body") == 0) {
            text *to = depth == 0 ? &k->body : &k->macros;
            text_add_bytes(to, next, strlen(next));
            if (to->length && to->data[to->length - 1] != '\n') text_add(to, "\n");
            break;
        }
        parse_directive(k, &l, depth);
    }
    free(data);
}

kernel *parse_kernel(const char *path) {
    kernel *k = calloc(1, sizeof *k);
    if (!k) fail_at("mobagen", 0, "no memory");
    k->path = copy(path);
    parse_file(k, path, "mobagen", 0, 0);
    const char *missing = !k->name          ? "kernel"
                          : !k->lanes       ? "lanes"
                          : !k->grid[0]     ? "grid"
                          : !k->body.length ? "body"
                                            : NULL;
    if (missing) fail_at(path, 0, "'%s' is missing", missing);
    if (!k->macros.data) text_add(&k->macros, "%s", "");
    return k;
}

bool next_instance(const kernel *k, instance *i) {
    for (int a = k->n_axes - 1; a >= 0; a--) {
        if (++i->value[a] < k->axes[a].n_values) return true;
        i->value[a] = 0;
    }
    return false;
}

void instance_name(const kernel *k, const instance *i, char *out, size_t capacity) {
    size_t n = (size_t)snprintf(out, capacity, "%s", k->name);
    for (int a = 0; a < k->n_axes && n < capacity; a++)
        n += (size_t)snprintf(out + n, capacity - n, "_%s%s", k->axes[a].prefix, k->axes[a].values[i->value[a]]);
    if (n >= capacity) fail_at(k->path, 0, "the name of an instance is longer than %zu", capacity - 1);
}

const char *instance_value(const kernel *k, const instance *i, const char *axis_name) {
    for (int a = 0; a < k->n_axes; a++)
        if (strcmp(k->axes[a].name, axis_name) == 0) return k->axes[a].values[i->value[a]];
    return NULL;
}

int instance_dtype(const kernel *k, const instance *i) {
    const char *v = instance_value(k, i, "dtype");
    return !v ? -1 : strcmp(v, "f32") == 0 ? 0 : strcmp(v, "f16") == 0 ? 1 : 2;
}

int block_bytes(const kernel *k) {
    int bytes = 0;
    for (int i = 0; i < k->n_params; i++)
        bytes += k->params[i].kind == PARAM_BUFFER || k->params[i].type == TYPE_I64 ? 8 : 4;
    return (bytes + 7) / 8 * 8;
}
