/* One instruction set's inner loop, stamped out by including this file; maxsim.c sets the macros before.
 *
 *   NAME(x)  a name of this instruction set     TARGET  function attribute that switches the instructions on
 *   VECTOR   a register of query rows           TOKEN, SPREAD(p)  4 bytes of a token, in every lane
 *   UNIT     dimensions in 4 bytes              DOT(sum, token, query)  sum + token * query, lane by lane
 *   LOAD STORE
 *   WEIGH(sum, weight)   sum * weight, as floats; *weight is the token's, a float
 *   GREATER              of floats
 *   TALL1 to TALL4   tokens at a time for 1 to 4 registers of query rows; 0: not used. Sums stay in registers, and enough
 *                    of them hide the latency of DOT: at least latency x issue rate, at most the registers there are.
 *
 * A panel is V registers of query rows, packed as [width / UNIT][V][lanes][UNIT], against n tokens of 4 * steps bytes. `first`
 * is what the sums of its rows begin with: for codes what the surplus of unsigned ones takes off again, else zeros.
 */

static ALWAYS TARGET void NAME(block)(const Tokens *of, int64_t at_token, const char *query, const VECTOR *first, VECTOR *best,
                                      const int V, const int R) {
    const int64_t stride = of->stride, length = of->length;
    const char *tokens = (const char *)of->rows + at_token * stride;
    VECTOR sum[12][4];
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = first[v];
    }
    for (int64_t at = 0; at < length; at += 4, query += V * sizeof(VECTOR)) {
        VECTOR rows[4];
        PREFETCH(tokens + AHEAD + at * R); /* over the block's steps, as much as the block reads */
        UNROLL for (int v = 0; v < V; v++) rows[v] = LOAD(query + v * sizeof(VECTOR));
        UNROLL for (int r = 0; r < R; r++) {
            const TOKEN token = SPREAD(tokens + r * stride + at);
            UNROLL for (int v = 0; v < V; v++) {
                sum[r][v] = DOT(sum[r][v], token, rows[v]);
                IN_PLACE(sum[r][v]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        const float *weight = WEIGHTS + of->weights[(at_token + r) * of->apart];
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = WEIGH(sum[r][v], weight);
    }
    UNROLL for (int v = 0; v < V; v++) { /* in pairs, as each waits for the one before */
        UNROLL for (int r = 0; r + 1 < R; r += 2) sum[r][v] = GREATER(sum[r][v], sum[r + 1][v]);
        UNROLL for (int r = 0; r < R; r += 2) best[v] = GREATER(best[v], sum[r][v]);
    }
}

#define REST(V, R, n) case n: if (n < R) NAME(block)(tokens, at, query, first, best, V, n < R ? n : 1); break;

#define PANEL(V, R)                                                                                                      \
    static TARGET void NAME(panel##V)(const Tokens *tokens, const char *query, const char *firsts, char *maxima) {       \
        VECTOR best[4], first[4];                                                                                        \
        UNROLL for (int v = 0; v < V; v++) best[v] = LOAD(maxima + v * sizeof(VECTOR));                                  \
        UNROLL for (int v = 0; v < V; v++) first[v] = LOAD(firsts + v * sizeof(VECTOR));                                 \
        int64_t at = 0;                                                                                                  \
        for (; tokens->count - at >= R; at += R) NAME(block)(tokens, at, query, first, best, V, R);                      \
        switch (tokens->count - at) {                                                                                    \
            REST(V, R, 1) REST(V, R, 2) REST(V, R, 3) REST(V, R, 4) REST(V, R, 5) REST(V, R, 6)                           \
            REST(V, R, 7) REST(V, R, 8) REST(V, R, 9) REST(V, R, 10) REST(V, R, 11)                                       \
            default: break;                                                                                              \
        }                                                                                                                \
        UNROLL for (int v = 0; v < V; v++) STORE(maxima + v * sizeof(VECTOR), best[v]);                                  \
    }

PANEL(1, TALL1)
PANEL(2, TALL2)
#if TALL3
PANEL(3, TALL3)
PANEL(4, TALL4)
#endif

static void NAME(panel)(const Tokens *tokens, const void *query, const void *firsts, int vectors, void *maxima) {
    switch (vectors) {
        case 1: NAME(panel1)(tokens, query, firsts, maxima); return;
        case 2: NAME(panel2)(tokens, query, firsts, maxima); return;
#if TALL3
        case 3: NAME(panel3)(tokens, query, firsts, maxima); return;
        case 4: NAME(panel4)(tokens, query, firsts, maxima); return;
#endif
        default: return;
    }
}

#undef NAME
#undef TARGET
#undef VECTOR
#undef TOKEN
#undef SPREAD
#undef UNIT
#undef DOT
#undef LOAD
#undef STORE
#undef WEIGH
#undef GREATER
#undef TALL1
#undef TALL2
#undef TALL3
#undef TALL4
#undef REST
#undef PANEL
