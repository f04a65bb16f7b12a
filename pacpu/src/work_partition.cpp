#include "work_partition.h"

#include <algorithm>

namespace pacpu {
namespace {

// Enough that a slow core leaves its share to the others.
constexpr int64_t kItemsPerThread = 8;
// The least that one item reads in one go: heads of a block are neighbours in memory, and short runs cost bandwidth.
constexpr int64_t kMinRunBytes = 8 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t chunks_of(int64_t num_tiles, int64_t chunk_tiles) {
    return std::max<int64_t>(1, ceil_div(num_tiles, chunk_tiles));
}

int64_t count_slots(const KvLayout& layout, int64_t chunk_tiles, const std::vector<int64_t>& context_lens) {
    int64_t slots = 0;
    for (const int64_t length : context_lens) {
        const int64_t chunks = chunks_of(row_tiles(layout, length), chunk_tiles);
        if (chunks > 1) slots += chunks;
    }
    return slots;
}

}  // namespace

int64_t row_tiles(const KvLayout& layout, int64_t num_tokens) {
    return num_tokens / layout.block_size * layout.tiles_per_block() +
           ceil_div(num_tokens % layout.block_size, kTileTokens);
}

void partition_work(const KvLayout& layout, int64_t num_kv_heads, int64_t num_threads, int64_t max_slots,
                    const std::vector<int64_t>& context_lens, WorkPartition* partition) {
    int64_t total_tiles = 0, longest = 1;
    for (const int64_t length : context_lens) {
        const int64_t tiles = row_tiles(layout, length);
        total_tiles += tiles;
        longest = std::max(longest, tiles);
    }
    // Tiles of one head that an item may have. To take fewer heads costs nothing while runs are long enough; to take
    // fewer tokens means another partial result to write, fetch and merge for each head.
    const int64_t most = total_tiles * num_kv_heads / (kItemsPerThread * num_threads);
    const int64_t min_heads = std::min(num_kv_heads, ceil_div(kMinRunBytes, layout.piece_bytes()));
    int64_t chunk_tiles = kChunkTokens / kTileTokens;
    while (chunk_tiles < longest && 2 * chunk_tiles * min_heads <= most) chunk_tiles *= 2;
    while (count_slots(layout, chunk_tiles, context_lens) > max_slots) chunk_tiles *= 2;
    partition->num_slots = count_slots(layout, chunk_tiles, context_lens);
    int64_t heads = num_kv_heads;
    while (heads > min_heads && std::min(chunk_tiles, longest) * heads > most)
        heads = std::max(min_heads, ceil_div(heads, 2));

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
