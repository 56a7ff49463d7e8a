// What goes over the numbers before and after a linear layer's products, in one pass each: GELU, and
// on the way back the gradient through it, the transpose that the weights' gradient is multiplied
// from, and the sums that are the bias's. float32, row by row; results don't depend on the number of
// threads.

#include "vectors.h"

#include <algorithm>
#include <cstring>

extern "C" {

struct Piece {              // of the layer's outputs, side by side
    int64_t columns;        // a multiple of WIDTH
    const float* gradient;  // (rows, columns), each row `step` numbers after the last
    int64_t step;
    const float* before;    // (rows, columns), what GELU was applied to; null where nothing was
    float* through;         // (rows, columns), the gradient through it; null likewise
};

struct Problem {
    int64_t rows, threads, pieces;
    const Piece* piece;
    float* transposed;  // (columns of all pieces, rows); null where not wanted
    float* sums;        // (columns of all pieces)
};

}  // extern "C"

namespace {

// GELU's tanh form x (1 + tanh u) / 2 is x sigmoid(2 u), and 2 u is x (FIRST + THIRD x^2).
constexpr float FIRST = 1.5957691216057308f, THIRD = 0.07135481627260025f;

inline Vec sigmoid(Vec x) {
    Vec small = exponential(x < 0 ? x : -x);
    return (x < 0 ? small : everywhere(1)) / (1 + small);
}

// Its share of x. Far below 0 it is 0, and not what `exponential` stops at.
inline Vec share(Vec x) {
    return x < -20 ? Vec{} : sigmoid(x * (FIRST + THIRD * x * x));
}

inline Vec gelu(Vec x) { return x * share(x); }

inline Vec gelu_derivative(Vec x) {
    Vec part = share(x);
    return part + x * part * (1 - part) * (FIRST + 3 * THIRD * x * x);
}

// WIDTH columns of a piece, from `column`; in all of the layer's they begin at `first`.
template <bool GELU>
void columns(const Problem& problem, const Piece& piece, int64_t column, int64_t first) {
    const int64_t rows = problem.rows;
    Vec sums{};
    for (int64_t r = 0; r < rows; r += WIDTH) {
        const int64_t height = std::min<int64_t>(WIDTH, rows - r);
        Vec a[WIDTH] = {};
        for (int64_t i = 0; i < height; i++) {
            const float* from = piece.gradient + (r + i) * piece.step + column;
            __builtin_prefetch(from + WIDTH * piece.step);  // the next rows are pages away
            a[i] = load(from);
            if (GELU) {
                const int64_t at = (r + i) * piece.columns + column;
                __builtin_prefetch(piece.before + at + WIDTH * piece.columns);
                a[i] *= gelu_derivative(load(piece.before + at));
                store(piece.through + at, a[i]);
            }
            sums += a[i];
        }
        if (!problem.transposed) continue;
        transpose_square(a);
        float* to = problem.transposed + first * rows + r;
        for (int64_t i = 0; i < WIDTH; i++)
            if (height == WIDTH)
                store(to + i * rows, a[i]);
            else
                std::memcpy(to + i * rows, &a[i], 4 * height);
    }
    store(problem.sums + first, sums);
}

}  // namespace

extern "C" void backward(const Problem* problem) {
#pragma omp parallel num_threads(problem->threads)
    for (int64_t s = 0, first = 0; s < problem->pieces; first += problem->piece[s++].columns) {
        const Piece& piece = problem->piece[s];
#pragma omp for nowait
        for (int64_t column = 0; column < piece.columns; column += WIDTH)
            (piece.before ? columns<true> : columns<false>)(*problem, piece, column, first + column);
    }
}

// to = GELU(x), of `count` numbers, a multiple of WIDTH.
extern "C" void forward(const float* x, float* to, int64_t count, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < count; i += WIDTH) store(to + i, gelu(load(x + i)));
}
