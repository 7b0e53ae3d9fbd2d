/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of `moba compare` on a terminal.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/compare.h"

static const char *printable(char *out, size_t capacity, const char *text) {
    return mobai_printable(out, capacity, text, strlen(text));
}

static void print_series(const mobai_comparison *comparison) {
    char text[160], number[32];
    for (size_t i = 0; i < comparison->n_series; i++) {
        const mobai_series *series = &comparison->series[i];
        const mobai_measurement *m = &series->first;
        printf("%s: %s", series->label, printable(text, sizeof text, m->device));
        printf(", %s", printable(text, sizeof text, m->driver));
        printf(", moba %s", printable(text, sizeof text, m->version));
        if (m->threads > 0) printf(", %" PRId64 " threads or compute units", m->threads); /* 0: the driver tells none */
        printf(", %s", printable(text, sizeof text, m->file));
        if (!isnan(series->copy_gbytes)) printf(", copies %s GB/s", mobai_number_text(series->copy_gbytes, number));
        if (!isnan(series->matrix_tflops)) {
            printf(", matrix products %s TFLOP/s", mobai_number_text(series->matrix_tflops, number));
        }
        putchar('\n');
    }
}

static void print_row(const mobai_comparison *comparison, const mobai_measurement *m) {
    char a[32], b[32], c[32], d[32];
    printf("  %-5s %-14s %10s %10s %10s", mobai_pass_name(m->pass), comparison->series[m->series].label,
           mobai_number_text(m->median_ms, a), mobai_number_text(m->min_ms, b), mobai_number_text(m->p90_ms, c));
    printf(" %9s %7s %7s", mobai_number_text(m->useful_tflops, a),
           mobai_percent_text(mobai_share_of_copy(comparison, m), b),
           mobai_percent_text(mobai_share_of_matrix(comparison, m), c));
    if (comparison->base != NULL) printf(" %8s", mobai_number_text(m->speed_up, a));
    printf(" %9s %9s %10s%s\n", mobai_number_text(m->max_err, a), mobai_number_text(m->rel_err, b),
           mobai_number_text((m->workspace_bytes + m->saved_bytes) / (1 << 20), d),
           m->verified ? "" : "  NOT VERIFIED");
}

void mobai_compare_print(const mobai_comparison *comparison) {
    char text[200];
    print_series(comparison);
    printf("\n  %-5s %-14s %10s %10s %10s %9s %7s %7s", "pass", "measured", "median ms", "min ms", "p90 ms", "TFLOP/s",
           "copy", "matrix");
    if (comparison->base != NULL) printf(" %8s", "x base");
    printf(" %9s %9s %10s\n", "max error", "rel error", "memory MiB");
    size_t n_unverified = 0;
    for (size_t i = 0; i < comparison->n; i++) {
        const mobai_measurement *m = &comparison->at[i];
        if (i == 0 || strcmp(m->text, comparison->at[i - 1].text) != 0) {
            printf("%s\n", printable(text, sizeof text, m->text));
        }
        print_row(comparison, m);
        n_unverified += !m->verified;
    }
    printf("\nTFLOP/s: useful operations only, those on selected query-key pairs. copy: GB that must cross memory at "
           "least once,\na second, as a share of the device's measured copy bandwidth. matrix: TFLOP/s as a share of "
           "its measured rate of matrix\nproducts (- : the lines carry no rate; `moba bench --rates` adds it). errors: "
           "against float64. memory: workspace and\nwhat the forward saves for the backward.\n");
    if (comparison->base != NULL) {
        printf(
            "x base: times as fast as %s in the median (above 1: faster; - : not measured there, or several times).\n",
            printable(text, sizeof text, comparison->base));
    }
    if (n_unverified > 0) {
        printf("NOT VERIFIED: the outputs did not match float64; such times mean nothing (%zu of %zu lines).\n",
               n_unverified, comparison->n);
    }
}
