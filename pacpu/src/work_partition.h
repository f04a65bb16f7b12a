// Cuts the rows of an iteration into the work items that threads take one by one.
#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"

namespace pacpu {

// Some tokens of a row, for some of its KV heads. The chunks of a row that has more than one leave partial results in
// consecutive slots, and whoever finishes the last merges them.
struct WorkItem {
    int64_t row, first_tile, num_tiles;
    int64_t first_head, num_heads;
    int64_t first_slot, num_slots, slot;  // num_slots is 0 where the row is one chunk
    bool ends_row;
};

struct WorkPartition {
    std::vector<WorkItem> items;
    int64_t num_slots = 0;  // in use
};

// The least of a chunk.
constexpr int64_t kChunkTokens = 256;

// Tiles of a row of that many tokens: the last tile of every block may be short.
int64_t row_tiles(const KvLayout& layout, int64_t num_tokens);

// Chunks are as long as leaves every thread several items, and longer where their partial results would not fit
// max_slots, 1 or more. Rows of no tokens get items of no tiles.
void partition_work(const KvLayout& layout, int64_t num_kv_heads, int64_t num_threads, int64_t max_slots,
                    const std::vector<int64_t>& context_lens, WorkPartition* partition);

}  // namespace pacpu
