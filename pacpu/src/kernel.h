// What a compiled kernel is, and the table of them. A kernel knows no block tables, rows or threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout.h"

namespace pacpu {

// A run of one row's tokens for some neighbouring KV heads, and the online-softmax state to be updated.
// Scores are in base 2: the query is already multiplied by the softmax scale and by log2(e).
struct Span {
    KvLayout layout;
    int64_t num_kv_heads, group;  // query heads that share a KV head
    int64_t head_stride_bytes;    // from a piece to that of the next KV head
    // Pieces of the first KV head in the blocks that the run touches; first_tile counts from the first block's start,
    // num_tokens from there to the end of the row. The last tile of a block or row may be short.
    const char* const* blocks;
    int64_t first_tile, num_tiles, num_tokens;
    const float* query;  // [num_kv_heads * group, head_dim]
    float* accumulator;  // likewise
    float* maximum;      // [num_kv_heads * group]: a bound that scores exceed by kMaximumSlack at most
    float* sum;          // [num_kv_heads * group, kTileTokens], to be added up
    char* scratch;       // kernel_scratch_bytes(), aligned to 64 bytes
};

using SpanKernel = void (*)(const Span& span);
using ToFloat = void (*)(const void* source, int64_t count, float factor, float* target);
using FromFloat = void (*)(const float* source, int64_t count, float factor, void* target);

// The maximum follows the scores only when they exceed it by this much (in base 2), so that rescaling the accumulator
// is rare; weights stay below 2^8, which costs float32 no precision.
constexpr float kMaximumSlack = 8.0f;

struct Target {
    const char* name;
    bool (*runnable)();
    SpanKernel attend[kNumElements];   // by Element of the cache
    ToFloat to_float[kNumFloats];      // target = factor * source
    FromFloat from_float[kNumFloats];  // to the nearest even
};

// A kernel's scratch: the query as it wants it, then two tiles of K and V with scales, padded with zeros.
constexpr int64_t prepared_query_bytes(int64_t num_q_heads, int64_t head_dim) {
    return (num_q_heads * (head_dim + 4) * 4 + 63) / 64 * 64;
}
constexpr int64_t padded_tile_bytes(int64_t head_dim) { return 2 * kTileTokens * (head_dim + 1) * 4; }
constexpr int64_t kernel_scratch_bytes(int64_t num_q_heads, int64_t head_dim) {
    return prepared_query_bytes(num_q_heads, head_dim) + 2 * padded_tile_bytes(head_dim);
}

// Compiled targets that this CPU can run, best first. The portable one is always there, and last.
std::vector<const Target*> runnable_targets();
std::vector<std::string> compiled_target_names();
// "auto" is the best runnable one. Throws std::invalid_argument naming the runnable ones.
const Target& find_target(const std::string& name);

}  // namespace pacpu
