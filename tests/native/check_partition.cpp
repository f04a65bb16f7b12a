// Cuts many batches into items and checks that every tile of every head is in exactly one of them, that partial
// results fit, and that no item is so large that the others would wait for it.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "work_partition.h"

namespace {

using namespace pacpu;

#define CHECK(condition)                                            \
    if (!(condition)) {                                             \
        std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
        std::exit(1);                                               \
    }

void check(const KvLayout& layout, int64_t heads, int64_t threads, int64_t max_slots,
           const std::vector<int64_t>& lengths) {
    WorkPartition partition;
    partition_work(layout, heads, threads, max_slots, lengths, &partition);
    std::vector<std::vector<int>> seen;
    int64_t total = 0;
    for (const int64_t length : lengths) {
        seen.emplace_back(static_cast<size_t>(row_tiles(layout, length) * heads), 0);
        total += static_cast<int64_t>(seen.back().size());
    }
    CHECK(partition.num_slots <= max_slots);
    std::vector<int> slot_rows(static_cast<size_t>(partition.num_slots), -1);
    std::vector<int> ends(lengths.size(), 0);
    for (const WorkItem& item : partition.items) {
        const auto row = static_cast<size_t>(item.row);
        for (int64_t tile = item.first_tile; tile < item.first_tile + item.num_tiles; ++tile)
            for (int64_t head = item.first_head; head < item.first_head + item.num_heads; ++head)
                ++seen[row][static_cast<size_t>(tile * heads + head)];
        if (item.ends_row) ends[row] += static_cast<int>(item.num_heads);
        if (item.num_slots > 0) {
            CHECK(item.slot >= item.first_slot && item.slot < item.first_slot + item.num_slots);
            int& owner = slot_rows[static_cast<size_t>(item.slot)];
            CHECK(owner == -1 || owner == static_cast<int>(item.row));
            owner = static_cast<int>(item.row);
        }
        // Unless there are too few slots an item is an eighth of a thread's share, or as small as items get.
        const int64_t smallest = kChunkTokens / kTileTokens * std::max<int64_t>(1, 8192 / layout.piece_bytes() + 1);
        if (max_slots > 100000) CHECK(item.num_tiles * item.num_heads <= std::max(total / (8 * threads), smallest));
    }
    for (size_t row = 0; row < lengths.size(); ++row) {
        for (const int times : seen[row]) CHECK(times == 1);
        CHECK(ends[row] == heads);
    }
    for (const int owner : slot_rows) CHECK(owner >= 0);
}

}  // namespace

int main() {
    std::mt19937 random(0);
    const auto pick = [&](int64_t low, int64_t high) {
        return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    for (int batch = 0; batch < 3000; ++batch) {
        const KvLayout layout{batch % 2 ? Element::kBFloat16 : Element::kInt8, 64 * pick(1, 4), 8 * pick(1, 8)};
        std::vector<int64_t> lengths(static_cast<size_t>(pick(0, 40)));
        for (int64_t& length : lengths) length = pick(0, 9) == 0 ? pick(0, 60000) : pick(0, 700);
        check(layout, pick(1, 33), pick(1, 64), batch % 3 ? 1000000 : pick(1, 50), lengths);
    }
    std::printf("covered\n");
    return 0;
}
