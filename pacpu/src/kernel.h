// What a compiled kernel is, and the table of them. A kernel knows no block tables, strides or threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pacpu {

enum class Element : int { kFloat32, kFloat16, kBFloat16 };
constexpr int kNumElements = 3;

inline int64_t element_bytes(Element element) { return element == Element::kFloat32 ? 4 : 2; }

// Most tokens a kernel call takes. Its pointer arrays then fit the L1 cache beside a tile of K and V.
constexpr int kSpanTokens = 256;
// Kernels compute scores for this many tokens at once: pointer arrays are padded to a multiple of it.
constexpr int kTokenBlock = 4;

// Attends to a span of tokens of one KV head for all `num_heads` query heads that share it.
//   query       [num_heads, head_dim], already multiplied by the softmax scale; head_dim is a multiple of 16
//   keys        one pointer per token to head_dim elements; padded to a multiple of kTokenBlock with readable pointers
//   values      likewise, not padded
//   accumulator [num_heads, head_dim], maximum, sum [num_heads]: the online-softmax state, updated in place
using SpanKernel = void (*)(int32_t num_heads, int32_t head_dim, int32_t num_tokens, const float* query,
                            const void* const* keys, const void* const* values, float* accumulator, float* maximum,
                            float* sum);

struct Target {
    const char* name;
    bool (*runnable)();
    SpanKernel kernels[kNumElements];  // by Element of the cache
};

// Compiled targets that this CPU can run, best first. The portable one is always there, and last.
std::vector<const Target*> runnable_targets();
std::vector<std::string> compiled_target_names();
// "auto" is the best runnable one. Throws std::invalid_argument naming the runnable ones.
const Target& find_target(const std::string& name);

}  // namespace pacpu
