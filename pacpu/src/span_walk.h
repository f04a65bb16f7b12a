// The walk over a span's tiles that all kernels share: block by block, in a block head by head, so that memory is read
// as one stream; by kernels that take two tiles at a time, two blocks of one tile each at once, two streams. Short
// tiles are padded, and the tile that comes some kilobytes later is named for prefetching. Here and in the kernels'
// headers all is in an unnamed namespace: files are compiled for different instruction sets, and the linker must not
// merge their functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernel.h"

namespace pacpu {
namespace {

struct Tile {
    const char *key, *value;                 // in the layout of layout.h
    const float *key_scales, *value_scales;  // of int8
    int64_t num_tokens;                      // what lies beyond is zero
    const char *next_key, *next_value;       // to be prefetched: as much as this tile
};

class SpanWalk {
  public:
    // Stops at every `step`th tile of a head, 1 or 2.
    explicit SpanWalk(const Span& span, int64_t step = 1)
        : span_(span),
          step_(step),
          tiles_per_block_(span.layout.tiles_per_block()),
          tile_bytes_(span.layout.tile_bytes()),
          side_bytes_(span.layout.side_bytes()),
          end_tile_(span.first_tile + span.num_tiles),
          across_blocks_(tiles_per_block_ < step) {
        enter_blocks();
    }

    bool done() const { return block_ * tiles_per_block_ >= end_tile_; }
    int64_t head() const { return head_; }
    // How many of the next `step` tiles there are; the methods below take one of them.
    int64_t num_tiles() const { return std::min(step_, last_tile_ - tile_); }
    const char* key(int64_t i = 0) const { return piece(i) + in_block(i) * tile_bytes_; }
    const char* value(int64_t i = 0) const { return key(i) + side_bytes_; }
    const float* key_scales() const { return scales(span_.layout.key_scale_offset()); }
    const float* value_scales() const { return scales(span_.layout.value_scale_offset()); }
    int64_t num_tokens(int64_t i = 0) const {
        const int64_t first = in_block(i) * kTileTokens;
        const int64_t in_row = block(i) * span_.layout.block_size + first;
        return std::min({int64_t{kTileTokens}, span_.layout.block_size - first, span_.num_tokens - in_row});
    }

    void advance() {
        tile_ += step_;
        if (tile_ < last_tile_) return;
        if (++head_ < span_.num_kv_heads) {
            tile_ = first_tile_;
            return;
        }
        head_ = 0;
        block_ += blocks_at_once();
        enter_blocks();
    }

  private:
    // Across blocks, tile_ counts blocks of one tile.
    int64_t blocks_at_once() const { return across_blocks_ ? step_ : 1; }
    int64_t block(int64_t i) const { return across_blocks_ ? block_ + tile_ + i : block_; }
    int64_t in_block(int64_t i) const { return across_blocks_ ? 0 : tile_ + i; }
    const char* piece(int64_t i) const { return span_.blocks[block(i)] + head_ * span_.head_stride_bytes; }
    const float* scales(int64_t offset) const {
        return reinterpret_cast<const float*>(piece(0) + offset) + in_block(0) * kTileTokens;
    }
    void enter_blocks() {
        first_tile_ = tile_ = block_ == 0 ? span_.first_tile : 0;
        last_tile_ = std::min(blocks_at_once() * tiles_per_block_, end_tile_ - block_ * tiles_per_block_);
    }

    const Span& span_;
    const int64_t step_, tiles_per_block_, tile_bytes_, side_bytes_, end_tile_;
    const bool across_blocks_;
    int64_t block_ = 0, head_ = 0, tile_ = 0, first_tile_ = 0, last_tile_ = 0;  // tiles from the start of block_
};

// Asks for what a walk comes to first.
inline void prefetch_ahead(const Span& span, SpanWalk* ahead, int64_t stops) {
    for (int64_t i = 0; i < stops && !ahead->done(); ++i, ahead->advance())
        for (int64_t tile = 0; tile < ahead->num_tiles(); ++tile)
            for (int64_t byte = 0; byte < span.layout.tile_bytes(); byte += 64)
                __builtin_prefetch(ahead->key(tile) + byte, 0, 2);
}

// Copies K, V and scales of a short tile into the i-th place for that and fills up with zeros: memory beyond a row's
// end may hold anything, and a weight of zero does not silence a NaN.
inline void pad_tile(const Span& span, Tile* tile, int64_t i = 0) {
    const int64_t bytes = span.layout.side_bytes(), head_dim = span.layout.head_dim;
    const int64_t element = element_bytes(span.layout.element), pack = pack_of(span.layout.element);
    char* key =
        span.scratch + prepared_query_bytes(span.num_kv_heads * span.group, head_dim) + i * padded_tile_bytes(head_dim);
    char* value = key + bytes;
    const auto tokens = static_cast<size_t>(tile->num_tokens);
    std::memset(key, 0, static_cast<size_t>(2 * bytes));
    const int64_t key_row = kTileTokens * pack * element;
    for (int64_t row = 0; row < bytes; row += key_row)
        std::memcpy(key + row, tile->key + row, tokens * static_cast<size_t>(pack * element));
    const int64_t full_rows = tile->num_tokens / pack;
    const int64_t value_row = head_dim * pack * element;
    std::memcpy(value, tile->value, static_cast<size_t>(full_rows * value_row));
    const auto rest = static_cast<size_t>((tile->num_tokens - full_rows * pack) * element);
    for (int64_t lane = full_rows * value_row; rest > 0 && lane < (full_rows + 1) * value_row; lane += pack * element)
        std::memcpy(value + lane, tile->value + lane, rest);
    tile->key = key;
    tile->value = value;
    if (span.layout.element != Element::kInt8) return;
    auto* scales = reinterpret_cast<float*>(value + bytes);
    std::memset(scales, 0, 2 * kTileTokens * sizeof(float));
    std::memcpy(scales, tile->key_scales, tokens * sizeof(float));
    std::memcpy(scales + kTileTokens, tile->value_scales, tokens * sizeof(float));
    tile->key_scales = scales;
    tile->value_scales = scales + kTileTokens;
}

inline void prefetch_scales(const SpanWalk& walk) {
    __builtin_prefetch(walk.key_scales(), 0, 2);
    __builtin_prefetch(walk.value_scales(), 0, 2);
}

// Several query heads keep a core busy for longer than memory's latency: the next tile is on its way meanwhile, from
// wherever it is.
constexpr int64_t kPrefetchBytes = 8192;

// A Kernel is made from a span, preparing the query in its scratch, and has attend(tile, head). kStreams says that with
// one query head it reads a tile in the order of memory.
template <typename Kernel>
void attend_span(const Span& span) {
    // One head is a mere stream, which goes fastest close ahead of what the hardware fetches by itself.
    constexpr int64_t kStreamPrefetchBytes = 2048;
    const int64_t distance = std::max<int64_t>(1, kPrefetchBytes / span.layout.tile_bytes());
    SpanWalk walk(span), ahead(span);
    prefetch_ahead(span, &ahead, distance);
    Kernel kernel(span);
    for (; !walk.done(); walk.advance()) {
        Tile tile{walk.key(),        walk.value(), walk.key_scales(), walk.value_scales(),
                  walk.num_tokens(), walk.key(),   walk.value()};
        if (Kernel::kStreams && span.group == 1) {
            tile.next_key = tile.key + kStreamPrefetchBytes;
            tile.next_value = tile.value + kStreamPrefetchBytes;
        } else if (!ahead.done()) {
            tile.next_key = ahead.key();
            tile.next_value = ahead.value();
            if (span.layout.element == Element::kInt8) prefetch_scales(ahead);
            ahead.advance();
        }
        if (tile.num_tokens < kTileTokens) pad_tile(span, &tile);
        kernel.attend(tile, walk.head());
    }
}

// Likewise for a Kernel with attend<tiles>(tiles, head) for one or two tiles of consecutive tokens.
template <typename Kernel>
void attend_span_by_pairs(const Span& span) {
    SpanWalk walk(span, 2), ahead(span, 2);
    const int64_t distance = std::max<int64_t>(1, kPrefetchBytes / (2 * span.layout.tile_bytes()));
    prefetch_ahead(span, &ahead, distance);
    Kernel kernel(span);
    for (; !walk.done(); walk.advance()) {
        Tile tiles[2];
        const int64_t num_tiles = walk.num_tiles();
        for (int64_t i = 0; i < num_tiles; ++i) {
            Tile& tile = tiles[i];
            tile = {walk.key(i), walk.value(i), nullptr, nullptr, walk.num_tokens(i), walk.key(i), walk.value(i)};
            if (!ahead.done() && i < ahead.num_tiles()) {
                tile.next_key = ahead.key(i);
                tile.next_value = ahead.value(i);
            }
            if (tile.num_tokens < kTileTokens) pad_tile(span, &tile, i);
        }
        if (!ahead.done()) ahead.advance();
        if (num_tiles == 2)
            kernel.template attend<2>(tiles, walk.head());
        else
            kernel.template attend<1>(tiles, walk.head());
    }
}

}  // namespace
}  // namespace pacpu
