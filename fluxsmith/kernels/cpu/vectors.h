// Vectors of WIDTH float32 numbers: 16, as a register of AVX-512 holds them, or 8, as one of AVX2.

#pragma once

#include <cmath>
#include <cstdint>

namespace {

static_assert(WIDTH == 16 || WIDTH == 8, "compile with -DWIDTH=16 or -DWIDTH=8");
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4)));

// The numbers of x and y, 0 to 2 WIDTH - 1, in another order.
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Ints{__VA_ARGS__})
#endif

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
inline Vec everywhere(float x) { return x - Vec{}; }
inline Vec larger(Vec x, Vec y) { return x < y ? y : x; }  // x where that is not a number

#if WIDTH == 16

inline Vec neighbours_exchanged(Vec x) {
    return SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

inline float sum(Vec x) {
    x += SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return x[0] + x[1];
}

// The first and the second halves of x and y, their numbers in turn.
inline Vec first_halves(Vec x, Vec y) {
    return SHUFFLE(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vec second_halves(Vec x, Vec y) {
    return SHUFFLE(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

#else

inline Vec neighbours_exchanged(Vec x) { return SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6); }

inline float sum(Vec x) {
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    return x[0] + x[1];
}

inline Vec first_halves(Vec x, Vec y) { return SHUFFLE(x, y, 0, 8, 1, 9, 2, 10, 3, 11); }
inline Vec second_halves(Vec x, Vec y) { return SHUFFLE(x, y, 4, 12, 5, 13, 6, 14, 7, 15); }

#endif

// exp(x) for x <= 0 to 2e-7 of it, no smaller than exp(-87): 2^n exp(r), where x = n log 2 + r and r
// is at most half of log 2, by exp's series with coefficients that fit that range best.
inline Vec exponential(Vec x) {
    const Vec round = everywhere(12582912.0f);  // 1.5 * 2^23: a sum with it has no fraction
    x = larger(x, everywhere(-87.0f));
    Vec shifted = x * 1.44269504f + round;
    Vec n = shifted - round;
    Vec r = x - n * 0.693145752f - n * 1.42860677e-6f;  // log 2 in two parts
    Vec power = (Vec)(((Ints)shifted + 127) << 23);
    Vec series = everywhere(1.98756915e-4f);
    series = series * r + 1.39819995e-3f;
    series = series * r + 8.33345191e-3f;
    series = series * r + 4.16657959e-2f;
    series = series * r + 1.66666655e-1f;
    series = series * r + 0.5f;
    return (series * r * r + r + 1.0f) * power;
}

// The rows' numbers in turn: as many rounds of it as WIDTH has bits transpose a square.
inline void shuffled(const Vec (&from)[WIDTH], Vec (&to)[WIDTH]) {
    for (int i = 0; i < WIDTH / 2; i++) {
        to[2 * i] = first_halves(from[i], from[i + WIDTH / 2]);
        to[2 * i + 1] = second_halves(from[i], from[i + WIDTH / 2]);
    }
}

inline void transpose_square(Vec (&x)[WIDTH]) {
    Vec y[WIDTH];
    shuffled(x, y), shuffled(y, x), shuffled(x, y);
#if WIDTH == 16
    shuffled(y, x);
#else
    for (int i = 0; i < WIDTH; i++) x[i] = y[i];
#endif
}

}  // namespace
