// Flux's attention over few tokens, from the projections of the streams that meet in it to what each
// of them gets back, and its gradient: queries and keys normalised (RMSNorm), rotated (RoPE), the
// softmax of their products, and the values weighted by it, all while a head lies in the nearest
// cache. A chain of operations each of which reads and writes memory takes three to four times as long.
//
// float32, row by row. Nothing is kept for the gradient: to compute the weights again is cheaper than
// to read them. Results don't depend on the number of threads.

#include "vectors.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

// Matrices that stay in the nearest caches. -----------------------------------------------------------

// to (columns, ldt) = xᵀ, x (rows, columns); columns is a multiple of WIDTH. Of the rest of a row of
// `to` up to a multiple of WIDTH zeros stay zeros.
void transpose(const float* x, int64_t rows, int64_t columns, float* to, int64_t ldt) {
    for (int64_t r = 0; r < rows; r += WIDTH)
        for (int64_t c = 0; c < columns; c += WIDTH) {
            if (r + 1 == rows) {  // 16 image tokens and one of text: not worth a square
                for (int i = 0; i < WIDTH; i++) to[(c + i) * ldt + r] = x[r * columns + c + i];
                continue;
            }
            Vec a[WIDTH];
            for (int i = 0; i < WIDTH; i++)
                a[i] = r + i < rows ? load(x + (r + i) * columns + c) : Vec{};
            transpose_square(a);
            for (int i = 0; i < WIDTH; i++) store(to + (c + i) * ldt + r, a[i]);
        }
}

// A matrix read row by row or, transposed, column by column.
struct Left {
    const float* at;
    int64_t by_row, by_column;
    Left from(int64_t row) const { return {at + row * by_row, by_row, by_column}; }
};

// ROWS by COLUMNS * WIDTH numbers of a product, kept in registers.
template <int ROWS, int COLUMNS>
void tile(Left x, const float* y, int64_t ldy, int64_t inner, float* to, int64_t ldt) {
    Vec sums[ROWS][COLUMNS] = {};
    for (int64_t i = 0; i < inner; i++) {
        Vec right[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) right[c] = load(y + i * ldy + c * WIDTH);
        for (int r = 0; r < ROWS; r++) {
            Vec left = everywhere(x.at[r * x.by_row + i * x.by_column]);
            for (int c = 0; c < COLUMNS; c++) sums[r][c] += left * right[c];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) store(to + r * ldt + c * WIDTH, sums[r][c]);
}

template <int COLUMNS>
void strip(Left x, int64_t rows, const float* y, int64_t ldy, int64_t inner, float* to, int64_t ldt) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6) tile<6, COLUMNS>(x.from(r), y, ldy, inner, to + r * ldt, ldt);
    x = x.from(r), to += r * ldt;
    switch (rows - r) {
        case 5: return tile<5, COLUMNS>(x, y, ldy, inner, to, ldt);
        case 4: return tile<4, COLUMNS>(x, y, ldy, inner, to, ldt);
        case 3: return tile<3, COLUMNS>(x, y, ldy, inner, to, ldt);
        case 2: return tile<2, COLUMNS>(x, y, ldy, inner, to, ldt);
        case 1: return tile<1, COLUMNS>(x, y, ldy, inner, to, ldt);
    }
}

// to (rows, columns) = x (rows, inner) y (inner, columns); columns is a multiple of WIDTH.
void multiply(Left x, int64_t rows, const float* y, int64_t ldy, int64_t inner, float* to, int64_t ldt,
              int64_t columns) {
    int64_t c = 0;
    if (WIDTH == 16)  // AVX-512 has 32 registers: room for 6 x 4 sums; AVX2 has 16, for 6 x 2
        for (; c + 4 * WIDTH <= columns; c += 4 * WIDTH)
            strip<4>(x, rows, y + c, ldy, inner, to + c, ldt);
    for (; c + 2 * WIDTH <= columns; c += 2 * WIDTH)
        strip<2>(x, rows, y + c, ldy, inner, to + c, ldt);
    if (c < columns) strip<1>(x, rows, y + c, ldy, inner, to + c, ldt);
}

}  // namespace

// What the caller says. -----------------------------------------------------------------------------

extern "C" {

struct Stream {  // one of those that meet; pointers are null where not needed
    int64_t length;
    const float *qkv, *q_scale, *k_scale;   // (batch, length, 3, heads, size), (size) each
    float* out;                             // (batch, length, heads, size)
    const float* dout;                      // its gradient, (batch, length, dout_step): a token's
    int64_t dout_step;                      // heads first, then what is not looked at
    float *dqkv, *dq_scale, *dk_scale;
};

struct Problem {
    int64_t batch, heads, threads, streams;
    const Stream* stream;
    const float *cosine, *sine;  // (length of all streams, size / 2)
    const bool* present;         // (batch, length of all streams): keys attended to; null for all
};

}  // extern "C"

namespace {

constexpr float EPSILON = 1e-6f;   // of RMSNorm
constexpr int64_t SIZE = HEAD_SIZE;  // numbers of a head, a multiple of WIDTH: one library a size
constexpr int N = SIZE / WIDTH;     // registers that hold it
static_assert(SIZE % WIDTH == 0, "heads fill registers");

// One head. -----------------------------------------------------------------------------------------

// The rotations of all tokens, number by number: y = x * cosine + neighbours_exchanged(x) * sine.
struct Rotations {
    std::vector<float> cosine, sine;

    explicit Rotations(const Problem& problem, int64_t length)
        : cosine(length * SIZE), sine(length * SIZE) {
        for (size_t i = 0; i < cosine.size(); i += 2) {
            cosine[i] = cosine[i + 1] = problem.cosine[i / 2];
            sine[i + 1] = problem.sine[i / 2];
            sine[i] = -sine[i + 1];
        }
    }
};

// x / rms(x) into y; returns 1 / rms(x).
float normalise(const float* x, Vec (&y)[N]) {
    Vec squares{};
    for (int n = 0; n < N; n++) {
        y[n] = load(x + n * WIDTH);
        squares += y[n] * y[n];
    }
    float inverse = 1 / std::sqrt(sum(squares) / SIZE + EPSILON);
    for (int n = 0; n < N; n++) y[n] *= inverse;
    return inverse;
}

// A query's or key's way into the product.
void normalise_and_rotate(const float* x, const float* scale, float factor, const float* cosine,
                          const float* sine, float* to) {
    Vec y[N];
    normalise(x, y);
    for (int n = 0; n < SIZE; n += WIDTH) {
        Vec scaled = y[n / WIDTH] * load(scale + n) * factor;
        store(to + n, scaled * load(cosine + n) + neighbours_exchanged(scaled) * load(sine + n));
    }
}

// Its gradient's way back from dy to dx; what the scale gets is added to dscale.
void rotate_and_normalise_back(const float* x, const float* dy, const float* scale, float factor,
                               const float* cosine, const float* sine, float* dx, float* dscale) {
    Vec y[N], dnormal[N], along{};
    float inverse = normalise(x, y);
    for (int i = 0; i < N; i++) {
        int n = i * WIDTH;
        Vec turned = load(dy + n) * factor;
        turned = turned * load(cosine + n) - neighbours_exchanged(turned) * load(sine + n);
        store(dscale + n, load(dscale + n) + turned * y[i]);
        dnormal[i] = turned * load(scale + n);
        along += dnormal[i] * y[i];
    }
    float mean = sum(along) / SIZE;
    for (int i = 0; i < N; i++) store(dx + i * WIDTH, (dnormal[i] - y[i] * mean) * inverse);
}

// A thread's matrices for one head: l tokens. What has a column for each query
// is as wide as `across`, a multiple of WIDTH: softmax then runs down the columns of a register.
class Head {
    const Problem& problem;
    const Rotations& rotations;
    const int64_t l, across;
    const float factor = 1 / std::sqrt(float(SIZE));  // of queries
    std::vector<float> memory;
    float *q, *k, *v, *dout, *dq, *dk, *dv;  // (l, SIZE)
    float* transposed;                       // (SIZE, across), zeros past l
    float *p, *dp;                           // (l keys, across queries)

   public:
    Head(const Problem& of, const Rotations& with, int64_t length, bool back)
        : problem(of), rotations(with), l(length), across((length + WIDTH - 1) / WIDTH * WIDTH),
          memory((back ? 7 : 3) * l * SIZE + SIZE * across + (back ? 2 : 1) * l * across + WIDTH) {
        auto start = reinterpret_cast<uintptr_t>(memory.data());
        float* at = memory.data() + (-start % sizeof(Vec)) / sizeof(float);  // whole cache lines
        for (float** matrix : {&q, &k, &v}) *matrix = at, at += l * SIZE;
        transposed = at, at += SIZE * across;
        p = at, at += l * across;
        if (!back) return;
        for (float** matrix : {&dout, &dq, &dk, &dv}) *matrix = at, at += l * SIZE;
        dp = at;
    }

    void forward(int64_t b, int64_t h) {
        weights(b, h);
        int64_t row = 0;
        for (int s = 0; s < problem.streams; s++) {
            const Stream& stream = problem.stream[s];
            multiply(queries_keys(p + row), stream.length, v, SIZE, l,
                     stream.out + place(stream, b, h, 0, 1), problem.heads * SIZE, SIZE);
            row += stream.length;
        }
    }

    // dscales (streams, 2, SIZE): what the scales of queries and keys get is added.
    void backward(int64_t b, int64_t h, float* dscales) {
        weights(b, h);
        int64_t row = 0;
        for (int s = 0; s < problem.streams; s++) {
            const Stream& stream = problem.stream[s];
            for (int64_t i = 0; i < stream.length; i++, row++)
                std::memcpy(dout + row * SIZE,
                            stream.dout + (b * stream.length + i) * stream.dout_step + h * SIZE,
                            4 * SIZE);
        }
        multiply(keys_queries(p), l, dout, SIZE, l, dv, SIZE, SIZE);
        transpose(dout, l, SIZE, transposed, across);
        multiply({v, SIZE, 1}, l, transposed, across, SIZE, dp, across, across);
        through_softmax();
        multiply(queries_keys(dp), l, k, SIZE, l, dq, SIZE, SIZE);
        multiply(keys_queries(dp), l, q, SIZE, l, dk, SIZE, SIZE);
        row = 0;
        for (int s = 0; s < problem.streams; s++, dscales += 2 * SIZE) {
            const Stream& stream = problem.stream[s];
            for (int64_t i = 0; i < stream.length; i++, row++) {
                const float *cosine = &rotations.cosine[row * SIZE], *sine = &rotations.sine[row * SIZE];
                int64_t at = place(stream, b, h, i, 3), part = problem.heads * SIZE;
                rotate_and_normalise_back(stream.qkv + at, dq + row * SIZE, stream.q_scale, factor,
                                             cosine, sine, stream.dqkv + at, dscales);
                at += part;
                rotate_and_normalise_back(stream.qkv + at, dk + row * SIZE, stream.k_scale, 1,
                                             cosine, sine, stream.dqkv + at, dscales + SIZE);
                std::memcpy(stream.dqkv + at + part, dv + row * SIZE, 4 * SIZE);
            }
        }
    }

   private:
    Left queries_keys(const float* x) const { return {x, 1, across}; }
    Left keys_queries(const float* x) const { return {x, across, 1}; }

    // Where head h of token i begins in (batch, length, parts, heads, SIZE).
    int64_t place(const Stream& stream, int64_t b, int64_t h, int64_t i, int64_t parts) const {
        return ((b * stream.length + i) * parts * problem.heads + h) * SIZE;
    }

    // q, k and v of the head, and p: each query's softmax over the keys.
    void weights(int64_t b, int64_t h) {
        int64_t row = 0, part = problem.heads * SIZE;
        for (int s = 0; s < problem.streams; s++) {
            const Stream& stream = problem.stream[s];
            for (int64_t i = 0; i < stream.length; i++, row++) {
                const float *cosine = &rotations.cosine[row * SIZE], *sine = &rotations.sine[row * SIZE];
                const float* x = stream.qkv + place(stream, b, h, i, 3);
                if (h + 1 < problem.heads)  // processors don't foresee steps from token to token
                    for (int n = 0; n < 3 * N; n++)
                        __builtin_prefetch(x + SIZE + n / N * part + n % N * WIDTH);
                normalise_and_rotate(x, stream.q_scale, factor, cosine, sine, q + row * SIZE);
                normalise_and_rotate(x + part, stream.k_scale, 1, cosine, sine, k + row * SIZE);
                std::memcpy(v + row * SIZE, x + 2 * part, 4 * SIZE);
            }
        }
        transpose(q, l, SIZE, transposed, across);
        multiply({k, SIZE, 1}, l, transposed, across, SIZE, p, across, across);
        softmax(problem.present ? problem.present + b * l : nullptr);
    }

    void softmax(const bool* present) {
        for (float* x = p; x < p + across; x += WIDTH) {
            Vec top = everywhere(-INFINITY), all{};
            for (int64_t j = 0; j < l; j++)
                if (!present || present[j]) top = larger(top, load(x + j * across));
            for (int64_t j = 0; j < l; j++) {
                Vec power{};
                if (!present || present[j]) power = exponential(load(x + j * across) - top);
                store(x + j * across, power);
                all += power;
            }
            Vec share = all == 0 ? Vec{} : 1 / all;  // no key at all: nothing
            for (int64_t j = 0; j < l; j++) store(x + j * across, load(x + j * across) * share);
        }
    }

    // dp from the weights' gradient to the logits': p (dp - sum over keys of p dp).
    void through_softmax() {
        for (int64_t i = 0; i < across; i += WIDTH) {
            Vec mean{};
            for (int64_t at = i; at < l * across; at += across) mean += load(p + at) * load(dp + at);
            for (int64_t at = i; at < l * across; at += across)
                store(dp + at, load(p + at) * (load(dp + at) - mean));
        }
    }
};

// All heads. ----------------------------------------------------------------------------------------

int64_t length(const Problem& problem) {
    int64_t all = 0;
    for (int s = 0; s < problem.streams; s++) all += problem.stream[s].length;
    return all;
}

// No more than there are heads: each thread has memory of its own.
int64_t threads(const Problem& problem) {
    return std::max<int64_t>(1, std::min(problem.threads, problem.batch * problem.heads));
}

void forward(const Problem& problem) {
    const int64_t l = length(problem);
    const Rotations rotations(problem, l);
#pragma omp parallel num_threads(threads(problem))
    {
        Head head(problem, rotations, l, false);
#pragma omp for
        for (int64_t i = 0; i < problem.batch * problem.heads; i++)
            head.forward(i / problem.heads, i % problem.heads);
    }
}

void backward(const Problem& problem) {
    const int64_t l = length(problem);
    const Rotations rotations(problem, l);
    // A sum for each head, added in order at the end, whichever thread took which head.
    const int64_t heads = problem.batch * problem.heads, sums = problem.streams * 2 * SIZE;
    std::vector<float> dscales(std::max<int64_t>(heads, 1) * sums);
#pragma omp parallel num_threads(threads(problem))
    {
        Head head(problem, rotations, l, true);
#pragma omp for
        for (int64_t i = 0; i < heads; i++)
            head.backward(i / problem.heads, i % problem.heads, &dscales[i * sums]);
    }
    for (int64_t i = 1; i < heads; i++)
        for (int64_t n = 0; n < sums; n++) dscales[n] += dscales[i * sums + n];
    const float* from = dscales.data();
    for (int s = 0; s < problem.streams; s++)
        for (float* to : {problem.stream[s].dq_scale, problem.stream[s].dk_scale}) {
            std::memcpy(to, from, 4 * SIZE);
            from += SIZE;
        }
}

}  // namespace

extern "C" void attention(const Problem* problem, int32_t back) {
    (back ? backward : forward)(*problem);
}
