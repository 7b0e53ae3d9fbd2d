/* SPDX-License-Identifier: Apache-2.0
 *
 * Gate and index: regret on any data, identity on exactly representable scores, exact block lists, and the whole
 * forward over the library's own selection.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

static void check_routing(const th_session *sessions, size_t n, const th_case *c) {
    th_expected *x = NULL; /* over the first session's selection */
    int32_t *selection = NULL;
    bool exact = (c->fill == TH_INTEGER || c->fill == TH_EQUAL || c->fill == TH_ZERO) && c->shape.kconv_width == 0;
    for (size_t i = 0; i < n; i++) {
        th_result route, forward;
        th_exec *e = th_open(&sessions[i], c, NULL);
        if (e == NULL) continue;
        if (th_run(e, TH_ROUTE, NULL, &route)) th_check_gate(&sessions[i], c, route.selection, exact);
        if (th_run(e, TH_FORWARD, NULL, &forward)) {
            th_check_index(&sessions[i], c, e, &forward);
            if (route.selection != NULL) th_check_same_result(&sessions[i], c, "route and forward", &route, &forward);
            size_t bytes = (size_t)th_selection_elements(c) * sizeof *selection;
            if (x == NULL) {
                x = th_expect(c, forward.selection, false);
                selection = th_allocate(bytes, 1);
                memcpy(selection, forward.selection, bytes);
            }
            if (memcmp(selection, forward.selection, bytes) == 0) th_check_forward(&sessions[i], c, x, &forward);
        }
        th_result_free(&route);
        th_result_free(&forward);
        th_close(e);
    }
    th_expected_free(x);
    free(selection);
}

static const char *const shapes[] = {
    "b1q300k300h2g1d64B16t4c,@",
    "b1q130k130h4g2d64B32t3c,@",
    "b1q100k800h8g1d128B64t3c,@",
    "b2q100k333h4g4d33B17t5c,@",
    "b1q150k150h2g1d256B32t4n,@",
    "b1q64k640h16g4d32B32t9n,@",
    "b1q200k90h2g2d64B16t3c,@",
    "b5q200k220h4g2d64B32t3c,@,lens=0+200+1+17+64/5+220+0+17+100",
    "b3q90k90h2g2d40B16t4n,@,lens=90+1+33/90+1+33;tail=9",
    "b1q50k600h2g1d16B16t40c,@",
    "b1q20k2200h1g1d16B16t128c,@",
    "b1q60k200h2g1d64B16t300c,@",
    "b1q200k200h2g1d64B16t5c,@,sink=2,local=1",
    "b1q200k200h2g1d64B16t6c,@,sink=1,local=3",
    "b1q200k200h2g1d64B16t3c,@,sink=1,local=2",
    "b1q100k200h2g1d64B16t4n,@,sink=3",
    "b4q1k700h8g2d128B64t4c,@",
    "b1q100k300h2g1d64B100t2c,@",
    "b1q100k100h3g1d1B16t3c,@",
    "b2q90k120h4g2d64B32t3c,@;layout=sliced",
    "b2q90k120h4g2d64B32t3c,@;layout=bhsd",
};

/* Runs every shape with ";fill=NAME" appended. */
static void check_fill(const char *fill) {
    const char *problems[COUNT(shapes)];
    for (size_t i = 0; i < COUNT(shapes); i++) {
        char *text = th_allocate(200, 1);
        strcat(strcat(strcat(text, shapes[i]), ";fill="), fill);
        problems[i] = text;
    }
    th_for_each(problems, COUNT(shapes), check_routing);
    for (size_t i = 0; i < COUNT(shapes); i++)
        free((void *)(uintptr_t)problems[i]);
}

Test(routing, regret) { check_fill("normal"); }
Test(routing, identity_on_exact_scores) { check_fill("integer"); }
Test(routing, identity_when_all_scores_tie) { check_fill("equal"); }
Test(routing, identity_when_all_scores_are_signed_zeros) { check_fill("zero"); }
Test(routing, huge_logits) { check_fill("huge"); }
Test(routing, zero_rows) { check_fill("zero_rows"); }
Test(routing, nan_scores_are_never_selected) { check_fill("nan_keys"); }
Test(routing, infinite_keys) { check_fill("inf_keys"); }

Test(routing, key_convolution_is_routed_on) {
    static const char *const problems[] = {
        "b1q200k200h4g2d64B16t4c,@,kconv=3",
        "b4q90k90h2g1d32B16t3c,@,kconv=5,lens=2+90+0+33/2+90+0+33;tail=3",
        "b1q50k300h2g2d128B32t3n,@,kconv=8",
    };
    th_for_each(problems, COUNT(problems), check_routing);
}
