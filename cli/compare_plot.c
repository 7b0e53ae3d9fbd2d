/* SPDX-License-Identifier: Apache-2.0
 *
 * Plots as SVG, drawn by the gnuplot program: the script goes to its standard input, the picture comes from its
 * standard output, both through unnamed temporary files.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/compare.h"

extern char **environ;

/** Eight colours that differ for colour-blind readers too (Okabe and Ito), dark enough on white. */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                      "#56b4e9", "#e69f00", "#000000", "#8a8a00"};
enum { N_COLOURS = sizeof colours / sizeof colours[0] };

/** Figures above more bars than this would overlap. */
enum { MAX_LABELS = 16 };

/** More lengths than this are written at a slant. */
enum { MAX_LEVEL_TICS = 10 };

/* ---------------------------------------------------------------------------------------------- script -- */

/** "8K" for 8192, "1000" for 1000. */
static void print_length(FILE *out, int64_t length) {
    if (length >= 1024 && length % 1024 == 0) {
        fprintf(out, "%" PRId64 "K", length / 1024);
    } else {
        fprintf(out, "%" PRId64, length);
    }
}

/** Index of the length of each point among the distinct ones; `points` are sorted by length. */
static size_t next_slot(const mobai_plot *plot, size_t i, size_t slot) {
    return i > 0 && plot->points[i].length != plot->points[i - 1].length ? slot + 1 : slot;
}

static bool has_points(const mobai_plot *plot, size_t series) {
    for (size_t i = 0; i < plot->n_points; i++)
        if (plot->points[i].series == series) return true;
    return false;
}

/** Data blocks $s0, $s1...: x, value, label. Bars of one length stand side by side around its slot. */
static void write_data(FILE *out, const mobai_comparison *comparison, const mobai_plot *plot, double bar_width) {
    size_t n_present = 0, rank = 0;
    for (size_t s = 0; s < comparison->n_series; s++)
        n_present += has_points(plot, s);
    for (size_t s = 0; s < comparison->n_series; s++) {
        if (!has_points(plot, s)) continue;
        fprintf(out, "$s%zu << EOD\n", s);
        size_t slot = 0;
        for (size_t i = 0; i < plot->n_points; i++) {
            slot = next_slot(plot, i, slot);
            const mobai_point *point = &plot->points[i];
            if (point->series != s) continue;
            const double x = plot->logarithmic
                                 ? (double)point->length
                                 : (double)slot + ((double)rank - 0.5 * (double)(n_present - 1)) * bar_width;
            char value[32];
            fprintf(out, "%.9g %.9g %s\n", x, point->value, mobai_number_text(point->value, value));
        }
        fprintf(out, "EOD\n");
        rank++;
    }
}

static void write_axis(FILE *out, const mobai_plot *plot) {
    fprintf(out, "set xtics (");
    size_t slot = 0;
    for (size_t i = 0; i < plot->n_points; i++) {
        const size_t previous = slot;
        slot = next_slot(plot, i, slot);
        if (i > 0 && slot == previous) continue;
        fprintf(out, "%s'", i > 0 ? ", " : "");
        print_length(out, plot->points[i].length);
        if (plot->logarithmic) {
            fprintf(out, "' %" PRId64, plot->points[i].length);
        } else {
            fprintf(out, "' %zu", slot);
        }
    }
    fprintf(out, ")%s\n", slot < MAX_LEVEL_TICS ? "" : " rotate by -35");
    if (plot->logarithmic) {
        const double first = (double)plot->points[0].length;
        const double last = (double)plot->points[plot->n_points - 1].length;
        fprintf(out, "set logscale x 2\nset logscale y 10\nset xrange [%.9g:%.9g]\n", 0.85 * first, last / 0.85);
    } else {
        double most = 0.0;
        for (size_t i = 0; i < plot->n_points; i++)
            most = fmax(most, plot->points[i].value);
        fprintf(out, "set xrange [-0.6:%.9g]\nset yrange [0:%.9g]\n", (double)slot + 0.6,
                most > 0.0 ? 1.15 * most : 1.0);
    }
}

static void write_script(FILE *out, const mobai_comparison *comparison, const mobai_plot *plot) {
    size_t n_present = 0;
    for (size_t s = 0; s < comparison->n_series; s++)
        n_present += has_points(plot, s);
    const double bar_width = 0.8 / (double)n_present;
    fprintf(out,
            "set terminal svg size 640,400 dynamic font 'sans-serif,14' background '#ffffff'\n"
            "set title '%s' noenhanced\nset xlabel 'N, tokens of a sequence'\nset ylabel '%s' noenhanced\n"
            "set key below noenhanced\nset border 3\nset grid ytics lc rgb '#dddddd' lt 1\n"
            "set tics nomirror\n",
            plot->title, plot->unit);
    write_data(out, comparison, plot, bar_width);
    write_axis(out, plot);
    if (!plot->logarithmic) fprintf(out, "set boxwidth %.9g\nset style fill solid 1 noborder\n", 0.92 * bar_width);
    const char *separator = "plot";
    for (size_t s = 0; s < comparison->n_series; s++) {
        if (!has_points(plot, s)) continue;
        const char *colour = colours[s % N_COLOURS];
        const char *label = comparison->series[s].label;
        if (plot->logarithmic) {
            fprintf(out, "%s $s%zu using 1:2 with linespoints lw 2 pt %zu ps 0.8 lc rgb '%s' title '%s'", separator, s,
                    5 + 2 * (s % 5), colour, label);
        } else {
            fprintf(out, "%s $s%zu using 1:2 with boxes lc rgb '%s' title '%s'", separator, s, colour, label);
            if (plot->n_points <= MAX_LABELS) {
                fprintf(out, ", $s%zu using 1:2:3 with labels offset 0,0.6 font ',11' notitle", s);
            }
        }
        separator = ",";
    }
    fprintf(out, "\n");
}

/* --------------------------------------------------------------------------------------------- program -- */

/** Runs `gnuplot -d -` (-d: without anybody's start-up file). Returns errno, or -1 when it ran and failed. */
static int run_gnuplot(FILE *script, FILE *picture, FILE *complaints) {
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (error != 0) return error;
    error = posix_spawn_file_actions_adddup2(&actions, fileno(script), STDIN_FILENO);
    if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, fileno(picture), STDOUT_FILENO);
    if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, fileno(complaints), STDERR_FILENO);
    pid_t child = 0;
    char name[] = "gnuplot", defaults[] = "-d", input[] = "-";
    char *const arguments[] = {name, defaults, input, NULL};
    if (error == 0) error = posix_spawnp(&child, name, &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) return error;
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static char *read_all(FILE *file, size_t *length) {
    char *text = NULL;
    if (fseek(file, 0, SEEK_END) != 0) return NULL;
    const long size = ftell(file);
    if (size < 0 || (text = malloc((size_t)size + 1)) == NULL) return NULL;
    rewind(file);
    *length = fread(text, 1, (size_t)size, file);
    text[*length] = '\0';
    return text;
}

/** "set terminal ... line 3: ..." as one short printable line. */
static void say_complaint(FILE *complaints, mobai_message *message) {
    char text[400], shown[300];
    rewind(complaints);
    const size_t length = fread(text, 1, sizeof text, complaints);
    mobai_say(message, "gnuplot failed: %s", mobai_printable(shown, sizeof shown, text, length));
}

char *mobai_plot_svg(const mobai_comparison *comparison, const mobai_plot *plot, size_t *length,
                     mobai_message *message) {
    FILE *script = tmpfile(), *picture = tmpfile(), *complaints = tmpfile();
    char *svg = NULL;
    if (script == NULL || picture == NULL || complaints == NULL) {
        mobai_say(message, "cannot make a temporary file: %s", strerror(errno));
    } else {
        write_script(script, comparison, plot);
        if (fflush(script) != 0 || ferror(script) || fseek(script, 0, SEEK_SET) != 0) {
            mobai_say(message, "cannot write a temporary file: %s", strerror(errno));
        } else {
            const int error = run_gnuplot(script, picture, complaints);
            if (error > 0) {
                mobai_say(message, "cannot start gnuplot, which draws the plots: %s (Debian package gnuplot-nox)",
                          strerror(error));
            } else if (error < 0) {
                say_complaint(complaints, message);
            } else if ((svg = read_all(picture, length)) == NULL) {
                mobai_say(message, "cannot read the picture that gnuplot drew");
            }
        }
    }
    if (svg != NULL && (*length == 0 || strstr(svg, "</svg>") == NULL)) {
        free(svg);
        svg = NULL;
        mobai_say(message, "gnuplot drew no picture");
    }
    if (script != NULL) fclose(script);
    if (picture != NULL) fclose(picture);
    if (complaints != NULL) fclose(complaints);
    return svg;
}
