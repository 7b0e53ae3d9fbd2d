/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem strings: what they mean, that printing and parsing are inverse, and that every fault is named with its
 * column.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cli/problem_string.h"

static void expect_round_trip(const char *text, const char *canonical) {
    mobai_bench_problem problem, again;
    mobai_message message;
    cr_assert(mobai_problem_parse(text, false, &problem, &message), "%s: %s", text, message.text);
    char *printed = mobai_problem_print(&problem);
    cr_assert_str_eq(printed, canonical);
    cr_assert(mobai_problem_parse(printed, false, &again, &message), "%s: %s", printed, message.text);
    char *printed_again = mobai_problem_print(&again);
    cr_assert_str_eq(printed_again, canonical);
    free(printed);
    free(printed_again);
    mobai_problem_free(&problem);
    mobai_problem_free(&again);
}

Test(problem_string, round_trip) {
    const char *const same[] = {
        "b2q8192k8192h16g16d128B128t8c,bf16",
        "b1q1k400h4g2d64B32t4n,f16",
        "b1q0k0h1g1d1B16t1c,f32",
        "b2q300k300h2g2d64c,f32,dense",
        "b1q300k300h2g2d64B64t8c,f32,dense",
        "b2q8192k8192h16g4d128B128t8c,bf16,sink=1,local=2,kconv=3,det,inference",
        "b3q513k600h2g2d128B64t3c,f16,lens=513+0+129/600+5+129",
        "b1q7k7h2g2d128B64t3c,f16,lens=7",
        "b4q257k257h4g2d64B32t4c,f32,dense,det,lens=130+1+0+257",
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++)
        expect_round_trip(same[i], same[i]);
    expect_round_trip("q100h4d64B32t2c,f32", "b1q100k100h4g4d64B32t2c,f32");
    expect_round_trip("k100h4d64B32t2c,f32", "b1q100k100h4g4d64B32t2c,f32");
    expect_round_trip("t2B32d64h4q100c,local=2,f32,sink=0", "b1q100k100h4g4d64B32t2c,f32,local=2");
    expect_round_trip("h4d64B32t2n,lens=5+6/7+8,bf16", "b2q6k8h4g4d64B32t2n,bf16,lens=5+6/7+8");
    expect_round_trip("h4d64B32t2n,lens=5+6/5+6,bf16", "b2q6k6h4g4d64B32t2n,bf16,lens=5+6");
}

Test(problem_string, meaning) {
    mobai_bench_problem problem;
    mobai_message message;
    cr_assert(mobai_problem_parse(
                  "b3q513k600h8g2d128B64t3c,f16,sink=1,local=2,kconv=4,det,inference,lens=513+0+129/600+5+129", false,
                  &problem, &message),
              "%s", message.text);
    cr_assert_eq(mobai_problem_total_q(&problem), 642);
    cr_assert_eq(mobai_problem_total_k(&problem), 734);
    cr_assert_eq(mobai_problem_q_begin(&problem, 2), 513);
    cr_assert_eq(mobai_problem_k_begin(&problem, 2), 605);
    const moba_problem bounds = mobai_problem_bounds(&problem);
    cr_assert_eq(bounds.dtype, MOBA_F16);
    cr_assert_eq(bounds.n_q_heads, 8);
    cr_assert_eq(bounds.n_kv_heads, 2);
    cr_assert_eq(bounds.head_dim, 128);
    cr_assert_eq(bounds.block_size, 64);
    cr_assert_eq(bounds.top_k, 3);
    cr_assert_eq(bounds.n_sink_blocks, 1);
    cr_assert_eq(bounds.n_local_blocks, 2);
    cr_assert_eq(bounds.kconv_width, 4);
    cr_assert_eq(bounds.causal, 1);
    cr_assert_eq(bounds.dense, 0);
    cr_assert_eq(bounds.deterministic, 1);
    cr_assert_eq(bounds.inference, 1);
    cr_assert_eq(bounds.max_batch, 3);
    cr_assert_eq(bounds.max_total_q, 642);
    cr_assert_eq(bounds.max_total_k, 734);
    cr_assert_eq(bounds.max_seqlen_q, 513);
    cr_assert_eq(bounds.max_seqlen_k, 600);
    mobai_problem_free(&problem);
}

Test(problem_string, partial) {
    mobai_bench_problem problem;
    mobai_message message;
    cr_assert(mobai_problem_parse("B32t4n", true, &problem, &message), "%s", message.text);
    cr_assert_eq(problem.given, MOBAI_GIVEN_BLOCK_SIZE | MOBAI_GIVEN_TOP_K | MOBAI_GIVEN_CAUSAL);
    cr_assert(!mobai_problem_parse("B32t4n", false, &problem, &message));
    cr_assert(!mobai_problem_parse("t4n", true, &problem, &message));
}

/** Each text is refused, and the sentence holds `part`. */
Test(problem_string, faults) {
    static const struct {
        const char *text, *part;
    } faults[] = {
        {"", "column 1: c (causal) or n (non-causal) is missing"},
        {",f32", "column 1"},
        {"x", "column 1: expected one of b q k h g d B t"},
        {"b2q", "column 4: expected a number (the query length), found the end"},
        {"b2q8192k8192h16g16d128B128t8c", "column 30: the type is missing"},
        {"b2q8192k8192h16g16d128B128t8,bf16", "column 29: c (causal) or n (non-causal) is missing"},
        {"b0q1h1d1B16t1c,f32", "column 2: the number of sequences is 0, must be at least 1"},
        {"b1b1q1h1d1B16t1c,f32", "column 3: 'b' (the number of sequences) is given twice"},
        {"q99999999999999999999h1d1B16t1c,f32", "column 2: the query length is above 2147483647"},
        {"b100000q100000h1d1B16t1c,f32", "more than 2147483647 rows"},
        {"q1h1d1B16t1cn,f32", "column 13: expected ',' or the end after 'c', found 'n'"},
        {"q1h1d1t1c,f32", "'B' (block_size) is missing"},
        {"q1h1d1B16c,f32", "'t' (top_k) is missing"},
        {"q1d1B16t1c,f32", "'h' (the number of query heads) is missing"},
        {"q1h1B16t1c,f32", "'d' (head_dim) is missing"},
        {"h1d1B16t1c,f32", "lens is missing"},
        {"q1h1d1B16t1c,f64", "column 14: expected f32, f16, bf16"},
        {"q1h1d1B16t1c,f321", "column 14"},
        {"q1h1d1B16t1c,f32,", "column 18: expected f32"},
        {"q1h1d1B16t1c,f32,f16", "column 18: this option is given twice"},
        {"q1h1d1B16t1c,f32,sink", "column 18"},
        {"q1h1d1B16t1c,f32,sink=", "column 23: expected a number (sink)"},
        {"q1h1d1B16t1c,f32,sink=-1", "column 23: expected a number (sink), found '-'"},
        {"q1h1d1B16t1c,f32,kconv=9", "kconv is above 8"},
        {"q1h1d1B16t1c,f32,sink=1x", "column 24: expected ',' or the end, found 'x'"},
        {"h1d1B16t1c,f32,lens=", "column 21: expected a number (a query length)"},
        {"h1d1B16t1c,f32,lens=1+", "column 23"},
        {"h1d1B16t1c,f32,lens=1//1", "column 23"},
        {"h1d1B16t1c,f32,lens=1/1/1", "column 24"},
        {"h1d1B16t1c,f32,lens=1+2/1", "lens has 2 query lengths but 1 key lengths"},
        {"h1d1B16t1c,f32,lens=1,lens=1", "column 23: lens is given twice"},
        {"h1d1B16t1c,f32,lens=2147483647+1", "add up to more than 2147483647 rows"},
        {"b2h1d1B16t1c,f32,lens=1", "'b' is 2, but the number of lengths of lens is 1"},
        {"q3h1d1B16t1c,f32,lens=1+2", "'q' is 3, but the longest query length of lens is 2"},
        {"k9h1d1B16t1c,f32,lens=1+2", "'k' is 9"},
        {"q1\x01h1", "found byte 0x01"},
        {"q1h1d1B16t1c,f32\n", "column 14"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        mobai_bench_problem problem;
        mobai_message message = {0};
        cr_assert(!mobai_problem_parse(faults[i].text, false, &problem, &message), "'%s' was read", faults[i].text);
        cr_assert(strstr(message.text, faults[i].part), "'%s': '%s' does not say '%s'", faults[i].text, message.text,
                  faults[i].part);
        cr_assert_null(problem.lens_q);
        cr_assert_null(problem.lens_k);
    }
}
