/* SPDX-License-Identifier: Apache-2.0
 *
 * Measurements of `moba bench`, read from JSON lines and joined for `moba compare`.
 */
#ifndef MOBAI_COMPARE_H
#define MOBAI_COMPARE_H

#include <stdio.h>

#include "cli/problem_string.h"
#include "cli/verify.h"

/** One JSON line. Strings are UTF-8 as the line gave them; numbers that it left out or gave as null are NaN. */
typedef struct mobai_measurement {
    json_t *json; /* owner of the strings below */
    const char *device, *driver, *version, *backend;
    mobai_pass pass;
    mobai_bench_problem problem;
    char *text;       /* canonical problem string */
    char *family;     /* `text` with its length written as N; NULL when lengths are listed one by one */
    const char *file; /* the caller's, or "" */
    int64_t line, threads, seed, repeat;
    double min_ms, median_ms, p90_ms;
    double useful_tflops, gbytes; /* rate; GB that must cross memory at least once */
    double workspace_bytes, saved_bytes;
    double max_err, rel_err;
    double copy_gbytes, matrix_tflops; /* measured rates of the device, a second */
    bool verified;
    size_t series;   /* index in mobai_comparison.series */
    double speed_up; /* times as fast as the base; NaN without one */
} mobai_measurement;

/** Reads one line. False with a sentence; then nothing is to be freed. */
bool mobai_measurement_parse(const char *text, size_t length, mobai_measurement *out, mobai_message *message);
void mobai_measurement_free(mobai_measurement *measurement);

/** Runs of one backend on one device by one version with as many threads, from one file. */
typedef struct mobai_series {
    mobai_measurement first;           /* for what its measurements share; a copy that owns nothing */
    char label[40];                    /* "[1] cuda": printable, and without characters special to HTML or gnuplot */
    double copy_gbytes, matrix_tflops; /* of the first line that has them */
    size_t n_unverified;
} mobai_series;

typedef struct mobai_comparison {
    mobai_measurement *at; /* sorted: family, length, problem, pass, series */
    size_t n, capacity;
    mobai_series *series; /* in the order of the files and lines */
    size_t n_series;
    const char *base; /* NULL: none */
} mobai_comparison;

/** Appends the lines of FILE ("-": standard input). Returns an exit code, having said what failed. `path` is kept. */
int mobai_comparison_read(mobai_comparison *comparison, const char *path);

/** Once all is read: sorts, makes the series and, with `base` (a backend or a file that was read), the ratios. */
int mobai_comparison_join(mobai_comparison *comparison, const char *base);
void mobai_comparison_free(mobai_comparison *comparison);

/** Share of the device's measured rates in 0..1 or a little above; NaN when unknown. */
double mobai_share_of_copy(const mobai_comparison *comparison, const mobai_measurement *measurement);
double mobai_share_of_matrix(const mobai_comparison *comparison, const mobai_measurement *measurement);

/** "12.3" with three digits; "-" for NaN. */
const char *mobai_number_text(double value, char out[32]);
/** "45 %"; "-" for NaN. */
const char *mobai_percent_text(double share, char out[32]);

/** The table, on stdout. */
void mobai_compare_print(const mobai_comparison *comparison);

/** Writes the page to `path`. Returns an exit code, having said what failed; then the file is as it was. */
int mobai_compare_html(const mobai_comparison *comparison, const char *path);

/** A value to plot against the length, of one series. */
typedef struct mobai_point {
    size_t series;
    int64_t length;
    double value;
} mobai_point;

/** `points` are sorted by length. `logarithmic`: lines on two logarithmic axes; else bars from 0. */
typedef struct mobai_plot {
    const char *title; /* of no characters but letters, digits, blanks and .,=+-()/: */
    const char *unit;  /* label of the vertical axis */
    const mobai_point *points;
    size_t n_points;
    bool logarithmic;
} mobai_plot;

/** Draws as SVG with gnuplot. NULL with a sentence; free the text with free(). */
char *mobai_plot_svg(const mobai_comparison *comparison, const mobai_plot *plot, size_t *length,
                     mobai_message *message);

#endif
