// Where K and V of a token lie. One piece of memory holds K and V of one block, layer and KV head: for each tile of
// kTileTokens tokens first K, then V, so that whoever attends reads one stream; for int8 then the scales of K and of V,
// one float a token. `pack` elements lie side by side in one 32-bit lane, so that a dot-product instruction takes them
// in one step and no kernel has to shuffle:
//   K of a tile [head_dim / pack][kTileTokens][pack]      V of a tile [kTileTokens / pack][head_dim][pack]
#pragma once

#include <cstdint>

namespace pacpu {

enum class Element : int { kFloat32, kFloat16, kBFloat16, kInt8 };
constexpr int kNumFloats = 3;  // elements that activations come in: all but int8
constexpr int kNumElements = 4;

constexpr int kTileTokens = 16;

constexpr int64_t element_bytes(Element element) {
    return element == Element::kFloat32 ? 4 : element == Element::kInt8 ? 1 : 2;
}

// fp16 has no dot-product instruction, and is converted lane by lane.
constexpr int64_t pack_of(Element element) {
    return element == Element::kInt8 ? 4 : element == Element::kBFloat16 ? 2 : 1;
}

struct KvLayout {
    Element element;
    int64_t head_dim;
    int64_t block_size;  // tokens

    int64_t tiles_per_block() const { return (block_size + kTileTokens - 1) / kTileTokens; }
    int64_t stored_tokens() const { return tiles_per_block() * kTileTokens; }
    // Of K, or of V, which follows it at once.
    int64_t side_bytes() const { return kTileTokens * head_dim * element_bytes(element); }
    int64_t tile_bytes() const { return 2 * side_bytes(); }
    int64_t key_scale_offset() const { return tiles_per_block() * tile_bytes(); }
    int64_t value_scale_offset() const { return key_scale_offset() + stored_tokens() * int64_t{4}; }
    int64_t piece_bytes() const {
        return element == Element::kInt8 ? value_scale_offset() + stored_tokens() * int64_t{4} : key_scale_offset();
    }
};

}  // namespace pacpu
