/* SPDX-License-Identifier: Apache-2.0
 *
 * The files of one run are a table, so that a signal handler can remove them.
 */
#include "cli/output.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct output_file {
    int fd;
    char aside[PATH_MAX], path[PATH_MAX];
} output_file;

static output_file files[MOBAI_MAX_OUTPUTS];
static atomic_int n_files; /* files[0..n_files) have a temporary file */

/* A signal may arrive on any thread, a backend's worker too, so blocking signals in one thread protects nothing.
 * Instead whoever changes the table says so in `changing`, and a handler that finds it set leaves the end to
 * leave_table(). */
static atomic_int changing;
static atomic_int ending; /* the signal that arrived; 0: none */

static const int end_signals[] = {SIGINT, SIGTERM, SIGHUP};
#define N_END_SIGNALS (sizeof end_signals / sizeof end_signals[0])
static struct sigaction earlier_actions[N_END_SIGNALS]; /* a driver's compiler may have installed its own */

static void remove_and_end(int number) {
    int n = atomic_load(&n_files);
    for (int i = 0; i < n; i++)
        unlink(files[i].aside);
    for (size_t i = 0; i < N_END_SIGNALS; i++) {
        if (end_signals[i] == number) sigaction(number, &earlier_actions[i], NULL);
    }
    raise(number);
}

static void handle_end(int number) {
    atomic_store(&ending, number);
    if (!atomic_load(&changing)) remove_and_end(number);
}

static void leave_table(void) {
    atomic_store(&changing, 0);
    int number = atomic_load(&ending);
    if (number != 0) remove_and_end(number);
}

static void enter_table(void) {
    atomic_store(&changing, 1);
    if (atomic_load(&ending) != 0) leave_table();
}

static void handle_signals(void) {
    static bool done;
    if (done) return;
    done = true;
    struct sigaction action = {.sa_handler = handle_end};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < N_END_SIGNALS; i++) {
        /* A signal that the caller ignores, as nohup does, stays ignored. */
        if (sigaction(end_signals[i], NULL, &earlier_actions[i]) == 0 && earlier_actions[i].sa_handler != SIG_IGN)
            sigaction(end_signals[i], &action, NULL);
    }
    signal(SIGXFSZ, SIG_IGN); /* a file size limit becomes a write error with a sentence */
}

static bool make_one(const char *path, mobai_message *message) {
    struct stat status;
    if (mkdir(path, 0777) == 0) return true;
    int error = errno;
    if (stat(path, &status) != 0) return mobai_say(message, "directory %s cannot be made: %s", path, strerror(error));
    if (!S_ISDIR(status.st_mode)) return mobai_say(message, "%s exists and is not a directory", path);
    return true;
}

bool mobai_output_directory(const char *directory, mobai_message *message) {
    char path[PATH_MAX];
    size_t length = strlen(directory);
    if (length == 0) return mobai_say(message, "the output directory has an empty name");
    if (length >= sizeof path)
        return mobai_say(message, "the output directory's name is longer than %d bytes", PATH_MAX - 1);
    memcpy(path, directory, length + 1);
    for (size_t i = 1; i < length; i++) {
        if (path[i] != '/' || path[i - 1] == '/') continue;
        path[i] = '\0';
        if (!make_one(path, message)) return false;
        path[i] = '/';
    }
    return make_one(path, message);
}

int mobai_output_create(const char *directory, const char *name, mobai_message *message) {
    handle_signals();
    if (n_files == MOBAI_MAX_OUTPUTS) {
        mobai_say(message, "more than %d output files were asked for", MOBAI_MAX_OUTPUTS);
        return -1;
    }
    output_file *file = &files[n_files];
    int path_length = snprintf(file->path, sizeof file->path, "%s/%s", directory, name);
    int aside_length = snprintf(file->aside, sizeof file->aside, "%s/.%s.XXXXXX", directory, name);
    if (path_length < 0 || aside_length < 0 || (size_t)aside_length >= sizeof file->aside) {
        mobai_say(message, "the output path of %s is longer than %d bytes", name, PATH_MAX - 1);
        return -1;
    }
    struct stat status;
    if (stat(file->path, &status) == 0 && S_ISDIR(status.st_mode)) {
        mobai_say(message, "%s cannot be written: it is a directory", file->path);
        return -1;
    }
    enter_table();
    file->fd = mkstemp(file->aside);
    int error = errno;
    if (file->fd >= 0) atomic_fetch_add(&n_files, 1);
    leave_table();
    if (file->fd < 0) {
        mobai_say(message, "%s cannot be written: %s", file->path, strerror(error));
        return -1;
    }
    mode_t mask = umask(0);
    umask(mask);
    fchmod(file->fd, 0666 & ~mask); /* mkstemp makes files that only their owner can read */
    return n_files - 1;
}

bool mobai_output_write(int number, const void *data, size_t n_bytes, mobai_message *message) {
    const output_file *file = &files[number];
    size_t done = 0;
    while (done < n_bytes) {
        ssize_t wrote = write(file->fd, (const char *)data + done, n_bytes - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return mobai_say(message, "%s cannot be written: %s", file->path, strerror(errno));
        done += (size_t)wrote;
    }
    return true;
}

static bool finish_file(output_file *file, mobai_message *message) {
    int fd = file->fd;
    file->fd = -1;
    bool synced = fsync(fd) == 0 || errno == EINVAL || errno == ENOSYS; /* some file systems have nothing to sync */
    int error = errno;
    bool closed = close(fd) == 0;
    if (synced && !closed) error = errno;
    return (synced && closed) || mobai_say(message, "%s cannot be written: %s", file->path, strerror(error));
}

bool mobai_output_commit(mobai_message *message) {
    for (int i = 0; i < n_files; i++) {
        if (!finish_file(&files[i], message)) return false;
    }
    enter_table();
    bool renamed = true;
    for (int i = 0; i < n_files && renamed; i++) {
        renamed = rename(files[i].aside, files[i].path) == 0 ||
                  mobai_say(message, "%s cannot be written: %s", files[i].path, strerror(errno));
    }
    if (renamed) atomic_store(&n_files, 0);
    leave_table();
    return renamed;
}

void mobai_output_discard(void) {
    enter_table();
    for (int i = 0; i < n_files; i++) {
        if (files[i].fd >= 0) close(files[i].fd);
        unlink(files[i].aside);
    }
    atomic_store(&n_files, 0);
    leave_table();
}
