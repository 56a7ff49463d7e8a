// Vectors of 16 float32 numbers, as a register of AVX-512 holds them.

#pragma once

#include <cmath>
#include <cstdint>

namespace {

constexpr int WIDTH = 16;
typedef float Vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4)));

// The numbers of x and y, 0 to 31, in another order.
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Ints{__VA_ARGS__})
#endif

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
inline Vec everywhere(float x) { return x - Vec{}; }
inline Vec larger(Vec x, Vec y) { return x < y ? y : x; }  // x where that is not a number

inline Vec neighbours_exchanged(Vec x) {
    return SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

inline float sum(Vec x) {
    x += SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return x[0] + x[1];
}

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

// The halves of the rows' numbers in turn: four rounds of it transpose a square of 16 by 16.
inline void shuffled(const Vec (&from)[WIDTH], Vec (&to)[WIDTH]) {
    for (int i = 0; i < WIDTH / 2; i++) {
        Vec a = from[i], b = from[i + WIDTH / 2];
        to[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        to[2 * i + 1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
}

}  // namespace
