#include "work_partition.h"

#include <algorithm>

namespace pacpu {
namespace {

// Enough that a slow core leaves its share to the others.
constexpr int64_t kItemsPerThread = 8, kItemsLeftPerThread = 2;  // in all, and of the last ones
// The least that one item reads in one go: heads of a block are neighbours in memory, and short runs cost bandwidth.
constexpr int64_t kMinRunBytes = 8 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The sizes that rows are cut by.
struct Cuts {
    std::vector<int64_t> tiles, chunk_tiles;  // of each row
    int64_t total_tiles = 0, longest = 1;     // over rows

    // Chunks of up to `most` tiles, and shorter ones for the last rows, so that threads end at about the same time.
    void cut(int64_t most, int64_t least, double rows_at_once) {
        int64_t left = total_tiles;
        for (size_t row = 0; row < tiles.size(); left -= tiles[row++]) {
            chunk_tiles[row] = most;
            while (chunk_tiles[row] > least &&
                   kItemsLeftPerThread * rows_at_once * static_cast<double>(chunk_tiles[row]) >
                       static_cast<double>(left))
                chunk_tiles[row] /= 2;
        }
    }
    int64_t num_chunks(size_t row) const { return std::max<int64_t>(1, ceil_div(tiles[row], chunk_tiles[row])); }
    int64_t num_slots() const {
        int64_t slots = 0;
        for (size_t row = 0; row < tiles.size(); ++row) slots += num_chunks(row) > 1 ? num_chunks(row) : 0;
        return slots;
    }
};

}  // namespace

int64_t row_tiles(const KvLayout& layout, int64_t num_tokens) {
    return num_tokens / layout.block_size * layout.tiles_per_block() +
           ceil_div(num_tokens % layout.block_size, kTileTokens);
}

void partition_work(const KvLayout& layout, int64_t num_kv_heads, int64_t num_threads, int64_t max_slots,
                    const std::vector<int64_t>& context_lens, WorkPartition* partition) {
    Cuts cuts;
    for (const int64_t length : context_lens) {
        cuts.tiles.push_back(row_tiles(layout, length));
        cuts.total_tiles += cuts.tiles.back();
        cuts.longest = std::max(cuts.longest, cuts.tiles.back());
    }
    cuts.chunk_tiles.resize(cuts.tiles.size());
    // Tiles of one head that an item may have. To take fewer heads costs nothing while runs are long enough; to take
    // fewer tokens means another partial result to write, fetch and merge for each head.
    const int64_t most = cuts.total_tiles * num_kv_heads / (kItemsPerThread * num_threads);
    const int64_t min_heads = std::min(num_kv_heads, ceil_div(kMinRunBytes, layout.piece_bytes()));
    int64_t least = kChunkTokens / kTileTokens, chunk_tiles = least;
    while (chunk_tiles < cuts.longest && 2 * chunk_tiles * min_heads <= most) chunk_tiles *= 2;
    int64_t heads = num_kv_heads;
    while (heads > min_heads && std::min(chunk_tiles, cuts.longest) * heads > most)
        heads = std::max(min_heads, ceil_div(heads, 2));
    const double rows_at_once = static_cast<double>(num_threads * heads) / static_cast<double>(num_kv_heads);
    cuts.cut(chunk_tiles, least, rows_at_once);
    while ((partition->num_slots = cuts.num_slots()) > max_slots) {
        least *= 2;
        cuts.cut(std::max(chunk_tiles, least), least, rows_at_once);
    }

    partition->items.clear();
    int64_t next_slot = 0;
    for (size_t row = 0; row < context_lens.size(); ++row) {
        const int64_t num_tiles = cuts.tiles[row], length = cuts.chunk_tiles[row], chunks = cuts.num_chunks(row);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t first_tile = chunk * length;
            for (int64_t head = 0; head < num_kv_heads; head += heads)
                partition->items.push_back({static_cast<int64_t>(row), first_tile,
                                            std::min(length, num_tiles - first_tile), head,
                                            std::min(heads, num_kv_heads - head), next_slot, chunks > 1 ? chunks : 0,
                                            next_slot + chunk, chunk + 1 == chunks});
        }
        if (chunks > 1) next_slot += chunks;
    }
}

}  // namespace pacpu
