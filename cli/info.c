/* SPDX-License-Identifier: Apache-2.0
 *
 * `moba info`: every backend of this version, its devices, and the reason where it cannot be used.
 */
#include <argp.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/progress.h"

static const struct argp_option options[] = {{"json", 'j', NULL, 0, "Print one JSON object", 0}, {0}};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    bool *json = state->input;
    if (key == 'j') {
        *json = true;
    } else if (key == ARGP_KEY_ARG) {
        argp_error(state, "unexpected argument '%s'", argument);
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static void print_device(int32_t index, const moba_device_description *device) {
    printf("  device %d: %s%s\n", index, device->name, device->is_software ? " (software: used only when named)" : "");
    printf("    driver        %s\n", device->driver[0] ? device->driver : "none");
    printf("    memory        %.1f GiB\n", (double)device->memory_bytes / (1024.0 * 1024.0 * 1024.0));
    if (device->n_compute_units > 0)
        printf("    compute units %d\n", device->n_compute_units);
    else
        printf("    compute units not told by the driver\n");
    printf("    capabilities  %s\n", device->capabilities[0] ? device->capabilities : "none");
}

static json_t *split_words(const char *text) {
    json_t *words = json_array();
    for (const char *at = text + strspn(text, " "); *at != '\0'; at += strspn(at, " ")) {
        size_t length = strcspn(at, " ");
        json_array_append_new(words, json_stringn_nocheck(at, length));
        at += length;
    }
    return words;
}

/** Driver strings are not always UTF-8; JSON must be. */
static json_t *text_or_printable(const char *text, size_t capacity) {
    json_t *value = json_string(text);
    if (value != NULL) return value;
    char shown[256];
    return json_string(mobai_printable(shown, sizeof shown, text, strnlen(text, capacity)));
}

static json_t *device_json(int32_t index, const moba_device_description *device) {
    return json_pack("{s:i, s:o, s:o, s:I, s:i, s:b, s:o}", "index", index, "name",
                     text_or_printable(device->name, sizeof device->name), "driver",
                     text_or_printable(device->driver, sizeof device->driver), "memory_bytes",
                     (json_int_t)device->memory_bytes, "n_compute_units", device->n_compute_units, "software",
                     device->is_software, "capabilities", split_words(device->capabilities));
}

/** Prints one backend, or appends it to `list` when that is not NULL. */
static int show_backend(int32_t index, json_t *list) {
    moba_backend_description backend = MOBA_BACKEND_DESCRIPTION_INIT;
    mobai_progress("looking for devices");
    moba_status status = moba_backend_info(index, &backend);
    mobai_progress_end();
    if (status != MOBA_OK) return mobai_cli_fail(status);
    json_t *devices = list ? json_array() : NULL;
    if (list == NULL) {
        printf("%s: %s\n", backend.name, backend.usable ? "usable" : backend.reason);
    }
    for (int32_t i = 0; i < backend.n_devices; i++) {
        moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
        status = moba_device_info(index, i, &device);
        if (status != MOBA_OK) {
            json_decref(devices);
            return mobai_cli_fail(status);
        }
        if (list != NULL) {
            json_array_append_new(devices, device_json(i, &device));
        } else {
            print_device(i, &device);
        }
    }
    if (list != NULL) {
        json_array_append_new(list,
                              json_pack("{s:s, s:b, s:b, s:o, s:o}", "name", backend.name, "built", backend.built,
                                        "usable", backend.usable, "reason",
                                        text_or_printable(backend.reason, sizeof backend.reason), "devices", devices));
    }
    return MOBAI_EXIT_OK;
}

int mobai_cli_info(int argc, char **argv) {
    static const struct argp argp = {
        options, parse_option,
        NULL,    "Shows the backends of this build, their devices and capabilities, and why a backend cannot be used.",
        NULL,    NULL,
        NULL};
    bool json = false;
    int parsed = mobai_cli_options(&argp, argc, argv, &json);
    if (parsed != MOBAI_EXIT_OK) return parsed;

    json_t *list = json ? json_array() : NULL;
    if (!json) printf("libmoba %s\n", moba_version());
    for (int32_t i = 0; i < moba_backend_count(); i++) {
        int exit_code = show_backend(i, list);
        if (exit_code != MOBAI_EXIT_OK) {
            json_decref(list);
            return exit_code;
        }
    }
    if (!json) return MOBAI_EXIT_OK;
    return mobai_cli_print_json(json_pack("{s:s, s:o}", "version", moba_version(), "backends", list), true);
}
