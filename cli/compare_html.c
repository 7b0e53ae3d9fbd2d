/* SPDX-License-Identifier: Apache-2.0
 *
 * The page of `moba compare --html`: no script, no reference to anything outside, the plots as data URIs.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/compare.h"
#include "cli/output.h"

/** A page of more plots than this cannot be read; the table still holds every measurement. */
enum { MAX_PLOTTED_SHAPES = 24 };

typedef struct page {
    FILE *out;
    const mobai_comparison *comparison;
    mobai_point *points; /* as many as there are measurements */
} page;

/** Text as HTML text or attribute value. */
static void put_text(FILE *out, const char *text) {
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        case '\'':
            fputs("&#39;", out);
            break;
        default:
            fputc((unsigned char)*text < ' ' || *text == 127 ? ' ' : *text, out);
        }
    }
}

/** A file name may be no UTF-8; then its bytes outside ASCII become '?'. */
static void put_path(FILE *out, const char *path) {
    char shown[400];
    json_t *checked = json_string(path);
    put_text(out, checked != NULL ? path : mobai_printable(shown, sizeof shown, path, strlen(path)));
    json_decref(checked);
}

static void put_base64(FILE *out, const char *data, size_t length) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < length; i += 3) {
        uint32_t three = (uint32_t)(uint8_t)data[i] << 16;
        if (i + 1 < length) three |= (uint32_t)(uint8_t)data[i + 1] << 8;
        if (i + 2 < length) three |= (uint8_t)data[i + 2];
        fputc(digits[three >> 18], out);
        fputc(digits[three >> 12 & 63], out);
        fputc(i + 1 < length ? digits[three >> 6 & 63] : '=', out);
        fputc(i + 2 < length ? digits[three & 63] : '=', out);
    }
}

/* ------------------------------------------------------------------------------------------------ texts -- */

static const char *pass_meaning(mobai_pass pass) {
    return pass == MOBAI_PASS_FWD   ? "forward"
           : pass == MOBAI_PASS_BWD ? "backward (gradients)"
                                    : "routing (choice of blocks)";
}

static void put_head(FILE *out) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width\">\n<title>Measurements of block attention</title>\n"
          "<style>\n"
          "body { font: 16px/1.5 sans-serif; color: #111; background: #fff; max-width: 84rem; margin: 2rem auto; "
          "padding: 0 1rem; }\n"
          "h2 { border-bottom: 1px solid #bbb; margin-top: 2.5rem; }\n"
          "p, li { max-width: 50rem; }\n"
          "table { border-collapse: collapse; }\n"
          "th, td { border-bottom: 1px solid #ddd; padding: .15rem .6rem; text-align: left; vertical-align: top; }\n"
          "td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }\n"
          "tr.problem th { padding-top: .9rem; font-family: monospace; overflow-wrap: anywhere; }\n"
          "tr.bad td { background: #fde0dc; }\n"
          ".wide { overflow-x: auto; }\n"
          ".plots { display: flex; flex-wrap: wrap; gap: 1rem; }\n"
          ".plots img { width: 40rem; max-width: 100%; border: 1px solid #ddd; }\n"
          "</style>\n</head>\n<body>\n",
          out);
}

static void put_explanation(const page *page) {
    const mobai_comparison *comparison = page->comparison;
    FILE *out = page->out;
    size_t n_unverified = 0;
    for (size_t i = 0; i < comparison->n; i++)
        n_unverified += !comparison->at[i].verified;
    fputs("<h1>Measurements of block attention</h1>\n"
          "<p>Mixture-of-Block-Attention splits the keys of a sequence into blocks. Each query row scores the mean "
          "of every block, keeps the best few (top_k) and attends only to the keys in them. <code>moba bench</code> "
          "of libmoba timed this on the devices below; <code>moba compare</code> of libmoba ",
          out);
    put_text(out, moba_version());
    fprintf(out, " made this page of %zu measurements.</p>\n", comparison->n);
    if (n_unverified > 0) {
        fprintf(
            out,
            "<p><strong>%zu of them %s not verified:</strong> the outputs did not match a float64 computation. Such "
            "times mean nothing; they are marked in the table and in no plot.</p>\n",
            n_unverified, n_unverified == 1 ? "is" : "are");
    } else {
        fprintf(out, "<p>Every one is verified: the outputs of a timed run match a float64 computation.</p>\n");
    }
    fputs(
        "<h2>How to read it</h2>\n<ul>\n"
        "<li><b>Time</b> is in milliseconds (ms), the median of the timed runs; least and p90 (nine of ten runs are "
        "as fast) are in the table. Less is better.</li>\n"
        "<li><b>TFLOP/s</b> counts useful operations only, in 10<sup>12</sup> a second: with head_dim d, 4 d for each "
        "selected query-key pair forward, 10 d backward, and 2 d for each scored block in routing. More is "
        "better.</li>\n"
        "<li><b>Memory</b> is what the library needs besides the tensors of the caller: workspace, and what the "
        "forward "
        "saves for the backward. MiB are 2<sup>20</sup> bytes.</li>\n"
        "<li><b>Copy</b> and <b>matrix</b> tell how near a measurement is to what its device can do: the GB that must "
        "cross memory at least once, a second, as a share of the measured copy bandwidth; and TFLOP/s as a share of "
        "the measured rate of matrix products. A dash: the rate was not measured.</li>\n",
        out);
    if (comparison->base != NULL) {
        fputs("<li><b>x base</b>: times as fast as <code>", out);
        put_path(out, comparison->base);
        fputs("</code>, by the medians. Above 1 is faster. A dash: the base has no verified measurement of this, or "
              "several.</li>\n",
              out);
    }
    fputs(
        "<li><b>Errors</b> are differences from float64 of the checked outputs: the largest one, and relative to "
        "their size. For routing the largest regret: how much better a block left out could have scored.</li>\n"
        "<li><b>Passes</b>: route chooses the blocks, fwd is the whole forward with that choice, bwd gives the "
        "gradients.</li>\n"
        "<li><b>Problems</b> such as <code>b2q8192k8192h16g16d128B128t8c,bf16</code>: b sequences, q query rows and k "
        "keys in each, h query heads, g key-value heads, d head_dim, B block_size, t top_k, c causal or n not, "
        "then the type and options.</li>\n</ul>\n",
        out);
}

static void put_cell(FILE *out, const char *text) { fprintf(out, "<td class=\"n\">%s</td>", text); }

static void put_series(const page *page) {
    FILE *out = page->out;
    char number[32];
    fputs("<h2>What was measured on</h2>\n<div class=\"wide\"><table>\n<tr><th>name here</th><th>device</th>"
          "<th>driver</th><th>libmoba</th><th class=\"n\">threads or<br>compute units</th>"
          "<th class=\"n\">copy bandwidth<br>GB/s</th><th class=\"n\">matrix products<br>TFLOP/s</th>"
          "<th class=\"n\">not verified</th><th>file</th></tr>\n",
          out);
    for (size_t i = 0; i < page->comparison->n_series; i++) {
        const mobai_series *series = &page->comparison->series[i];
        const char *const texts[] = {series->label, series->first.device, series->first.driver, series->first.version};
        fputs("<tr>", out);
        for (size_t t = 0; t < sizeof texts / sizeof texts[0]; t++) {
            fputs("<td>", out);
            put_text(out, texts[t]);
            fputs("</td>", out);
        }
        const int64_t units = series->first.threads;
        put_cell(out, mobai_number_text(units > 0 ? (double)units : NAN, number)); /* 0: the driver tells none */
        put_cell(out, mobai_number_text(series->copy_gbytes, number));
        put_cell(out, mobai_number_text(series->matrix_tflops, number));
        fprintf(out, "<td class=\"n\">%zu</td><td>", series->n_unverified);
        put_path(out, series->first.file);
        fputs("</td></tr>\n", out);
    }
    fputs("</table></div>\n", out);
}

/** "2 sequences of N tokens, 16 query and 16 key-value heads, ..." */
static void put_shape(FILE *out, const mobai_measurement *m) {
    const mobai_bench_problem *p = &m->problem;
    if (p->seqlen_q == p->seqlen_k) {
        fprintf(out, "%" PRId64 " sequence%s of N tokens", p->batch, p->batch == 1 ? "" : "s");
    } else {
        fprintf(out, "%" PRId64 " sequence%s of N keys and %" PRId64 " query rows", p->batch, p->batch == 1 ? "" : "s",
                p->seqlen_q);
    }
    fprintf(out, ", %" PRId32 " query heads, %" PRId32 " key-value heads, head_dim %" PRId32 ", ", p->n_q_heads,
            p->n_kv_heads, p->head_dim);
    if (p->dense) {
        fputs("dense (every block)", out);
    } else {
        fprintf(out, "blocks of %" PRId32 " keys, top_k %" PRId32, p->block_size, p->top_k);
    }
    fprintf(out, ", %s, %s", p->causal ? "causal" : "not causal", mobai_dtype_name(p->dtype));
}

/* ------------------------------------------------------------------------------------------------ plots -- */

typedef enum quantity { QUANTITY_TIME, QUANTITY_RATE, QUANTITY_MEMORY } quantity;

static double value_of(const mobai_measurement *m, quantity what) {
    return what == QUANTITY_TIME   ? m->median_ms
           : what == QUANTITY_RATE ? m->useful_tflops
                                   : (m->workspace_bytes + m->saved_bytes) / (1 << 20);
}

/** One point for each series and length: the least time, the best rate, the most memory of any pass. */
static size_t collect_points(const page *page, size_t begin, size_t end, mobai_pass pass, quantity what) {
    size_t n = 0;
    for (size_t i = begin; i < end; i++) {
        const mobai_measurement *m = &page->comparison->at[i];
        const double value = value_of(m, what);
        if (!m->verified || (what != QUANTITY_MEMORY && m->pass != pass) || !(value > 0.0)) continue;
        size_t p = n;
        while (p > 0 && page->points[p - 1].length == m->problem.seqlen_k && page->points[p - 1].series != m->series)
            p--;
        if (p > 0 && page->points[p - 1].length == m->problem.seqlen_k) {
            const bool better = (value < page->points[p - 1].value) == (what == QUANTITY_TIME);
            if (better) page->points[p - 1].value = value;
        } else {
            page->points[n++] = (mobai_point){m->series, m->problem.seqlen_k, value};
        }
    }
    return n;
}

static bool put_plot(const page *page, size_t begin, size_t end, mobai_pass pass, quantity what,
                     mobai_message *message) {
    static const char *const names[] = {"time", "useful operations", "memory beyond the tensors"};
    static const char *const units[] = {"ms (less is better)", "TFLOP/s (more is better)", "MiB (less is better)"};
    const size_t n = collect_points(page, begin, end, pass, what);
    if (n == 0) return true;
    char title[96];
    const bool several = page->points[0].length != page->points[n - 1].length;
    snprintf(title, sizeof title, "%s%s%s", what == QUANTITY_MEMORY ? "" : pass_meaning(pass),
             what == QUANTITY_MEMORY ? "" : ": ", names[what]);
    const mobai_plot plot = {.title = title,
                             .unit = units[what],
                             .points = page->points,
                             .n_points = n,
                             .logarithmic = several && what != QUANTITY_RATE};
    size_t length = 0;
    char *svg = mobai_plot_svg(page->comparison, &plot, &length, message);
    if (svg == NULL) return false;
    fprintf(page->out, "<img alt=\"%s against N; the figures are in the table below\" src=\"data:image/svg+xml;base64,",
            title);
    put_base64(page->out, svg, length);
    fputs("\">\n", page->out);
    free(svg);
    return true;
}

static bool put_family(const page *page, size_t begin, size_t end, mobai_message *message) {
    static const mobai_pass order[] = {MOBAI_PASS_FWD, MOBAI_PASS_BWD, MOBAI_PASS_ROUTE};
    fputs("<h3>", page->out);
    put_shape(page->out, &page->comparison->at[begin]);
    fprintf(page->out, "</h3>\n<p><code>%s</code></p>\n<div class=\"plots\">\n", page->comparison->at[begin].family);
    bool good = true;
    for (size_t p = 0; good && p < 3; p++) {
        good = put_plot(page, begin, end, order[p], QUANTITY_TIME, message) &&
               put_plot(page, begin, end, order[p], QUANTITY_RATE, message);
    }
    good = good && put_plot(page, begin, end, MOBAI_PASS_FWD, QUANTITY_MEMORY, message);
    fputs("</div>\n", page->out);
    return good;
}

static bool put_plots(const page *page, mobai_message *message) {
    const mobai_comparison *comparison = page->comparison;
    size_t n_plotted = 0, n_left_out = 0;
    fputs("<h2>Plots</h2>\n<p>N is the length of a sequence. In plots of time and memory both axes are logarithmic "
          "where there are several lengths: on such a line, a slope of one means that twice the tokens take twice the "
          "time or memory. Bars start at 0. Of repeated measurements the best is shown. Only verified measurements "
          "are plotted.</p>\n",
          page->out);
    for (size_t begin = 0, end; begin < comparison->n; begin = end) {
        const char *family = comparison->at[begin].family;
        bool verified = comparison->at[begin].verified;
        for (end = begin + 1; end < comparison->n; end++) {
            const char *other = comparison->at[end].family;
            if (family == NULL || other == NULL || strcmp(family, other) != 0) break;
            verified = verified || comparison->at[end].verified;
        }
        if (family == NULL || !verified) continue;
        if (n_plotted == MAX_PLOTTED_SHAPES) {
            n_left_out++;
            continue;
        }
        n_plotted++;
        if (!put_family(page, begin, end, message)) return false;
    }
    if (n_plotted == 0) {
        fputs("<p>There is no verified measurement of sequences of equal length, so there is no plot.</p>\n",
              page->out);
    } else if (n_left_out > 0) {
        fprintf(page->out, "<p>%zu more shapes are in the table only.</p>\n", n_left_out);
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------ table -- */

static void put_row(const page *page, const mobai_measurement *m) {
    const mobai_comparison *comparison = page->comparison;
    FILE *out = page->out;
    const double memory = (m->workspace_bytes + m->saved_bytes) / (1 << 20);
    const double before[] = {m->median_ms, m->min_ms, m->p90_ms, m->useful_tflops};
    const double after[] = {m->max_err, m->rel_err, memory};
    char text[32];
    fprintf(out, "<tr%s><td>%s</td><td>%s</td>", m->verified ? "" : " class=\"bad\"", mobai_pass_name(m->pass),
            comparison->series[m->series].label);
    for (size_t i = 0; i < sizeof before / sizeof before[0]; i++)
        put_cell(out, mobai_number_text(before[i], text));
    put_cell(out, mobai_percent_text(mobai_share_of_copy(comparison, m), text));
    put_cell(out, mobai_percent_text(mobai_share_of_matrix(comparison, m), text));
    if (comparison->base != NULL) put_cell(out, mobai_number_text(m->speed_up, text));
    for (size_t i = 0; i < sizeof after / sizeof after[0]; i++)
        put_cell(out, mobai_number_text(after[i], text));
    fprintf(out, "<td>%s</td></tr>\n", m->verified ? "yes" : "NOT VERIFIED");
}

static void put_table(const page *page) {
    const mobai_comparison *comparison = page->comparison;
    FILE *out = page->out;
    const bool has_base = comparison->base != NULL;
    fprintf(out,
            "<h2>All measurements</h2>\n<div class=\"wide\"><table>\n<tr><th>pass</th><th>measured</th>"
            "<th class=\"n\">median ms</th><th class=\"n\">least ms</th><th class=\"n\">p90 ms</th>"
            "<th class=\"n\">TFLOP/s</th><th class=\"n\">copy</th><th class=\"n\">matrix</th>%s"
            "<th class=\"n\">largest error</th><th class=\"n\">relative error</th><th class=\"n\">memory MiB</th>"
            "<th>verified</th></tr>\n",
            has_base ? "<th class=\"n\">x base</th>" : "");
    for (size_t i = 0; i < comparison->n; i++) {
        const mobai_measurement *m = &comparison->at[i];
        if (i == 0 || strcmp(m->text, comparison->at[i - 1].text) != 0) {
            fprintf(out, "<tr class=\"problem\"><th colspan=\"%d\">%s</th></tr>\n", has_base ? 13 : 12, m->text);
        }
        put_row(page, m);
    }
    fputs("</table></div>\n", out);
}

/* ------------------------------------------------------------------------------------------------- file -- */

/** Writes into something that is not to be renamed over: a terminal, a pipe, a device, what a link leads to. */
static int write_stream(const char *path, const char *text, size_t length) {
    FILE *file = fopen(path, "w");
    if (file == NULL) return mobai_cli_error(MOBAI_EXIT_USAGE, "%s cannot be written: %s", path, strerror(errno));
    bool good = fwrite(text, 1, length, file) == length;
    int error = errno;
    if (fclose(file) != 0 && good) {
        good = false;
        error = errno;
    }
    return good ? MOBAI_EXIT_OK : mobai_cli_error(MOBAI_EXIT_USAGE, "%s cannot be written: %s", path, strerror(error));
}

/** An earlier page stays until the new one is complete. */
static int write_file(const char *path, const char *text, size_t length) {
    struct stat status;
    if (lstat(path, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))
        return write_stream(path, text, length);
    mobai_message message;
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? strdup(".") : slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    if (folder == NULL) return mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory");
    int file = mobai_output_create(folder, slash == NULL ? path : slash + 1, &message);
    bool good = file >= 0 && mobai_output_write(file, text, length, &message) && mobai_output_commit(&message);
    mobai_output_discard();
    free(folder);
    return good ? MOBAI_EXIT_OK : mobai_cli_error(message.exit_code, "%s", message.text);
}

int mobai_compare_html(const mobai_comparison *comparison, const char *path) {
    char *text = NULL;
    size_t length = 0;
    mobai_message message;
    page page = {.comparison = comparison};
    page.points = malloc((comparison->n > 0 ? comparison->n : 1) * sizeof *page.points);
    page.out = open_memstream(&text, &length);
    int exit_code = MOBAI_EXIT_OK;
    if (page.points == NULL || page.out == NULL) {
        exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory");
    } else {
        put_head(page.out);
        put_explanation(&page);
        put_series(&page);
        if (!put_plots(&page, &message)) exit_code = mobai_cli_error(message.exit_code, "%s", message.text);
        put_table(&page);
        fputs("</body>\n</html>\n", page.out);
    }
    free(page.points);
    if (page.out != NULL && fclose(page.out) != 0 && exit_code == MOBAI_EXIT_OK) {
        exit_code = mobai_cli_error(MOBAI_EXIT_FAILED, "out of memory for the page");
    }
    if (exit_code == MOBAI_EXIT_OK) exit_code = write_file(path, text, length);
    free(text);
    return exit_code;
}
