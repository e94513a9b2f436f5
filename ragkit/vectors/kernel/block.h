/* One instruction set's inner loop, stamped out by including this file; maxsim.c sets the macros before.
 *
 *   NAME(x)  a name of this instruction set     TARGET  function attribute that switches the instructions on
 *   VECTOR   a register of query rows           TOKEN, SPREAD(p)  4 bytes of a token, in every lane
 *   UNIT     dimensions in 4 bytes              DOT(sum, token, query)  sum + token * query, lane by lane
 *   LOAD STORE ZERO GREATER
 *   TALL1 to TALL4   tokens at a time for 1 to 4 registers of query rows; 0: not used. Sums stay in registers, and enough
 *                    of them hide the latency of DOT: at least latency x issue rate, at most the registers there are.
 *
 * A panel is V registers of query rows, packed as [width / UNIT][V][lanes][UNIT], against n tokens of 4 * steps bytes.
 */

static ALWAYS TARGET void NAME(block)(const char *tokens, int64_t stride, const char *query, VECTOR *best, const int V, const int R) {
    VECTOR sum[12][4];
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = ZERO;
    }
    for (int64_t at = 0; at < stride; at += 4, query += V * sizeof(VECTOR)) {
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
    UNROLL for (int v = 0; v < V; v++) {
        UNROLL for (int r = 0; r < R; r++) best[v] = GREATER(best[v], sum[r][v]);
    }
}

#define REST(V, R, n) case n: if (n < R) NAME(block)(tokens, stride, query, best, V, n < R ? n : 1); break;

#define PANEL(V, R)                                                                                                      \
    static TARGET void NAME(panel##V)(const char *tokens, int64_t count, int64_t stride, const char *query, char *maxima) { \
        VECTOR best[4];                                                                                                  \
        UNROLL for (int v = 0; v < V; v++) best[v] = LOAD(maxima + v * sizeof(VECTOR));                                  \
        for (; count >= R; count -= R, tokens += R * stride) NAME(block)(tokens, stride, query, best, V, R);             \
        switch (count) {                                                                                                 \
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

static void NAME(panel)(const void *tokens, int64_t count, int64_t width, const void *query, int vectors, void *maxima) {
    const int64_t stride = width / UNIT * 4;
    switch (vectors) {
        case 1: NAME(panel1)(tokens, count, stride, query, maxima); return;
        case 2: NAME(panel2)(tokens, count, stride, query, maxima); return;
#if TALL3
        case 3: NAME(panel3)(tokens, count, stride, query, maxima); return;
        case 4: NAME(panel4)(tokens, count, stride, query, maxima); return;
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
#undef ZERO
#undef GREATER
#undef TALL1
#undef TALL2
#undef TALL3
#undef TALL4
#undef REST
#undef PANEL
