/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_problems.h"

const mobai_check_problem mobai_check_problems[] = {
    /* head_dim: tuned ones, odd ones, the ends of the range */
    {"b1q512k512h2g2d64B64t3c", ""},
    {"b1q512k512h2g2d128B64t3c", ""},
    {"b1q257k257h2g1d1B32t3c", ""},
    {"b1q300k300h2g2d40B32t4c", ""},
    {"b1q200k200h2g2d80B32t3n", ""},
    {"b1q300k300h2g1d96B64t2c", ""},
    {"b1q190k190h1g1d113B48t2c", ""},
    {"b1q260k260h2g2d192B64t2c", ""},
    {"b1q260k260h2g1d256B64t3c", ""},
    /* block_size: from 16, odd, longer than the sequence; ragged last blocks */
    {"b1q333k333h2g2d64B16t8c", ""},
    {"b1q500k500h2g2d64B17t5c", ""},
    {"b1q700k700h1g1d64B128t4c", ""},
    {"b1q1100k1100h1g1d128B256t2c", ""},
    {"b1q1300k1300h1g1d64B512t2c", ""},
    {"b1q100k100h2g2d64B128t2c", ""},
    {"b2q129k129h2g2d64B64t2n", ""},
    /* top_k: the own block alone, all blocks, more than all, many */
    {"b1q512k512h2g2d64B64t1c", ""},
    {"b1q512k512h2g2d64B64t8c", ""},
    {"b1q320k320h2g2d64B64t100c", ""},
    {"b1q1024k1024h1g1d32B16t24c", ""},
    {"b1q320k320h2g2d64B64t5n", ""},
    {"b1q400k400h2g2d64B16t7n", ""},
    /* sinks and local blocks; routing that is all forced */
    {"b1q600k600h2g2d64B32t5c", ",sink=1"},
    {"b1q600k600h2g2d64B32t5c", ",local=3"},
    {"b1q600k600h2g1d64B32t6c", ",sink=2,local=2"},
    {"b1q600k600h2g2d64B32t3c", ",sink=1,local=2"},
    {"b1q600k600h2g2d64B32t4n", ",sink=2"},
    /* heads */
    {"b2q384k384h4g2d64B64t3c", ""},
    {"b1q384k384h8g2d128B64t3c", ""},
    {"b1q256k256h8g1d64B32t4c", ""},
    {"b1q256k256h16g1d64B32t3n", ""},
    {"b2q256k256h3g3d64B64t2c", ""},
    {"b1q256k256h7g1d72B48t3c", ""},
    /* lengths: packed, empty, single rows, Sq < Sk (decode, chunked prefill), Sq > Sk */
    {"h4g2d64B32t4c", ",lens=130+1+0+257"},
    {"h2g2d64B64t3n", ",lens=65+64+0+63"},
    {"h4g2d64B32t3c", ",lens=16+1+33+0+7/300+129+33+50+128"},
    {"h2g1d64B32t3c", ",lens=100+40/60+0"},
    {"h2g2d128B64t3c", ",lens=513+0+129/600+5+129"},
    {"b3q1k400h4g2d64B32t4c", ""},
    {"b2q64k500h4g4d128B64t3c", ""},
    {"b1q300k120h2g2d64B32t3c", ""},
    {"b1q50k333h2g2d64B32t4n", ""},
    {"b1q33k16h2g2d64B16t1n", ""},
    /* key convolution, its borders between packed sequences included */
    {"b2q300k300h2g2d64B32t4c", ",kconv=3"},
    {"b1q260k260h4g2d128B64t3c", ",kconv=5"},
    {"b1q200k200h2g1d40B32t3n", ",kconv=2"},
    {"h2g2d64B16t4c", ",kconv=8,lens=3+70+0+1+129"},
    {"h4g2d64B32t3c", ",kconv=3,lens=20+5/200+64"},
    /* dense */
    {"b2q300k300h2g2d64c", ",dense"},
    {"b1q300k300h4g1d128n", ",dense"},
    {"h2g1d64c", ",dense,lens=100+0+33/150+20+33"},
    {"b1q200k200h2g2d64c", ",dense,kconv=3"},
    /* bit-identical gradients asked for */
    {"b1q512k512h4g2d64B64t3c", ",det"},
    {"b1q300k300h2g2d128n", ",dense,det"},
};
const size_t mobai_n_check_problems = sizeof mobai_check_problems / sizeof mobai_check_problems[0];
