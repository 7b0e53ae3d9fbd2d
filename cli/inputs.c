/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/inputs.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/safetensors.h"
#include "cli/tensor_file.h"

/** Which tensor a random stream is for. */
enum { STREAM_Q = 1, STREAM_K, STREAM_V, STREAM_DOUT, STREAM_WEIGHT };

/** Normal numbers come from a table of this many quantiles, one look-up for 16 random bits. */
enum { TABLE_SIZE = 65536 };

/** Finaliser of the splitmix64 generator: a bijection of 64 bits whose output passes as random for a counter. */
static uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

bool mobai_fill_normal(void *out, moba_dtype dtype, size_t n, uint64_t seed, uint64_t stream, double deviation) {
    float *quantiles = malloc(TABLE_SIZE * sizeof *quantiles);
    uint16_t *halves = malloc(TABLE_SIZE * sizeof *halves);
    if (quantiles == NULL || halves == NULL) {
        free(quantiles);
        free(halves);
        return false;
    }
    /* The quantile at (i + 1/2) / 65536: moba_snr_required(n, k) is the normal quantile at 1 - k / n. */
    for (int64_t i = 0; i < TABLE_SIZE; i++) {
        quantiles[i] = (float)(deviation * -moba_snr_required(2 * TABLE_SIZE, 2 * i + 1));
    }
    const uint64_t key = mix(seed * 0x9e3779b97f4a7c15ull + stream);
    if (dtype == MOBA_F32) {
        float *to = out;
        for (size_t i = 0; i < n; i += 4) {
            const uint64_t r = mix(key + (i / 4 + 1) * 0x9e3779b97f4a7c15ull);
            const size_t m = n - i < 4 ? n - i : 4;
            for (size_t j = 0; j < m; j++)
                to[i + j] = quantiles[(r >> (16 * j)) & 0xffff];
        }
    } else {
        mobai_convert(halves, (mobai_element)dtype, quantiles, MOBAI_ELEMENT_F32, TABLE_SIZE);
        uint16_t *to = out;
        for (size_t i = 0; i < n; i += 4) {
            const uint64_t r = mix(key + (i / 4 + 1) * 0x9e3779b97f4a7c15ull);
            const size_t m = n - i < 4 ? n - i : 4;
            for (size_t j = 0; j < m; j++)
                to[i + j] = halves[(r >> (16 * j)) & 0xffff];
        }
    }
    free(quantiles);
    free(halves);
    return true;
}

/** Allocates and fills one tensor; a tensor without elements gets a valid pointer too. */
static void *random_tensor(const char *name, moba_dtype dtype, size_t n, uint64_t seed, uint64_t stream,
                           double deviation, mobai_message *message) {
    const size_t bytes = n * mobai_element_bytes((mobai_element)dtype);
    void *data = malloc(bytes > 0 ? bytes : 1);
    if (data == NULL || !mobai_fill_normal(data, dtype, n, seed, stream, deviation)) {
        free(data);
        mobai_say_memory(message, "out of memory for %zu bytes of %s", bytes, name);
        return NULL;
    }
    return data;
}

static size_t q_count(const mobai_bench_problem *problem) {
    return (size_t)mobai_problem_total_q(problem) * (size_t)problem->n_q_heads * (size_t)problem->head_dim;
}
static size_t k_count(const mobai_bench_problem *problem) {
    return (size_t)mobai_problem_total_k(problem) * (size_t)problem->n_kv_heads * (size_t)problem->head_dim;
}
static size_t weight_count(const mobai_bench_problem *problem) {
    return (size_t)problem->n_kv_heads * (size_t)problem->head_dim * (size_t)problem->kconv_width;
}

/** Cumulative lengths of a problem with lens. */
static bool make_cu(const mobai_bench_problem *problem, mobai_bench_inputs *out, mobai_message *message) {
    out->total_q = mobai_problem_total_q(problem);
    out->total_k = mobai_problem_total_k(problem);
    if (problem->lens_q == NULL) return true;
    const size_t n = (size_t)problem->batch + 1;
    out->cu_q = malloc(n * sizeof *out->cu_q);
    out->cu_k = malloc(n * sizeof *out->cu_k);
    if (out->cu_q == NULL || out->cu_k == NULL)
        return mobai_say_memory(message, "out of memory for %zu cu_seqlens", 2 * n);
    out->cu_q[0] = out->cu_k[0] = 0;
    for (size_t b = 0; b + 1 < n; b++) {
        out->cu_q[b + 1] = (int32_t)(out->cu_q[b] + problem->lens_q[b]);
        out->cu_k[b + 1] = (int32_t)(out->cu_k[b] + problem->lens_k[b]);
    }
    return true;
}

/** Makes what is still missing: everything, or do and kconv_weight. */
static bool fill_missing(const mobai_bench_problem *problem, uint64_t seed, mobai_bench_inputs *out,
                         mobai_message *message) {
    const struct {
        const char *name;
        void **at;
        size_t n;
        uint64_t stream;
        double deviation;
        bool wanted;
    } tensors[] = {
        {"q", &out->q, q_count(problem), STREAM_Q, 1.0, true},
        {"k", &out->k, k_count(problem), STREAM_K, 1.0, true},
        {"v", &out->v, k_count(problem), STREAM_V, 1.0, true},
        {"do", &out->dout, q_count(problem), STREAM_DOUT, 1.0, true},
        {"kconv_weight", &out->kconv_weight, weight_count(problem), STREAM_WEIGHT, 0.25, problem->kconv_width > 0},
    };
    const size_t n_tensors = sizeof tensors / sizeof tensors[0];
    mobai_progress("random inputs");
    for (size_t i = 0; i < n_tensors; i++) {
        if (*tensors[i].at != NULL || !tensors[i].wanted) continue;
        *tensors[i].at = random_tensor(tensors[i].name, problem->dtype, tensors[i].n, seed, tensors[i].stream,
                                       tensors[i].deviation, message);
        if (*tensors[i].at == NULL) return false;
        mobai_progress_at(i + 1, n_tensors);
    }
    return true;
}

bool mobai_inputs_random(const mobai_bench_problem *problem, uint64_t seed, mobai_bench_inputs *out,
                         mobai_message *message) {
    *out = (mobai_bench_inputs){0};
    const bool good = make_cu(problem, out, message) && fill_missing(problem, seed, out, message);
    if (!good) mobai_inputs_free(out);
    return good;
}

void mobai_inputs_free(mobai_bench_inputs *inputs) {
    free(inputs->q);
    free(inputs->k);
    free(inputs->v);
    free(inputs->dout);
    free(inputs->kconv_weight);
    free(inputs->cu_q);
    free(inputs->cu_k);
    *inputs = (mobai_bench_inputs){0};
}

/* ------------------------------------------------------------------------------------------------ files -- */

/** Finds a tensor that must be there when `required`. *found says whether it is. */
static bool find(const mobai_safetensors *file, const char *name, bool required, mobai_tensor_view *view, bool *found,
                 mobai_message *message) {
    const mobai_find_result result = mobai_safetensors_find(file, name, view, message);
    *found = result == MOBAI_FIND_OK;
    if (result == MOBAI_FIND_REFUSED) return false;
    if (required && !*found) return mobai_say(message, "has no tensor '%s'", name);
    return true;
}

/** Checks rank, element type and, where `shape` has no -1, the extents. */
static bool check_view(const char *name, const mobai_tensor_view *view, bool integer, int32_t rank,
                       const int64_t *shape, mobai_message *message) {
    char text[160];
    if (integer != (view->element == MOBAI_ELEMENT_I32)) {
        return mobai_say(message, "tensor '%s' is %s, must be %s", name, mobai_element_name(view->element),
                         integer ? "int32" : "a float type");
    }
    bool good = view->rank == rank;
    for (int32_t i = 0; good && i < rank; i++)
        good = shape[i] < 0 || shape[i] == view->shape[i];
    if (good) return true;
    mobai_tensor_view want = *view;
    want.rank = rank;
    for (int32_t i = 0; i < rank; i++)
        want.shape[i] = shape[i];
    char want_text[160];
    return mobai_say(message, "tensor '%s' has the shape %s, must be %s (-1: free)", name,
                     mobai_shape_text(view, text, sizeof text), mobai_shape_text(&want, want_text, sizeof want_text));
}

/** Takes a number from the file, unless the text gave another. */
static bool agree(mobai_bench_problem *problem, uint32_t given, const char *what, int64_t have, int64_t want,
                  mobai_message *message) {
    if ((problem->given & given) && have != want) {
        return mobai_say(message, "%s is %" PRId64 " in the problem, but %" PRId64 " in the file", what, have, want);
    }
    problem->given |= given;
    return true;
}

/** Differences of a cu_seqlens tensor, which must ascend from 0 to at most `total`. */
static bool load_lengths(const mobai_safetensors *file, const char *name, const mobai_tensor_view *view, int64_t total,
                         int64_t **lengths, int64_t *batch, int64_t *longest, mobai_message *message) {
    const int64_t free_shape[1] = {-1};
    if (!check_view(name, view, true, 1, free_shape, message)) return false;
    const int64_t n = view->shape[0] - 1;
    if (n < 1) return mobai_say(message, "tensor '%s' has %" PRId64 " entries, must have at least 2", name, n + 1);
    void *data = NULL;
    if (!mobai_tensor_load(mobai_safetensors_fd(file), view, MOBAI_ELEMENT_I32, &data, message)) return false;
    const int32_t *cu = data;
    bool good = cu[0] == 0 || mobai_say(message, "%s[0] is %" PRId32 ", must be 0", name, cu[0]);
    *lengths = malloc((size_t)n * sizeof **lengths);
    if (good && *lengths == NULL) good = mobai_say_memory(message, "out of memory for %" PRId64 " lengths", n);
    for (int64_t b = 0; good && b < n; b++) {
        (*lengths)[b] = (int64_t)cu[b + 1] - cu[b];
        if ((*lengths)[b] < 0) {
            good = mobai_say(message, "%s descends from %" PRId32 " to %" PRId32 " at entry %" PRId64, name, cu[b],
                             cu[b + 1], b + 1);
        } else if ((*lengths)[b] > *longest) {
            *longest = (*lengths)[b];
        }
    }
    if (good && cu[n] != total) {
        good = mobai_say(message, "%s ends at %" PRId32 ", but the tensor has %" PRId64 " rows", name, cu[n], total);
    }
    free(data);
    *batch = n;
    return good;
}

/** The problem's shape from the file. */
static bool take_shape(const mobai_safetensors *file, const mobai_tensor_view *q, const mobai_tensor_view *k,
                       mobai_bench_problem *problem, mobai_message *message) {
    mobai_tensor_view cu_q, cu_k;
    bool has_q = false, has_k = false;
    if (!find(file, "cu_seqlens_q", false, &cu_q, &has_q, message)) return false;
    if (!find(file, "cu_seqlens_k", false, &cu_k, &has_k, message)) return false;
    if (has_q != has_k) return mobai_say(message, "has only one of cu_seqlens_q and cu_seqlens_k");
    if (problem->given & MOBAI_GIVEN_LENS)
        return mobai_say(message, "gives the lengths; leave lens out of the problem");
    if (q->shape[1] > INT32_MAX || k->shape[1] > INT32_MAX || q->shape[2] > INT32_MAX || q->shape[0] > INT32_MAX ||
        k->shape[0] > INT32_MAX) {
        return mobai_say(message, "has a tensor with an extent above %d", INT32_MAX);
    }
    int64_t batch = 1, seqlen_q = q->shape[0], seqlen_k = k->shape[0];
    if (has_q) {
        int64_t batch_k = 0;
        seqlen_q = seqlen_k = 0;
        if (!load_lengths(file, "cu_seqlens_q", &cu_q, q->shape[0], &problem->lens_q, &batch, &seqlen_q, message) ||
            !load_lengths(file, "cu_seqlens_k", &cu_k, k->shape[0], &problem->lens_k, &batch_k, &seqlen_k, message)) {
            return false;
        }
        if (batch != batch_k) {
            return mobai_say(message, "has cu_seqlens_q for %" PRId64 " sequences, but cu_seqlens_k for %" PRId64,
                             batch, batch_k);
        }
        problem->given |= MOBAI_GIVEN_LENS;
    }
    if (!agree(problem, MOBAI_GIVEN_BATCH, "b", problem->batch, batch, message) ||
        !agree(problem, MOBAI_GIVEN_Q, "q", problem->seqlen_q, seqlen_q, message) ||
        !agree(problem, MOBAI_GIVEN_K, "k", problem->seqlen_k, seqlen_k, message) ||
        !agree(problem, MOBAI_GIVEN_Q_HEADS, "h", problem->n_q_heads, q->shape[1], message) ||
        !agree(problem, MOBAI_GIVEN_KV_HEADS, "g", problem->n_kv_heads, k->shape[1], message) ||
        !agree(problem, MOBAI_GIVEN_HEAD_DIM, "d", problem->head_dim, q->shape[2], message)) {
        return false;
    }
    problem->batch = batch;
    problem->seqlen_q = seqlen_q;
    problem->seqlen_k = seqlen_k;
    problem->n_q_heads = (int32_t)q->shape[1];
    problem->n_kv_heads = (int32_t)k->shape[1];
    problem->head_dim = (int32_t)q->shape[2];
    if (!(problem->given & MOBAI_GIVEN_DTYPE)) problem->dtype = (moba_dtype)q->element;
    problem->given |= MOBAI_GIVEN_DTYPE;
    return true;
}

static bool load_open(const mobai_safetensors *file, mobai_bench_problem *problem, uint64_t seed,
                      mobai_bench_inputs *out, mobai_message *message) {
    const int fd = mobai_safetensors_fd(file);
    const int64_t free_shape[3] = {-1, -1, -1};
    mobai_tensor_view q, k, v, extra;
    bool found = false;
    if (!find(file, "q", true, &q, &found, message) || !find(file, "k", true, &k, &found, message) ||
        !find(file, "v", true, &v, &found, message)) {
        return false;
    }
    if (!check_view("q", &q, false, 3, free_shape, message)) return false;
    const int64_t k_shape[3] = {-1, -1, q.shape[2]};
    if (!check_view("k", &k, false, 3, k_shape, message)) return false;
    if (!check_view("v", &v, false, 3, k.shape, message)) return false;
    if (!take_shape(file, &q, &k, problem, message)) return false;
    const mobai_element element = (mobai_element)problem->dtype;
    if (!make_cu(problem, out, message)) return false;
    if (!mobai_tensor_load(fd, &q, element, &out->q, message) ||
        !mobai_tensor_load(fd, &k, element, &out->k, message) ||
        !mobai_tensor_load(fd, &v, element, &out->v, message)) {
        return false;
    }
    if (!find(file, "do", false, &extra, &found, message)) return false;
    if (found && (!check_view("do", &extra, false, 3, q.shape, message) ||
                  !mobai_tensor_load(fd, &extra, element, &out->dout, message))) {
        return false;
    }
    if (problem->kconv_width > 0) {
        const int64_t shape[3] = {problem->n_kv_heads, problem->head_dim, problem->kconv_width};
        if (!find(file, "kconv_weight", false, &extra, &found, message)) return false;
        if (found && (!check_view("kconv_weight", &extra, false, 3, shape, message) ||
                      !mobai_tensor_load(fd, &extra, element, &out->kconv_weight, message))) {
            return false;
        }
    }
    return fill_missing(problem, seed, out, message);
}

bool mobai_inputs_load(const char *path, mobai_bench_problem *problem, uint64_t seed, mobai_bench_inputs *out,
                       mobai_message *message) {
    *out = (mobai_bench_inputs){0};
    mobai_safetensors *file = mobai_safetensors_open(path, message);
    if (file == NULL) return false;
    const bool good = load_open(file, problem, seed, out, message);
    mobai_safetensors_close(file);
    if (!good) mobai_inputs_free(out);
    return good;
}
