/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/problem_string.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/** Rows and sequences stay below this, the library's own limit. */
#define MAX_ROWS INT32_MAX

typedef struct parser {
    const char *text;
    const char *at;
    mobai_bench_problem *problem;
    mobai_message *message;
} parser;

/** Field letters, in canonical order. */
typedef struct field {
    char letter;
    uint32_t given;
    const char *name;
    int64_t least, most;
} field;
static const field fields[] = {
    {'b', MOBAI_GIVEN_BATCH, "the number of sequences", 1, MAX_ROWS},
    {'q', MOBAI_GIVEN_Q, "the query length", 0, MAX_ROWS},
    {'k', MOBAI_GIVEN_K, "the key length", 0, MAX_ROWS},
    {'h', MOBAI_GIVEN_Q_HEADS, "the number of query heads", 1, INT32_MAX},
    {'g', MOBAI_GIVEN_KV_HEADS, "the number of key-value heads", 1, INT32_MAX},
    {'d', MOBAI_GIVEN_HEAD_DIM, "head_dim", 1, INT32_MAX},
    {'B', MOBAI_GIVEN_BLOCK_SIZE, "block_size", 1, INT32_MAX},
    {'t', MOBAI_GIVEN_TOP_K, "top_k", 1, INT32_MAX},
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

static int column_of(const parser *p, const char *at) { return (int)(at - p->text) + 1; }

/** The character at `at` for a sentence. */
static const char *shown(const char *at, char out[16]) {
    if (*at == '\0') {
        snprintf(out, 16, "the end");
    } else if (*at >= ' ' && *at <= '~') {
        snprintf(out, 16, "'%c'", *at);
    } else {
        snprintf(out, 16, "byte 0x%02x", (unsigned)(unsigned char)*at);
    }
    return out;
}

/** Reads a decimal number in [least, most] at p->at and steps past it. */
static bool read_number(parser *p, const char *name, int64_t least, int64_t most, int64_t *out) {
    const char *begin = p->at;
    int64_t value = 0;
    while (*p->at >= '0' && *p->at <= '9') {
        value = value * 10 + (*p->at++ - '0');
        if (value > most) {
            return mobai_say(p->message, "column %d: %s is above %" PRId64, column_of(p, begin), name, most);
        }
    }
    if (p->at == begin) {
        char text[16];
        return mobai_say(p->message, "column %d: expected a number (%s), found %s", column_of(p, begin), name,
                         shown(begin, text));
    }
    if (value < least) {
        return mobai_say(p->message, "column %d: %s is %" PRId64 ", must be at least %" PRId64, column_of(p, begin),
                         name, value, least);
    }
    *out = value;
    return true;
}

static void set_field(mobai_bench_problem *problem, char letter, int64_t value) {
    switch (letter) {
    case 'b':
        problem->batch = value;
        break;
    case 'q':
        problem->seqlen_q = value;
        break;
    case 'k':
        problem->seqlen_k = value;
        break;
    case 'h':
        problem->n_q_heads = (int32_t)value;
        break;
    case 'g':
        problem->n_kv_heads = (int32_t)value;
        break;
    case 'd':
        problem->head_dim = (int32_t)value;
        break;
    case 'B':
        problem->block_size = (int32_t)value;
        break;
    default:
        problem->top_k = (int32_t)value;
        break;
    }
}

/** The fields up to the first comma or the end. */
static bool read_fields(parser *p) {
    mobai_bench_problem *problem = p->problem;
    while (*p->at != '\0' && *p->at != ',') {
        const char letter = *p->at;
        char text[16];
        if (letter == 'c' || letter == 'n') {
            problem->causal = letter == 'c';
            problem->given |= MOBAI_GIVEN_CAUSAL;
            p->at++;
            if (*p->at != '\0' && *p->at != ',') {
                return mobai_say(p->message, "column %d: expected ',' or the end after '%c', found %s",
                                 column_of(p, p->at), letter, shown(p->at, text));
            }
            return true;
        }
        const field *f = NULL;
        for (size_t i = 0; i < N_FIELDS; i++) {
            if (fields[i].letter == letter) f = &fields[i];
        }
        if (f == NULL) {
            return mobai_say(p->message, "column %d: expected one of b q k h g d B t, or c or n, found %s",
                             column_of(p, p->at), shown(p->at, text));
        }
        if (problem->given & f->given) {
            return mobai_say(p->message, "column %d: '%c' (%s) is given twice", column_of(p, p->at), letter, f->name);
        }
        p->at++;
        int64_t value = 0;
        if (!read_number(p, f->name, f->least, f->most, &value)) return false;
        set_field(problem, letter, value);
        problem->given |= f->given;
    }
    return true;
}

/** One list of lengths up to ',', '/' or the end. */
static bool read_lengths(parser *p, const char *name, int64_t **out, int64_t *n) {
    const char *begin = p->at;
    size_t capacity = 1;
    for (const char *c = begin; *c != '\0' && *c != ',' && *c != '/'; c++)
        capacity += *c == '+';
    int64_t *lengths = malloc(capacity * sizeof *lengths);
    if (lengths == NULL) return mobai_say_memory(p->message, "out of memory for %zu lengths", capacity);
    *out = lengths;
    int64_t total = 0;
    for (size_t i = 0; i < capacity; i++) {
        const char *number = p->at;
        if (!read_number(p, name, 0, MAX_ROWS, &lengths[i])) return false;
        total += lengths[i];
        if (total > MAX_ROWS) {
            return mobai_say(p->message, "column %d: the lengths add up to more than %d rows", column_of(p, number),
                             MAX_ROWS);
        }
        char text[16];
        const bool last = i + 1 == capacity;
        const bool good = last ? *p->at == '\0' || *p->at == ',' || *p->at == '/' : *p->at == '+';
        if (!good) {
            return mobai_say(p->message, "column %d: expected '+' or the end of the lengths, found %s",
                             column_of(p, p->at), shown(p->at, text));
        }
        if (!last) p->at++;
    }
    *n = (int64_t)capacity;
    return true;
}

static bool read_lens(parser *p) {
    mobai_bench_problem *problem = p->problem;
    const char *begin = p->at;
    int64_t n_q = 0, n_k = 0;
    if (!read_lengths(p, "a query length", &problem->lens_q, &n_q)) return false;
    if (*p->at == '/') {
        p->at++;
        if (!read_lengths(p, "a key length", &problem->lens_k, &n_k)) return false;
        char text[16];
        if (*p->at == '/') {
            return mobai_say(p->message, "column %d: expected ',' or the end after the key lengths, found %s",
                             column_of(p, p->at), shown(p->at, text));
        }
        if (n_k != n_q) {
            return mobai_say(p->message, "column %d: lens has %" PRId64 " query lengths but %" PRId64 " key lengths",
                             column_of(p, begin), n_q, n_k);
        }
    } else {
        problem->lens_k = malloc((size_t)n_q * sizeof *problem->lens_k);
        if (problem->lens_k == NULL) return mobai_say_memory(p->message, "out of memory for %" PRId64 " lengths", n_q);
        memcpy(problem->lens_k, problem->lens_q, (size_t)n_q * sizeof *problem->lens_k);
    }
    int64_t longest_q = 0, longest_k = 0;
    for (int64_t i = 0; i < n_q; i++) {
        if (problem->lens_q[i] > longest_q) longest_q = problem->lens_q[i];
        if (problem->lens_k[i] > longest_k) longest_k = problem->lens_k[i];
    }
    const struct {
        uint32_t given;
        char letter;
        int64_t have, want;
        const char *what;
    } same[] = {
        {MOBAI_GIVEN_BATCH, 'b', problem->batch, n_q, "the number of lengths"},
        {MOBAI_GIVEN_Q, 'q', problem->seqlen_q, longest_q, "the longest query length"},
        {MOBAI_GIVEN_K, 'k', problem->seqlen_k, longest_k, "the longest key length"},
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        if ((problem->given & same[i].given) && same[i].have != same[i].want) {
            return mobai_say(p->message, "column %d: '%c' is %" PRId64 ", but %s of lens is %" PRId64,
                             column_of(p, begin), same[i].letter, same[i].have, same[i].what, same[i].want);
        }
    }
    problem->batch = n_q;
    problem->seqlen_q = longest_q;
    problem->seqlen_k = longest_k;
    problem->given |= MOBAI_GIVEN_LENS | MOBAI_GIVEN_BATCH | MOBAI_GIVEN_Q | MOBAI_GIVEN_K;
    return true;
}

enum {
    SEEN_SINK = 1,
    SEEN_LOCAL = 2,
    SEEN_KCONV = 4,
    SEEN_DENSE = 8,
    SEEN_DET = 16,
    SEEN_LENS = 32,
    SEEN_DTYPE = 64,
    SEEN_INFERENCE = 128
};

/** True when the option at p->at is `word` (followed by ',' or the end, or ending in '='); steps past it. */
static bool take(parser *p, const char *word) {
    const size_t n = strlen(word);
    if (strncmp(p->at, word, n) != 0) return false;
    if (word[n - 1] != '=' && p->at[n] != '\0' && p->at[n] != ',') return false;
    p->at += n;
    return true;
}

/** One option after a comma. */
static bool read_option(parser *p, uint32_t *seen) {
    mobai_bench_problem *problem = p->problem;
    const char *begin = p->at;
    uint32_t what = 0;
    int64_t value = 0;
    bool good = true;
    if (take(p, "f32")) {
        what = SEEN_DTYPE;
        problem->dtype = MOBA_F32;
    } else if (take(p, "f16")) {
        what = SEEN_DTYPE;
        problem->dtype = MOBA_F16;
    } else if (take(p, "bf16")) {
        what = SEEN_DTYPE;
        problem->dtype = MOBA_BF16;
    } else if (take(p, "dense")) {
        what = SEEN_DENSE;
        problem->dense = true;
    } else if (take(p, "det")) {
        what = SEEN_DET;
        problem->deterministic = true;
    } else if (take(p, "inference")) {
        what = SEEN_INFERENCE;
        problem->inference = true;
    } else if (take(p, "sink=")) {
        what = SEEN_SINK;
        good = read_number(p, "sink", 0, INT32_MAX, &value);
        problem->n_sink_blocks = (int32_t)value;
    } else if (take(p, "local=")) {
        what = SEEN_LOCAL;
        good = read_number(p, "local", 0, INT32_MAX, &value);
        problem->n_local_blocks = (int32_t)value;
    } else if (take(p, "kconv=")) {
        what = SEEN_KCONV;
        good = read_number(p, "kconv", 0, 8, &value);
        problem->kconv_width = (int32_t)value;
    } else if (take(p, "lens=")) {
        if (*seen & SEEN_LENS) {
            return mobai_say(p->message, "column %d: lens is given twice", column_of(p, begin));
        }
        what = SEEN_LENS;
        good = read_lens(p);
    } else {
        return mobai_say(p->message,
                         "column %d: expected f32, f16, bf16, sink=N, local=N, kconv=N, dense, det, inference or "
                         "lens=N+N after ','",
                         column_of(p, begin));
    }
    if (!good) return false;
    if (*seen & what) {
        return mobai_say(p->message, "column %d: this option is given twice", column_of(p, begin));
    }
    *seen |= what;
    if (*p->at != '\0' && *p->at != ',') {
        char text[16];
        return mobai_say(p->message, "column %d: expected ',' or the end, found %s", column_of(p, p->at),
                         shown(p->at, text));
    }
    return true;
}

/** What the text left out. */
static bool complete(parser *p, bool partial) {
    mobai_bench_problem *problem = p->problem;
    const int end = (int)strlen(p->text) + 1;
    if (!(problem->given & MOBAI_GIVEN_CAUSAL)) {
        return mobai_say(p->message, "column %d: c (causal) or n (non-causal) is missing",
                         column_of(p, p->text + strcspn(p->text, ",")));
    }
    if (!problem->dense) {
        for (size_t i = 0; i < N_FIELDS; i++) {
            const bool needed = (fields[i].given & (MOBAI_GIVEN_BLOCK_SIZE | MOBAI_GIVEN_TOP_K)) != 0;
            if (needed && !(problem->given & fields[i].given)) {
                return mobai_say(p->message, "column %d: '%c' (%s) is missing; only a dense problem has none", end,
                                 fields[i].letter, fields[i].name);
            }
        }
    }
    if (partial) return true;
    if (!(problem->given & MOBAI_GIVEN_DTYPE)) {
        return mobai_say(p->message, "column %d: the type is missing: add ,f32 or ,f16 or ,bf16", end);
    }
    if (!(problem->given & MOBAI_GIVEN_BATCH)) problem->batch = 1;
    if (!(problem->given & (MOBAI_GIVEN_Q | MOBAI_GIVEN_K))) {
        return mobai_say(p->message, "column %d: 'q' (the query length), 'k' (the key length) or lens is missing", end);
    }
    if (!(problem->given & MOBAI_GIVEN_Q)) problem->seqlen_q = problem->seqlen_k;
    if (!(problem->given & MOBAI_GIVEN_K)) problem->seqlen_k = problem->seqlen_q;
    if (!(problem->given & MOBAI_GIVEN_Q_HEADS) || !(problem->given & MOBAI_GIVEN_HEAD_DIM)) {
        return mobai_say(p->message, "column %d: '%s is missing", end,
                         problem->given & MOBAI_GIVEN_Q_HEADS ? "d' (head_dim)" : "h' (the number of query heads)");
    }
    if (!(problem->given & MOBAI_GIVEN_KV_HEADS)) problem->n_kv_heads = problem->n_q_heads;
    const int64_t longest = problem->seqlen_q > problem->seqlen_k ? problem->seqlen_q : problem->seqlen_k;
    if (problem->lens_q == NULL && longest > MAX_ROWS / problem->batch) {
        return mobai_say(p->message, "column 1: %" PRId64 " sequences of %" PRId64 " rows are more than %d rows",
                         problem->batch, longest, MAX_ROWS);
    }
    return true;
}

bool mobai_problem_parse(const char *text, bool partial, mobai_bench_problem *out, mobai_message *message) {
    *out = (mobai_bench_problem){0};
    parser p = {text, text, out, message};
    uint32_t seen = 0;
    bool good = read_fields(&p);
    while (good && *p.at == ',') {
        p.at++;
        good = read_option(&p, &seen);
        if (good && (seen & SEEN_DTYPE)) out->given |= MOBAI_GIVEN_DTYPE;
    }
    good = good && complete(&p, partial);
    if (!good) mobai_problem_free(out);
    return good;
}

void mobai_problem_free(mobai_bench_problem *problem) {
    free(problem->lens_q);
    free(problem->lens_k);
    problem->lens_q = NULL;
    problem->lens_k = NULL;
}

/** Appends lengths joined by '+'; returns the end. */
static char *put_lengths(char *at, const int64_t *lengths, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        at += sprintf(at, "%s%" PRId64, i == 0 ? "" : "+", lengths[i]);
    return at;
}

char *mobai_problem_print(const mobai_bench_problem *problem) {
    const size_t n_lengths = problem->lens_q != NULL ? 2 * (size_t)problem->batch : 0;
    char *text = malloc(320 + 21 * n_lengths);
    if (text == NULL) return NULL;
    char *at = text;
    at += sprintf(at, "b%" PRId64 "q%" PRId64 "k%" PRId64 "h%" PRId32 "g%" PRId32 "d%" PRId32, problem->batch,
                  problem->seqlen_q, problem->seqlen_k, problem->n_q_heads, problem->n_kv_heads, problem->head_dim);
    if (problem->block_size > 0) at += sprintf(at, "B%" PRId32, problem->block_size);
    if (problem->top_k > 0) at += sprintf(at, "t%" PRId32, problem->top_k);
    at += sprintf(at, "%c,%s", problem->causal ? 'c' : 'n', mobai_dtype_name(problem->dtype));
    if (problem->n_sink_blocks > 0) at += sprintf(at, ",sink=%" PRId32, problem->n_sink_blocks);
    if (problem->n_local_blocks > 0) at += sprintf(at, ",local=%" PRId32, problem->n_local_blocks);
    if (problem->kconv_width > 0) at += sprintf(at, ",kconv=%" PRId32, problem->kconv_width);
    if (problem->dense) at += sprintf(at, ",dense");
    if (problem->deterministic) at += sprintf(at, ",det");
    if (problem->inference) at += sprintf(at, ",inference");
    if (problem->lens_q != NULL) {
        at += sprintf(at, ",lens=");
        at = put_lengths(at, problem->lens_q, problem->batch);
        if (memcmp(problem->lens_q, problem->lens_k, (size_t)problem->batch * sizeof(int64_t)) != 0) {
            *at++ = '/';
            at = put_lengths(at, problem->lens_k, problem->batch);
        }
        *at = '\0';
    }
    return text;
}

bool mobai_problem_copy(mobai_bench_problem *to, const mobai_bench_problem *from) {
    *to = *from;
    if (from->lens_q == NULL) return true;
    const size_t bytes = (size_t)from->batch * sizeof(int64_t);
    to->lens_q = malloc(bytes);
    to->lens_k = malloc(bytes);
    if (to->lens_q == NULL || to->lens_k == NULL) {
        mobai_problem_free(to);
        return false;
    }
    memcpy(to->lens_q, from->lens_q, bytes);
    memcpy(to->lens_k, from->lens_k, bytes);
    return true;
}

static int64_t begin_of(const int64_t *lengths, int64_t seqlen, int64_t b) {
    if (lengths == NULL) return b * seqlen;
    int64_t sum = 0;
    for (int64_t i = 0; i < b; i++)
        sum += lengths[i];
    return sum;
}
int64_t mobai_problem_q_begin(const mobai_bench_problem *problem, int64_t b) {
    return begin_of(problem->lens_q, problem->seqlen_q, b);
}
int64_t mobai_problem_k_begin(const mobai_bench_problem *problem, int64_t b) {
    return begin_of(problem->lens_k, problem->seqlen_k, b);
}
int64_t mobai_problem_total_q(const mobai_bench_problem *problem) {
    return mobai_problem_q_begin(problem, problem->batch);
}
int64_t mobai_problem_total_k(const mobai_bench_problem *problem) {
    return mobai_problem_k_begin(problem, problem->batch);
}

moba_problem mobai_problem_bounds(const mobai_bench_problem *problem) {
    moba_problem out = MOBA_PROBLEM_INIT;
    out.dtype = problem->dtype;
    out.n_q_heads = problem->n_q_heads;
    out.n_kv_heads = problem->n_kv_heads;
    out.head_dim = problem->head_dim;
    if (problem->block_size > 0) out.block_size = problem->block_size;
    if (problem->top_k > 0) out.top_k = problem->top_k;
    out.n_sink_blocks = problem->n_sink_blocks;
    out.n_local_blocks = problem->n_local_blocks;
    out.kconv_width = problem->kconv_width;
    out.causal = problem->causal;
    out.dense = problem->dense;
    out.deterministic = problem->deterministic;
    out.inference = problem->inference;
    out.max_batch = problem->batch;
    out.max_total_q = mobai_problem_total_q(problem);
    out.max_total_k = mobai_problem_total_k(problem);
    out.max_seqlen_q = problem->seqlen_q;
    out.max_seqlen_k = problem->seqlen_k;
    return out;
}
