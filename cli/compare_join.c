/* SPDX-License-Identifier: Apache-2.0
 *
 * Joins measurements: series, order, ratios to the base, shares of device rates.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/compare.h"

static bool same_series(const mobai_measurement *a, const mobai_measurement *b) {
    return strcmp(a->file, b->file) == 0 && strcmp(a->backend, b->backend) == 0 && strcmp(a->device, b->device) == 0 &&
           strcmp(a->driver, b->driver) == 0 && strcmp(a->version, b->version) == 0 && a->threads == b->threads;
}

/** Letters, digits and a few marks stay, so that the text is safe in gnuplot's quotes, in HTML and on a terminal. */
static void plain_text(char *out, size_t capacity, const char *text) {
    static const char marks[] = " .,=+-_()/:";
    size_t n = 0;
    for (; text[n] != '\0' && n + 1 < capacity; n++) {
        const char c = text[n];
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        out[n] = '?';
        if (letter || strchr(marks, c) != NULL) out[n] = c;
    }
    out[n] = '\0';
}

static bool make_series(mobai_comparison *comparison) {
    comparison->n_series = 0;
    comparison->series = calloc(comparison->n, sizeof *comparison->series);
    if (comparison->series == NULL) return false;
    for (size_t i = 0; i < comparison->n; i++) {
        mobai_measurement *m = &comparison->at[i];
        m->series = 0;
        while (m->series < comparison->n_series && !same_series(m, &comparison->series[m->series].first))
            m->series++;
        mobai_series *series = &comparison->series[m->series];
        if (m->series == comparison->n_series) {
            comparison->n_series++;
            char backend[24];
            plain_text(backend, sizeof backend, m->backend);
            *series = (mobai_series){.first = *m, .copy_gbytes = NAN, .matrix_tflops = NAN};
            snprintf(series->label, sizeof series->label, "[%zu] %s", comparison->n_series, backend);
        }
        if (isnan(series->copy_gbytes)) series->copy_gbytes = m->copy_gbytes;
        if (isnan(series->matrix_tflops)) series->matrix_tflops = m->matrix_tflops;
        series->n_unverified += !m->verified;
    }
    return true;
}

static int by_number(double a, double b) { return (a > b) - (a < b); }

static int by_problem(const void *left, const void *right) {
    const mobai_measurement *a = left, *b = right;
    int order = strcmp(a->family != NULL ? a->family : a->text, b->family != NULL ? b->family : b->text);
    if (order == 0) order = by_number((double)a->problem.seqlen_k, (double)b->problem.seqlen_k);
    if (order == 0) order = strcmp(a->text, b->text);
    /* route comes before fwd and bwd, as in a run */
    if (order == 0) order = by_number((a->pass + 1) % 3, (b->pass + 1) % 3);
    if (order == 0) order = by_number((double)a->series, (double)b->series);
    if (order == 0) order = by_number((double)a->line, (double)b->line);
    return order;
}

/* ------------------------------------------------------------------------------------------------- base -- */

/** Candidates seen so far: the fastest, and whether they come from more than one series. */
typedef struct candidates {
    const mobai_measurement *best;
    bool several;
} candidates;

static void consider(candidates *found, const mobai_measurement *m) {
    if (found->best != NULL && found->best->series != m->series) found->several = true;
    if (found->best == NULL || m->median_ms < found->best->median_ms) found->best = m;
}

static const mobai_measurement *only(const candidates *found) { return found->several ? NULL : found->best; }

/**
 * What `m` is compared with among the `n` measurements at `at`, all of its problem and pass. Base is a backend: that
 * backend's in the file of `m`, else in any file. Base is a file: that file's of the backend of `m`, else of any
 * backend. NULL when there is none, or when it is not clear which.
 */
static const mobai_measurement *find_base(const mobai_measurement *m, const mobai_measurement *at, size_t n,
                                          const char *base, bool is_backend) {
    candidates near = {NULL, false}, any = {NULL, false};
    for (size_t i = 0; i < n; i++) {
        const mobai_measurement *c = &at[i];
        if (!c->verified || strcmp(is_backend ? c->backend : c->file, base) != 0) continue;
        const bool is_near = is_backend ? strcmp(c->file, m->file) == 0 : strcmp(c->backend, m->backend) == 0;
        if (is_near) consider(&near, c);
        consider(&any, c);
    }
    return near.best != NULL ? only(&near) : only(&any);
}

static bool names_backend(const mobai_comparison *comparison, const char *base) {
    for (size_t i = 0; i < comparison->n_series; i++)
        if (strcmp(comparison->series[i].first.backend, base) == 0) return true;
    return false;
}

static bool names_file(const mobai_comparison *comparison, const char *base) {
    for (size_t i = 0; i < comparison->n_series; i++)
        if (strcmp(comparison->series[i].first.file, base) == 0) return true;
    return false;
}

static void compare_with_base(mobai_comparison *comparison, bool is_backend) {
    mobai_measurement *at = comparison->at;
    for (size_t begin = 0, end; begin < comparison->n; begin = end) {
        for (end = begin + 1; end < comparison->n; end++)
            if (strcmp(at[end].text, at[begin].text) != 0 || at[end].pass != at[begin].pass) break;
        for (size_t i = begin; i < end; i++) {
            if (!at[i].verified) continue;
            const mobai_measurement *base = find_base(&at[i], &at[begin], end - begin, comparison->base, is_backend);
            if (base != NULL) at[i].speed_up = base->median_ms / at[i].median_ms;
        }
    }
}

int mobai_comparison_join(mobai_comparison *comparison, const char *base) {
    if (!make_series(comparison)) return mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory");
    qsort(comparison->at, comparison->n, sizeof *comparison->at, by_problem);
    if (base == NULL) return MOBAI_EXIT_OK;
    comparison->base = base;
    const bool is_backend = names_backend(comparison, base);
    if (!is_backend && !names_file(comparison, base)) {
        char shown[160];
        return mobai_cli_error(MOBAI_EXIT_USAGE, "--base is '%s', must be a backend in the lines or one of the files",
                               mobai_printable(shown, sizeof shown, base, strlen(base)));
    }
    compare_with_base(comparison, is_backend);
    return MOBAI_EXIT_OK;
}

void mobai_comparison_free(mobai_comparison *comparison) {
    for (size_t i = 0; i < comparison->n; i++)
        mobai_measurement_free(&comparison->at[i]);
    free(comparison->at);
    free(comparison->series);
    *comparison = (mobai_comparison){0};
}

/* -------------------------------------------------------------------------------------------- derived -- */

double mobai_share_of_copy(const mobai_comparison *comparison, const mobai_measurement *measurement) {
    const double rate = comparison->series[measurement->series].copy_gbytes;
    return rate > 0.0 ? measurement->gbytes / (1e-3 * measurement->median_ms) / rate : NAN;
}

double mobai_share_of_matrix(const mobai_comparison *comparison, const mobai_measurement *measurement) {
    const double rate = comparison->series[measurement->series].matrix_tflops;
    return rate > 0.0 ? measurement->useful_tflops / rate : NAN;
}

const char *mobai_number_text(double value, char out[32]) {
    if (isnan(value)) {
        snprintf(out, 32, "-");
    } else if (fabs(value) >= 1000.0 && fabs(value) < 1e9) {
        snprintf(out, 32, "%.0f", value);
    } else {
        snprintf(out, 32, "%.3g", value);
    }
    return out;
}

const char *mobai_percent_text(double share, char out[32]) {
    if (isnan(share)) {
        snprintf(out, 32, "-");
    } else {
        snprintf(out, 32, share < 0.0995 ? "%.2g %%" : "%.0f %%", 100.0 * share);
    }
    return out;
}
