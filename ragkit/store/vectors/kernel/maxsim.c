/* See maxsim.h. From the inside out: inner loops per instruction set, the table of them, packing, the scan, quantising, thinning.
 *
 * Codes are unsigned (128 means zero) because the instruction that multiplies bytes wants one side unsigned. With u = c + 128,
 * u . q = c . q + 128 * sum(q): the surplus belongs to the query row, so its sums begin with minus that. No step saturates; a
 * sum reaches at most 255 * 127 * width, hence WIDEST in module.c. Times its token's weight, a byte, it is a float32: one
 * rounding, the same wherever it is done, of whole numbers from 2 ** 24 on, and none below.
 */
#include "maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define ALWAYS inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 12")
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define ALWAYS inline
#define UNROLL
#define PREFETCH(p)
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define X86 1
/* GCC 12 copies each sum out of and into its register at every step, twice the work; named here, it stays. */
#define IN_PLACE(x) __asm__("" : "+v"(x))
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__GNUC__) && defined(__aarch64__)
#define ARM 1
#define IN_PLACE(x) __asm__("" : "+w"(x))
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

enum {
    ALIGNMENT = 64,
    CHUNK = 16384, /* bytes of tokens that all panels visit in turn: half of a first-level cache */
    AHEAD = 6144   /* bytes: the processor's own prefetching stops at the end of a page */
};

static const double LONGEST = 1e15, LARGEST_SHARE = 0x1p51; /* as in quantise.py and maxsim_numpy.py */

static int32_t four_bytes(const char *p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

static float one_float(const char *p) {
    float value;
    memcpy(&value, p, 4);
    return value;
}

/* Tokens as a panel reads them: `rows`, `stride` bytes apart, of which `length` hold dimensions; their weights, `apart` bytes. */
typedef struct {
    const void *rows;
    int64_t count, width, length, stride;
    const uint8_t *weights;
    int64_t apart;
} Tokens;

#define FOUR(n) n, n + 1, n + 2, n + 3
#define SIXTEEN(n) FOUR(n), FOUR(n + 4), FOUR(n + 8), FOUR(n + 12)
#define SIXTY_FOUR(n) SIXTEEN(n), SIXTEEN(n + 16), SIXTEEN(n + 32), SIXTEEN(n + 48)

/* Every weight as a float: a load, where converting would take the places of products. */
static const float WEIGHTS[256] = {SIXTY_FOUR(0), SIXTY_FOUR(64), SIXTY_FOUR(128), SIXTY_FOUR(192)};
static const uint8_t ONE = 1;

/* --- portable ------------------------------------------------------------------------------------------------------ */

/* Rows of 16-bit integers in plain order: the loop that every compiler turns into multiply-and-add of pairs. */
static void portable_codes(const Tokens *tokens, const void *query, const void *firsts, int vectors, void *maxima) {
    const int16_t *token = tokens->rows;
    const int32_t *first = firsts;
    float *best = maxima;
    for (int64_t i = 0; i < tokens->count; i++, token += tokens->width) {
        const int16_t *row = query;
        for (int v = 0; v < vectors; v++, row += tokens->width) {
            int32_t sum = 0;
            for (int64_t j = 0; j < tokens->width; j++) sum += (int32_t)token[j] * row[j];
            const float weighed = (float)(sum + first[v]) * WEIGHTS[tokens->weights[i * tokens->apart]];
            if (weighed > best[v]) best[v] = weighed;
        }
    }
}

/* Sixteen rows side by side: each lane sums its dimensions in order, as the other paths do. */
static void portable_floats(const Tokens *tokens, const void *query, const void *firsts, int vectors, void *maxima) {
    const float *token = tokens->rows;
    float *best = maxima;
    (void)firsts;
    for (int64_t i = 0; i < tokens->count; i++, token += tokens->width) {
        for (int v = 0; v < vectors; v++) {
            float sum[16] = {0};
            for (int64_t j = 0; j < tokens->width; j++) {
                const float *rows = (const float *)query + (j * vectors + v) * 16;
                for (int lane = 0; lane < 16; lane++) sum[lane] += token[j] * rows[lane];
            }
            for (int lane = 0; lane < 16; lane++) {
                if (sum[lane] > best[16 * v + lane]) best[16 * v + lane] = sum[lane];
            }
        }
    }
}

static void portable_widen(const uint8_t *codes, int16_t *wide, int64_t count) {
    for (int64_t i = 0; i < count; i++) wide[i] = codes[i];
}

/* Every finite float16 exactly: the exponent is moved into place and rebased by a product. */
static void portable_halves(const uint16_t *halves, float *floats, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)(halves[i] & 0x8000) << 16 | (uint32_t)(halves[i] & 0x7fff) << 13;
        float value;
        memcpy(&value, &bits, 4);
        floats[i] = value * 0x1p112f;
    }
}

/* --- x86 ----------------------------------------------------------------------------------------------------------- */
#ifdef X86

#define NAME(x) vnni512_##x
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define VECTOR __m512i
#define TOKEN __m512i
#define SPREAD(p) _mm512_set1_epi32(four_bytes(p))
#define UNIT 4
#define DOT(sum, token, q) _mm512_dpbusd_epi32(sum, token, q)
#define LOAD(p) _mm512_loadu_si512((const void *)(p))
#define STORE(p, x) _mm512_storeu_si512((void *)(p), x)
#define WEIGH(sum, weight) _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(*(weight))))
#define GREATER(a, b) _mm512_castps_si512(_mm512_max_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)))
#define TALL1 12
#define TALL2 12
#define TALL3 8
#define TALL4 6
#include "block.h"

#define NAME(x) fma512_##x
#define TARGET __attribute__((target("avx512f")))
#define VECTOR __m512
#define TOKEN __m512
#define SPREAD(p) _mm512_set1_ps(one_float(p))
#define UNIT 1
#define DOT(sum, token, q) _mm512_fmadd_ps(token, q, sum)
#define LOAD(p) _mm512_loadu_ps((const void *)(p))
#define STORE(p, x) _mm512_storeu_ps((void *)(p), x)
#define WEIGH(sum, weight) ((void)(weight), sum)
#define GREATER(a, b) _mm512_max_ps(a, b)
#define TALL1 12
#define TALL2 12
#define TALL3 8
#define TALL4 6
#include "block.h"

/* The 256-bit form of VNNI has two encodings: one for cores with AVX-512, one for cores without. */
#define NAME(x) vnni256_##x
#define TARGET __attribute__((target("avx512f,avx512vl,avx512vnni")))
#define VECTOR __m256i
#define TOKEN __m256i
#define SPREAD(p) _mm256_set1_epi32(four_bytes(p))
#define UNIT 4
#define DOT(sum, token, q) _mm256_dpbusd_epi32(sum, token, q)
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define STORE(p, x) _mm256_storeu_si256((void *)(p), x)
#define WEIGH(sum, weight) _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(*(weight))))
#define GREATER(a, b) _mm256_castps_si256(_mm256_max_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
#define TALL1 12
#define TALL2 6
#define TALL3 0
#define TALL4 0
#include "block.h"

#if __GNUC__ >= 11 || __clang_major__ >= 12
#define HAS_AVXVNNI 1
#define NAME(x) avxvnni_##x
#define TARGET __attribute__((target("avx2,avxvnni")))
#define VECTOR __m256i
#define TOKEN __m256i
#define SPREAD(p) _mm256_set1_epi32(four_bytes(p))
#define UNIT 4
#define DOT(sum, token, q) _mm256_dpbusd_avx_epi32(sum, token, q)
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define STORE(p, x) _mm256_storeu_si256((void *)(p), x)
#define WEIGH(sum, weight) _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(*(weight))))
#define GREATER(a, b) _mm256_castps_si256(_mm256_max_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
#define TALL1 12
#define TALL2 6
#define TALL3 0
#define TALL4 0
#include "block.h"
#endif

/* Without VNNI bytes are widened to 16 bits: the byte product of AVX2 saturates, this one is exact. */
#define NAME(x) avx2_##x
#define TARGET __attribute__((target("avx2")))
#define VECTOR __m256i
#define TOKEN __m256i
#define SPREAD(p) _mm256_set1_epi32(four_bytes(p))
#define UNIT 2
#define DOT(sum, token, q) _mm256_add_epi32(sum, _mm256_madd_epi16(token, q))
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define STORE(p, x) _mm256_storeu_si256((void *)(p), x)
#define WEIGH(sum, weight) _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(*(weight))))
#define GREATER(a, b) _mm256_castps_si256(_mm256_max_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
#define TALL1 6
#define TALL2 4
#define TALL3 0
#define TALL4 0
#include "block.h"

#define NAME(x) fma256_##x
#define TARGET __attribute__((target("avx2,fma")))
#define VECTOR __m256
#define TOKEN __m256
#define SPREAD(p) _mm256_set1_ps(one_float(p))
#define UNIT 1
#define DOT(sum, token, q) _mm256_fmadd_ps(token, q, sum)
#define LOAD(p) _mm256_loadu_ps((const void *)(p))
#define STORE(p, x) _mm256_storeu_ps((void *)(p), x)
#define WEIGH(sum, weight) ((void)(weight), sum)
#define GREATER(a, b) _mm256_max_ps(a, b)
#define TALL1 12
#define TALL2 6
#define TALL3 0
#define TALL4 0
#include "block.h"

__attribute__((target("avx2"))) static void avx2_widen(const uint8_t *codes, int16_t *wide, int64_t count) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i some = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(codes + i)));
        _mm256_storeu_si256((void *)(wide + i), some);
    }
    portable_widen(codes + i, wide + i, count - i);
}

__attribute__((target("avx,f16c"))) static void f16c_halves(const uint16_t *halves, float *floats, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(floats + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(halves + i))));
    portable_halves(halves + i, floats + i, count - i);
}

/* Ten sums in flight hide the latency at two a cycle; twelve is what the scan has. Registers only, so: the peak. */
#define SPIN(name, VECTOR, DOT, FIRST, TARGET)                                                    \
    TARGET static int64_t name(int64_t rounds) {                                                  \
        VECTOR sum[12];                                                                           \
        const VECTOR one = FIRST, two = FIRST;                                                    \
        UNROLL for (int i = 0; i < 12; i++) sum[i] = FIRST;                                       \
        for (int64_t round = 0; round < rounds; round++) {                                        \
            UNROLL for (int i = 0; i < 12; i++) {                                                 \
                sum[i] = DOT(sum[i], one, two);                                                   \
                IN_PLACE(sum[i]);                                                                 \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int i = 0; i < 12; i++) __asm__ volatile("" : : "v"(sum[i])); /* not left out */ \
        return rounds * 12;                                                                       \
    }

#define MADD(sum, a, b) ((void)(a), _mm256_add_epi32(sum, _mm256_madd_epi16(sum, b))) /* or the product would leave the loop */
SPIN(vnni512_spin, __m512i, _mm512_dpbusd_epi32, _mm512_set1_epi8(1), __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))))
SPIN(vnni256_spin, __m256i, _mm256_dpbusd_epi32, _mm256_set1_epi8(1), __attribute__((target("avx512f,avx512vl,avx512vnni"))))
SPIN(avx2_spin, __m256i, MADD, _mm256_set1_epi8(1), __attribute__((target("avx2"))))
#ifdef HAS_AVXVNNI
SPIN(avxvnni_spin, __m256i, _mm256_dpbusd_avx_epi32, _mm256_set1_epi8(1), __attribute__((target("avx2,avxvnni"))))
#endif

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx");
}

static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

static int runs_avx2(void) { return has_avx2() && has_f16c(); }

static int runs_vnni512(void) {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

#ifdef HAS_AVXVNNI
static int runs_avxvnni(void) {
    unsigned a, b, c, d;
    return runs_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif
#endif

/* --- ARM ----------------------------------------------------------------------------------------------------------- */
#ifdef ARM

#if defined(__clang__)
#define DOTPROD __attribute__((target("dotprod")))
#else
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

/* Both sides signed here: flipping the top bit turns the code into its signed value, so there is no surplus. */
#define NAME(x) sdot_##x
#define TARGET DOTPROD
#define VECTOR int32x4_t
#define TOKEN int8x16_t
#define SPREAD(p) vreinterpretq_s8_s32(veorq_s32(vdupq_n_s32(four_bytes(p)), vdupq_n_s32((int32_t)0x80808080)))
#define UNIT 4
#define DOT(sum, token, q) vdotq_s32(sum, token, vreinterpretq_s8_s32(q))
#define LOAD(p) vreinterpretq_s32_u8(vld1q_u8((const void *)(p)))
#define STORE(p, x) vst1q_u8((void *)(p), vreinterpretq_u8_s32(x))
#define WEIGH(sum, weight) vreinterpretq_s32_f32(vmulq_n_f32(vcvtq_f32_s32(sum), *(weight)))
#define GREATER(a, b) vreinterpretq_s32_f32(vmaxq_f32(vreinterpretq_f32_s32(a), vreinterpretq_f32_s32(b)))
#define TALL1 12
#define TALL2 6
#define TALL3 6
#define TALL4 4
#include "block.h"

#define NAME(x) neon_##x
#define TARGET
#define VECTOR float32x4_t
#define TOKEN float32x4_t
#define SPREAD(p) vdupq_n_f32(one_float(p))
#define UNIT 1
#define DOT(sum, token, q) vfmaq_f32(sum, token, q)
#define LOAD(p) vreinterpretq_f32_u8(vld1q_u8((const void *)(p)))
#define STORE(p, x) vst1q_u8((void *)(p), vreinterpretq_u8_f32(x))
#define WEIGH(sum, weight) ((void)(weight), sum)
#define GREATER(a, b) vmaxq_f32(a, b)
#define TALL1 12
#define TALL2 6
#define TALL3 6
#define TALL4 4
#include "block.h"

static void neon_halves(const uint16_t *halves, float *floats, int64_t count) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) vst1q_f32(floats + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
    portable_halves(halves + i, floats + i, count - i);
}

static int runs_sdot(void) {
#if defined(__APPLE__)
    return 1;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0; /* HWCAP_ASIMDDP */
#else
    return 0;
#endif
}
#endif

/* --- the table ----------------------------------------------------------------------------------------------------- */

static int runs_always(void) { return 1; }

typedef void (*Panel)(const Tokens *tokens, const void *query, const void *firsts, int vectors, void *maxima);

/* How a precision is laid out: registers of `lanes` query rows, `most` of them in a panel, `unit` dimensions of a row side by
 * side (0: all of them). */
typedef struct { Panel panel; int lanes, most, unit; } Shape;

struct Path {
    const char *name;
    int (*runs)(void);
    Shape codes, floats;
    void (*widen)(const uint8_t *codes, int16_t *wide, int64_t count); /* NULL: the panel reads bytes */
    void (*halves)(const uint16_t *halves, float *floats, int64_t count);
    int surplus;                                                       /* 128 where the panel reads codes as unsigned */
    int64_t (*spin)(int64_t rounds);
    int spin_operations;                                               /* of one DOT */
};

static const Path PATHS[] = {
#ifdef X86
    {"avx512-vnni", runs_vnni512, {vnni512_panel, 16, 4, 4}, {fma512_panel, 16, 4, 1}, NULL, f16c_halves, 128, vnni512_spin, 128},
#ifdef HAS_AVXVNNI
    {"avx-vnni", runs_avxvnni, {avxvnni_panel, 8, 2, 4}, {fma256_panel, 8, 2, 1}, NULL, f16c_halves, 128, avxvnni_spin, 64},
#endif
    {"avx512-vnni-256", runs_vnni512, {vnni256_panel, 8, 2, 4}, {fma256_panel, 8, 2, 1}, NULL, f16c_halves, 128, vnni256_spin, 64},
    {"avx2", runs_avx2, {avx2_panel, 8, 2, 2}, {fma256_panel, 8, 2, 1}, avx2_widen, f16c_halves, 128, avx2_spin, 32},
#endif
#ifdef ARM
    {"neon-dotprod", runs_sdot, {sdot_panel, 4, 4, 4}, {neon_panel, 4, 4, 1}, NULL, neon_halves, 0, NULL, 0},
#endif
    {"portable", runs_always, {portable_codes, 1, 8, 0}, {portable_floats, 16, 2, 1}, portable_widen, portable_halves, 128, NULL, 0},
};

const Path *maxsim_path(int place) {
    /* Asked once: in a virtual machine the processor's answer takes longer than a search of few items. Threads that ask at the
     * same time write the same. */
    static signed char runs[sizeof PATHS / sizeof PATHS[0]]; /* 0: not asked yet; 1: yes; -1: no */
    for (size_t i = 0; i < sizeof PATHS / sizeof PATHS[0]; i++) {
        if (!runs[i]) runs[i] = PATHS[i].runs() ? 1 : -1;
        if (runs[i] > 0 && place-- == 0) return PATHS + i;
    }
    return NULL;
}

const char *maxsim_path_name(const Path *path) { return path->name; }

int64_t maxsim_spin(const Path *path, int64_t rounds) { return path->spin ? path->spin(rounds) * path->spin_operations : 0; }

/* --- packing ------------------------------------------------------------------------------------------------------- */

/* What one call needs, made once: the packed query, room for maxima and for converted tokens. */
typedef struct {
    const Path *path;
    const Items *items;
    const Queries *queries;
    Shape shape;
    int panels;
    int64_t vectors;    /* registers of query rows, over all panels */
    int64_t chunk;      /* tokens at a time */
    int64_t panel_bytes; /* of one register's worth of packed rows */
    char *memory, *packed, *firsts, *maxima, *wide;
} Work;

static char *aligned(char *p) { return p + (-(uintptr_t)p & (ALIGNMENT - 1)); }

static int64_t ceiling(int64_t number, int64_t step) { return (number + step - 1) / step; }

/* Panels of equal height, or one apart: five registers are 3 + 2, not 4 + 1. */
static int height(const Work *work, int panel) {
    return (int)(work->vectors / work->panels + (panel < work->vectors % work->panels));
}

static void pack_rows(Work *work, int64_t rows) {
    const int64_t width = work->items->width, unit = work->shape.unit ? work->shape.unit : width;
    const int lanes = work->shape.lanes, codes = work->items->precision == CODES, wide = codes && work->path->widen;
    char *panel = work->packed;
    int64_t row = 0;
    for (int p = 0; p < work->panels; p++) {
        const int64_t tall = (int64_t)height(work, p) * lanes;
        for (int64_t i = 0; i < tall && row < rows; i++, row++) {
            for (int64_t j = 0; j < width; j++) {
                const int64_t place = (j / unit * tall + i) * unit + j % unit, from = row * width + j;
                if (wide) ((int16_t *)panel)[place] = ((const int8_t *)work->queries->rows)[from];
                else if (codes) ((int8_t *)panel)[place] = ((const int8_t *)work->queries->rows)[from];
                else ((float *)panel)[place] = ((const float *)work->queries->rows)[from];
            }
        }
        panel += height(work, p) * work->panel_bytes;
    }
}

/* What the sums of each row begin with: see the head of this file. */
static void set_firsts(Work *work, int64_t rows) {
    if (work->items->precision != CODES) return;
    for (int64_t i = 0; i < rows; i++) {
        const int8_t *row = (const int8_t *)work->queries->rows + i * work->items->width;
        int32_t sum = 0;
        for (int64_t j = 0; j < work->items->width; j++) sum += row[j];
        ((int32_t *)work->firsts)[i] = -sum * work->path->surplus;
    }
}

static int prepare(Work *work, const Path *path, const Items *items, const Queries *queries) {
    const int codes = items->precision == CODES;
    const int64_t rows = queries->bounds[queries->count], element = codes ? (path->widen ? 2 : 1) : 4;
    *work = (Work){.path = path, .items = items, .queries = queries, .shape = codes ? path->codes : path->floats};
    work->vectors = ceiling(rows, work->shape.lanes);
    work->panels = (int)ceiling(work->vectors, work->shape.most);
    work->panel_bytes = work->shape.lanes * items->width * element;
    work->chunk = ceiling(CHUNK, items->width * element * 12) * 12;
    const int64_t packed = work->vectors * work->panel_bytes, maxima = work->vectors * work->shape.lanes * 4;
    const int64_t wide = work->chunk * items->width * element;
    work->memory = malloc((size_t)(packed + 2 * maxima + wide + 4 * ALIGNMENT));
    if (!work->memory) return NO_MEMORY;
    work->packed = aligned(work->memory);
    work->firsts = aligned(work->packed + packed);
    work->maxima = aligned(work->firsts + maxima);
    work->wide = aligned(work->maxima + maxima);
    memset(work->packed, 0, (size_t)packed);
    memset(work->firsts, 0, (size_t)maxima);
    pack_rows(work, rows);
    set_firsts(work, rows);
    return 0;
}

/* --- the scan ------------------------------------------------------------------------------------------------------ */

/* A whole number of units, also of what should not be stored: not finite, or far too long. */
static int64_t counted(double share) { return (int64_t)rint(fmin(fmax(share, -LARGEST_SHARE), LARGEST_SHARE)); }

/* Tokens as the panel reads them: in place where it can, else converted. */
static Tokens readable(const Work *work, int64_t token, int64_t count) {
    const Items *items = work->items;
    const int64_t width = items->width, stride = width + items->weighed;
    Tokens tokens = {.count = count, .width = width, .length = width * 4, .stride = width * 4, .weights = &ONE};
    if (items->precision == FLOATS) {
        tokens.rows = (const float *)items->values + token * width;
        return tokens;
    }
    tokens.rows = work->wide;
    if (items->precision == HALVES) {
        work->path->halves((const uint16_t *)items->values + token * width, (float *)work->wide, count * width);
        return tokens;
    }
    const uint8_t *codes = (const uint8_t *)items->values + token * stride;
    if (items->weighed) {
        tokens.weights = codes + width;
        tokens.apart = stride;
    }
    if (work->path->widen) {
        for (int64_t i = 0; i < count; i++) work->path->widen(codes + i * stride, (int16_t *)work->wide + i * width, width);
        tokens.length = tokens.stride = width * 2;
        return tokens;
    }
    tokens.rows = codes;
    tokens.length = width;
    tokens.stride = stride;
    return tokens;
}

static void lowest(Work *work) {
    const int64_t rows = work->vectors * work->shape.lanes;
    for (int64_t i = 0; i < rows; i++) ((float *)work->maxima)[i] = -INFINITY;
}

/* Every query row's best match in one item, into work->maxima. Returns 0 or an error. */
static int64_t match(Work *work, int64_t item) {
    const Items *items = work->items;
    const int64_t begin = items->offsets[item], end = items->offsets[item + 1];
    if (begin < 0 || begin >= end || end > items->tokens) return BAD_ITEM - item;
    lowest(work);
    for (int64_t token = begin; token < end; token += work->chunk) {
        const int64_t count = end - token < work->chunk ? end - token : work->chunk;
        const Tokens tokens = readable(work, token, count);
        const char *packed = work->packed, *firsts = work->firsts;
        char *maxima = work->maxima;
        for (int p = 0; p < work->panels; p++) {
            const int tall = height(work, p);
            work->shape.panel(&tokens, packed, firsts, tall, maxima);
            packed += tall * work->panel_bytes;
            firsts += tall * work->shape.lanes * 4;
            maxima += tall * work->shape.lanes * 4;
        }
    }
    return 0;
}

static int64_t total_of(const Work *work, int64_t query) {
    const int64_t begin = work->queries->bounds[query], end = work->queries->bounds[query + 1];
    int64_t total = 0;
    if (work->items->precision == CODES) {
        const int64_t *weights = work->queries->weights;
        for (int64_t i = begin; i < end; i++) total += (int64_t)((const float *)work->maxima)[i] * weights[i];
    } else {
        const double per_unit = work->queries->per_unit[query];
        for (int64_t i = begin; i < end; i++) total += counted(((const float *)work->maxima)[i] * per_unit);
    }
    return total;
}

static int is_worse(Ranked a, Ranked b) { return a.total < b.total || (a.total == b.total && a.key > b.key); }

/* `best` is a heap with the worst on top. */
static void sink(Ranked *best, int64_t size, int64_t at, Ranked entry) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= size) break;
        if (child + 1 < size && is_worse(best[child + 1], best[child])) child++;
        if (!is_worse(best[child], entry)) break;
        best[at] = best[child];
        at = child;
    }
    best[at] = entry;
}

static void keep(Ranked *best, int64_t size, int64_t k, Ranked entry) {
    if (size == k) {
        if (is_worse(best[0], entry)) sink(best, k, 0, entry);
        return;
    }
    best[size] = entry;
    if (size + 1 == k) {
        for (int64_t at = k / 2 - 1; at >= 0; at--) sink(best, k, at, best[at]);
    }
}

int64_t maxsim_scan(const Path *path, const Items *items, const Queries *queries, const int64_t *keys, const uint8_t *allowed,
                    int64_t start, int64_t stop, int64_t k, Ranked *best) {
    Work work;
    int64_t size = 0, error = prepare(&work, path, items, queries);
    for (int64_t item = start; item < stop && k > 0 && !error; item++) {
        if (allowed && !allowed[item]) continue;
        error = match(&work, item);
        if (error) break;
        for (int64_t j = 0; j < queries->count; j++) keep(best + j * k, size, k, (Ranked){total_of(&work, j), keys[item]});
        size += size < k;
    }
    free(work.memory);
    return error ? error : size;
}

int64_t maxsim_totals(const Path *path, const Items *items, const Queries *queries, const int64_t *positions, int64_t count,
                      int64_t *totals) {
    Work work;
    int64_t error = prepare(&work, path, items, queries);
    for (int64_t i = 0; i < count && !error; i++) {
        error = match(&work, positions[i]);
        for (int64_t j = 0; j < queries->count && !error; j++) totals[j * count + i] = total_of(&work, j);
    }
    free(work.memory);
    return error;
}

/* --- quantising ---------------------------------------------------------------------------------------------------- */

/* Walsh-Hadamard over `size` (a power of two) values, scaled to keep lengths. Each step adds neighbours and moves sums to the
 * first half, differences to the second: the natural order after all of them, and only plain additions, so the same bits
 * everywhere. */
static void hadamard(float *values, float *spare, int64_t size, float scale) {
    float *from = values, *to = spare;
    for (int64_t step = 1; step < size; step *= 2) {
        for (int64_t i = 0; i < size / 2; i++) {
            const float a = from[2 * i], b = from[2 * i + 1];
            to[i] = a + b;
            to[i + size / 2] = a - b;
        }
        float *swap = from;
        from = to;
        to = swap;
    }
    for (int64_t i = 0; i < size; i++) values[i] = from[i] * scale;
}

/* Signs, then Hadamard over the first `size` dims; where that is not all of them, again over the last, and the first. */
static void rotate(float *row, float *spare, int64_t dims, int64_t size, const float *signs, float scale) {
    const int rounds = size == dims ? 1 : 3;
    for (int round = 0; round < rounds; round++) {
        for (int64_t j = 0; j < dims; j++) row[j] *= signs[round * dims + j];
        hadamard(round == 1 ? row + dims - size : row, spare, size, scale);
    }
}

/* To the nearest whole number, ties to even: adding 1.5 * 2^23 leaves no room for a fraction. */
static float nearest(float value) {
    const float room = 12582912.0f;
    return (value + room) - room;
}

static double squared_length(const float *row, int64_t dims) {
    double lanes[8] = {0}, sum = 0;
    int64_t j = 0;
    for (; j + 8 <= dims; j += 8) {
        for (int lane = 0; lane < 8; lane++) lanes[lane] += (double)row[j + lane] * row[j + lane];
    }
    for (; j < dims; j++) sum += (double)row[j] * row[j];
    for (int lane = 0; lane < 8; lane++) sum += lanes[lane];
    return sum;
}

/* How many steps a row's own step must be for its largest value to be within 127 of them: 1 to 255. */
static float weight_of(const float *row, int64_t dims, float step) {
    float largest = 0;
    for (int64_t j = 0; j < dims; j++) largest = fabsf(row[j]) > largest ? fabsf(row[j]) : largest;
    const float weight = ceilf(largest / (127 * step));
    return weight < 1 ? 1 : weight > 255 ? 255 : weight;
}

int64_t maxsim_quantise(const float *values, int64_t rows, int64_t dims, int64_t width, const float *signs, float step,
                        int weighed, uint8_t *codes, double worst[2]) {
    int64_t size = 1;
    while (size * 2 <= dims) size *= 2;
    const float scale = (float)(1 / sqrt((double)size));
    float *row = malloc((size_t)(2 * dims) * sizeof(float)), *spare = row + dims;
    if (!row) return NO_MEMORY;
    worst[0] = worst[1] = 0;
    for (int64_t i = 0; i < rows; i++, values += dims, codes += width + weighed) {
        const double length = squared_length(values, dims);
        if (!(length <= LONGEST * LONGEST)) {
            free(row);
            return BAD_ITEM - i;
        }
        memcpy(row, values, (size_t)dims * sizeof(float));
        rotate(row, spare, dims, size, signs, scale);
        const float weight = weighed ? weight_of(row, dims, step) : 1.0f, own = step * weight;
        for (int64_t j = 0; j < dims; j++) {
            float code = row[j] / own;
            code = code > 127 ? 127 : code;
            code = nearest(code < -127 ? -127 : code);
            codes[j] = (uint8_t)((int)code + 128);
            row[j] -= own * code;
        }
        memset(codes + dims, 128, (size_t)(width - dims));
        if (weighed) codes[width] = (uint8_t)weight;
        const double lost = squared_length(row, dims);
        if (lost > worst[0]) worst[0] = lost;
        if (length > worst[1]) worst[1] = length;
    }
    free(row);
    return 0;
}

/* --- thinning ------------------------------------------------------------------------------------------------------ */

enum { STEP = 16 }; /* rows of a run are padded to whole steps, with zeros */

/* What one run of tokens needs: its rows without the surplus, and per token how near its nearest seed is, and which that is. */
typedef struct {
    int64_t width, stride;
    const uint8_t *weights; /* `width + 1` bytes apart */
    int16_t *rows;
    int32_t *products, *sums;
    int64_t *nearest, *seed;
    int64_t *longest; /* squared, of each seed's tokens */
    void (*dots)(const int16_t *rows, const int16_t *seed, int64_t count, int64_t stride, int32_t *products);
    char *memory;
} Run;

static int64_t weight(const Run *run, int64_t token) { return run->weights[token * (run->width + 1)]; }

static void portable_dots(const int16_t *rows, const int16_t *seed, int64_t count, int64_t stride, int32_t *products) {
    for (int64_t i = 0; i < count; i++, rows += stride) {
        int32_t sum = 0;
        for (int64_t j = 0; j < stride; j++) sum += (int32_t)rows[j] * seed[j];
        products[i] = sum;
    }
}

#ifdef X86
__attribute__((target("avx2"))) static void avx2_dots(const int16_t *rows, const int16_t *seed, int64_t count, int64_t stride,
                                                      int32_t *products) {
    for (int64_t i = 0; i < count; i++, rows += stride) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t j = 0; j < stride; j += STEP) {
            const __m256i row = _mm256_load_si256((const __m256i *)(rows + j)), other = _mm256_load_si256((const __m256i *)(seed + j));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(row, other));
        }
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        products[i] = _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
    }
}
#endif

/* Seeds one after the other, the token next that is least like those so far; the first of equals. A seed stays its own. */
static void choose(Run *run, int64_t count, int64_t seeds) {
    int64_t next = 0;
    for (int64_t i = 0; i < count; i++) run->nearest[i] = INT64_MIN;
    for (int64_t s = 0; s < seeds; s++) {
        run->dots(run->rows, run->rows + next * run->stride, count, run->stride, run->products);
        const int64_t own = weight(run, next), chosen = next;
        int64_t least = INT64_MAX;
        for (int64_t i = 0; i < count; i++) {
            const int64_t like = run->products[i] * own * weight(run, i);
            if (i == chosen) run->nearest[i] = INT64_MAX;
            if (i == chosen || like > run->nearest[i]) run->seed[i] = s;
            if (like > run->nearest[i]) run->nearest[i] = like;
            if (run->nearest[i] < least) {
                least = run->nearest[i];
                next = i;
            }
        }
    }
}

/* To the nearest whole number, ties to even, as `nearest`. */
static double whole(double value) {
    const double room = 0x1.8p52;
    return (value + room) - room;
}

static void stand_in(const Run *run, int64_t seed, uint8_t *row) {
    const int32_t *sums = run->sums + seed * run->stride;
    double square = 0;
    int32_t largest = 0;
    for (int64_t j = 0; j < run->width; j++) {
        const int32_t size = sums[j] < 0 ? -sums[j] : sums[j];
        largest = size > largest ? size : largest;
        square += (double)sums[j] * sums[j];
    }
    const double scale = square > 0 ? sqrt((double)run->longest[seed]) / sqrt(square) : 0;
    double own = ceil(largest * scale / 127);
    own = own < 1 ? 1 : own > 255 ? 255 : own;
    for (int64_t j = 0; j < run->width; j++) {
        const double code = whole(sums[j] * scale / own);
        row[j] = (uint8_t)((int)(code > 127 ? 127 : code < -127 ? -127 : code) + 128);
    }
    row[run->width] = (uint8_t)own;
}

static void thin_run(Run *run, const uint8_t *codes, int64_t count, int64_t seeds, uint8_t *fewer) {
    const int64_t width = run->width;
    run->weights = codes + width;
    for (int64_t i = 0; i < count; i++) {
        int16_t *row = run->rows + i * run->stride;
        for (int64_t j = 0; j < width; j++) row[j] = (int16_t)(codes[i * (width + 1) + j] - 128);
    }
    choose(run, count, seeds);
    memset(run->sums, 0, (size_t)(seeds * run->stride) * sizeof *run->sums);
    memset(run->longest, 0, (size_t)seeds * sizeof *run->longest);
    for (int64_t i = 0; i < count; i++) {
        const int32_t own = (int32_t)weight(run, i);
        const int16_t *row = run->rows + i * run->stride;
        int32_t *sums = run->sums + run->seed[i] * run->stride, square = 0;
        for (int64_t j = 0; j < run->stride; j++) {
            sums[j] += row[j] * own;
            square += (int32_t)row[j] * row[j];
        }
        const int64_t length = (int64_t)square * own * own;
        if (length > run->longest[run->seed[i]]) run->longest[run->seed[i]] = length;
    }
    for (int64_t s = 0; s < seeds; s++) stand_in(run, s, fewer + s * (width + 1));
}

static int prepare_run(Run *run, int64_t width, int64_t count, int64_t seeds) {
    const int64_t stride = ceiling(width, STEP) * STEP, rows = count * stride * (int64_t)sizeof(int16_t), sums = seeds * stride * 4;
    *run = (Run){.width = width, .stride = stride, .dots = portable_dots};
    run->memory = calloc(1, (size_t)(rows + sums + count * 20 + seeds * 8 + ALIGNMENT));
    if (!run->memory) return NO_MEMORY;
#ifdef X86
    if (has_avx2()) run->dots = avx2_dots;
#endif
    run->rows = (int16_t *)aligned(run->memory);
    run->nearest = (int64_t *)(run->rows + count * stride);
    run->seed = run->nearest + count;
    run->longest = run->seed + count;
    run->sums = (int32_t *)(run->longest + seeds);
    run->products = run->sums + seeds * stride;
    return 0;
}

int64_t maxsim_thin(const uint8_t *codes, int64_t tokens, int64_t width, const int64_t *offsets, int64_t count, int64_t factor,
                    uint8_t *fewer) {
    int64_t most = 1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t begin = offsets[i], end = offsets[i + 1];
        if (begin < 0 || begin >= end || end > tokens) return BAD_ITEM - i;
        most = end - begin > most ? end - begin : most;
    }
    most = most < RUN ? most : RUN;
    Run run;
    if (prepare_run(&run, width, most, ceiling(most, factor))) return NO_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t token = offsets[i]; token < offsets[i + 1]; token += RUN) {
            const int64_t left = offsets[i + 1] - token, size = left < RUN ? left : RUN, seeds = ceiling(size, factor);
            thin_run(&run, codes + token * (width + 1), size, seeds, fewer);
            fewer += seeds * (width + 1);
        }
    }
    free(run.memory);
    return 0;
}
