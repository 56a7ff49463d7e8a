// AdamW (Loshchilov & Hutter 2019, algorithm 2) with the gradient clipped and the weights averaged, in
// one pass over memory, whose pace is all that this costs; and the gradient's norm, in another.

#include <cmath>
#include <cstdint>
#include <vector>

struct Parameter {
    int64_t size;
    float* weight;
    const float* gradient;
    float *mean, *square, *average;  // the gradient's moments, the weights' average
    float keep;                      // of the weight: 1 - learning rate * decay
    float rate;                      // learning rate / (1 - beta1^t)
    float root;                      // 1 / sqrt(1 - beta2^t)
};

struct Settings {
    int64_t count, threads;
    const Parameter* parameters;
    float beta2, epsilon;
    float rest1, rest2;  // 1 - beta1 and 1 - beta2, which float32 has not from rounded betas
    float scale;    // of the gradient, by which it is clipped
    float average;  // the weights' share in their new average
};

namespace {

struct Block {
    const Parameter* of;
    int64_t from, to;
};

// All numbers of all parameters, cut for threads to take in turn.
std::vector<Block> blocks(const Settings& settings) {
    constexpr int64_t LARGEST = 1 << 15;
    std::vector<Block> all;
    for (const Parameter* p = settings.parameters; p < settings.parameters + settings.count; p++)
        for (int64_t from = 0; from < p->size; from += LARGEST)
            all.push_back({p, from, from + LARGEST < p->size ? from + LARGEST : p->size});
    return all;
}

}  // namespace

// Of the gradients of all parameters; the same whatever the number of threads.
extern "C" double norm(const Settings* settings) {
    const std::vector<Block> all = blocks(*settings);
    std::vector<double> sums(all.size());
#pragma omp parallel for num_threads(settings->threads)
    for (size_t i = 0; i < all.size(); i++) {
        const float* gradient = all[i].of->gradient;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t n = all[i].from; n < all[i].to; n++) sum += gradient[n] * gradient[n];
        sums[i] = sum;
    }
    double sum = 0;
    for (double one : sums) sum += one;
    return std::sqrt(sum);
}

extern "C" void step(const Settings* settings) {
    const std::vector<Block> all = blocks(*settings);
    const Settings s = *settings;
#pragma omp parallel for num_threads(s.threads)
    for (size_t i = 0; i < all.size(); i++) {
        const Parameter p = *all[i].of;
#pragma omp simd
        for (int64_t n = all[i].from; n < all[i].to; n++) {
            float gradient = p.gradient[n] * s.scale;
            float mean = p.mean[n] + s.rest1 * (gradient - p.mean[n]);
            float square = s.beta2 * p.square[n] + s.rest2 * gradient * gradient;
            float weight = p.keep * p.weight[n] - p.rate * mean / (std::sqrt(square) * p.root + s.epsilon);
            p.mean[n] = mean;
            p.square[n] = square;
            p.weight[n] = weight;
            p.average[n] += s.average * (weight - p.average[n]);
        }
    }
}
