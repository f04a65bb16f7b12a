#include "work_partition.h"

#include <algorithm>

namespace pacpu {
namespace {

// Enough that a slow core leaves its share to the others.
constexpr int64_t kItemsPerThread = 16;
// The least that one item reads in one go: heads of a block are neighbours in memory, and short runs cost bandwidth.
constexpr int64_t kMinRunBytes = 16 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t chunks_of(int64_t num_tiles, int64_t chunk_tiles) {
    return std::max<int64_t>(1, ceil_div(num_tiles, chunk_tiles));
}

}  // namespace

int64_t row_tiles(const KvLayout& layout, int64_t num_tokens) {
    return num_tokens / layout.block_size * layout.tiles_per_block() +
           ceil_div(num_tokens % layout.block_size, kTileTokens);
}

void partition_work(const KvLayout& layout, int64_t num_kv_heads, int64_t num_threads, int64_t max_slots,
                    const std::vector<int64_t>& context_lens, WorkPartition* partition) {
    int64_t chunk_tiles = kChunkTokens / kTileTokens / 2;
    int64_t num_chunks;
    do {
        chunk_tiles *= 2;
        num_chunks = 0;
        partition->num_slots = 0;
        for (const int64_t length : context_lens) {
            const int64_t chunks = chunks_of(row_tiles(layout, length), chunk_tiles);
            num_chunks += chunks;
            if (chunks > 1) partition->num_slots += chunks;
        }
    } while (partition->num_slots > max_slots);

    int64_t heads = num_kv_heads;
    while (heads > 1 && num_chunks * ceil_div(num_kv_heads, heads) < kItemsPerThread * num_threads &&
           ceil_div(heads, 2) * layout.piece_bytes() >= kMinRunBytes)
        heads = ceil_div(heads, 2);

    partition->items.clear();
    int64_t next_slot = 0;
    for (size_t row = 0; row < context_lens.size(); ++row) {
        const int64_t num_tiles = row_tiles(layout, context_lens[row]);
        const int64_t chunks = chunks_of(num_tiles, chunk_tiles);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t first_tile = chunk * chunk_tiles;
            for (int64_t head = 0; head < num_kv_heads; head += heads)
                partition->items.push_back({static_cast<int64_t>(row), first_tile,
                                            std::min(chunk_tiles, num_tiles - first_tile), head,
                                            std::min(heads, num_kv_heads - head), next_slot, chunks > 1 ? chunks : 0,
                                            next_slot + chunk, chunk + 1 == chunks});
        }
        if (chunks > 1) next_slot += chunks;
    }
}

}  // namespace pacpu
