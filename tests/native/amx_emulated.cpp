// The AMX kernel with its instructions emulated in plain C++, against the dot-product kernel on the same spans: for
// machines without AMX. The emulation refuses what the processor would.
#include <immintrin.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps

namespace {

struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
TileConfig config;
uint8_t tiles[8][16][64];

void emulated_loadconfig(const void* wanted) {
    std::memcpy(&config, wanted, sizeof config);
    std::memset(tiles, 0, sizeof tiles);
}
void emulated_release() { std::memset(&config, 0, sizeof config); }

void _tile_zero(int tile) { std::memset(tiles[tile], 0, sizeof tiles[tile]); }

void _tile_loadd(int tile, const void* base, size_t stride) {
    _tile_zero(tile);
    for (size_t row = 0; row < config.rows[tile]; ++row)
        std::memcpy(tiles[tile][row], static_cast<const char*>(base) + row * stride, config.row_bytes[tile]);
}

void _tile_stored(int tile, void* base, size_t stride) {
    for (size_t row = 0; row < config.rows[tile]; ++row)
        std::memcpy(static_cast<char*>(base) + row * stride, tiles[tile][row], config.row_bytes[tile]);
}

float from_bfloat16(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

void _tile_dpbf16ps(int sums, int left, int right) {
    if (config.rows[right] != config.row_bytes[left] / 4 || config.row_bytes[right] != config.row_bytes[sums] ||
        config.rows[left] != config.rows[sums]) {
        std::printf("tiles %d, %d and %d do not fit one another\n", sums, left, right);
        std::exit(1);
    }
    for (int row = 0; row < config.rows[sums]; ++row)
        for (int pair = 0; pair < config.row_bytes[left] / 4; ++pair)
            for (int column = 0; column < config.row_bytes[sums] / 4; ++column) {
                uint16_t x[2], y[2];
                float sum;
                std::memcpy(x, &tiles[left][row][pair * 4], sizeof x);
                std::memcpy(y, &tiles[right][pair][column * 4], sizeof y);
                std::memcpy(&sum, &tiles[sums][row][column * 4], sizeof sum);
                sum += from_bfloat16(x[0]) * from_bfloat16(y[0]) + from_bfloat16(x[1]) * from_bfloat16(y[1]);
                std::memcpy(&tiles[sums][row][column * 4], &sum, sizeof sum);
            }
}

}  // namespace

#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define PACPU_WITH_AVX512_BF16
#define PACPU_WITH_AMX_BF16
#include "kernel_amx.h"
#include "kernel_bf16_dot.h"

namespace {

using namespace pacpu;

constexpr int64_t kNumKvHeads = 3;

struct Problem {
    KvLayout layout;
    int64_t group, num_tokens;
    float sharpness;  // how far scores lie apart: at 20 the maximum still rises late
};

template <void (*kAttendSpan)(const Span&)>
std::vector<float> attend(const Problem& problem, const std::vector<const char*>& blocks,
                          const std::vector<float>& query) {
    const KvLayout& layout = problem.layout;
    const int64_t heads = kNumKvHeads * problem.group;
    std::vector<float> output(query.size()), maximum(heads, -3e38f), sum(heads * kTileTokens);
    std::vector<char> memory(kernel_scratch_bytes(heads, layout.head_dim) + 64);
    char* scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    const int64_t num_tiles = problem.num_tokens / layout.block_size * layout.tiles_per_block() +
                              (problem.num_tokens % layout.block_size + kTileTokens - 1) / kTileTokens;
    kAttendSpan({layout, kNumKvHeads, problem.group, layout.piece_bytes(), blocks.data(), 0, num_tiles,
                 problem.num_tokens, query.data(), output.data(), maximum.data(), sum.data(), scratch});
    for (int64_t head = 0; head < heads; ++head) {
        float total = 0;
        for (int64_t lane = 0; lane < kTileTokens; ++lane) total += sum[head * kTileTokens + lane];
        for (int64_t d = 0; d < layout.head_dim; ++d) output[head * layout.head_dim + d] /= total;
    }
    return output;
}

double relative_difference(const Problem& problem) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const int64_t block_bytes = kNumKvHeads * problem.layout.piece_bytes();
    const int64_t num_blocks = (problem.num_tokens + problem.layout.block_size - 1) / problem.layout.block_size;
    std::vector<uint16_t> kv(num_blocks * block_bytes / 2);
    for (uint16_t& element : kv) {
        const float value = normal(random);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        element = static_cast<uint16_t>(bits >> 16);
    }
    std::vector<const char*> blocks;
    for (int64_t block = 0; block < num_blocks; ++block)
        blocks.push_back(reinterpret_cast<const char*>(kv.data()) + block * block_bytes);
    std::vector<float> query(kNumKvHeads * problem.group * problem.layout.head_dim);
    const float scale = problem.sharpness / std::sqrt(static_cast<float>(problem.layout.head_dim));
    for (float& element : query) element = scale * normal(random);
    const std::vector<float> amx = attend<attend_span_by_pairs<AmxBf16Kernel>>(problem, blocks, query);
    const std::vector<float> dot = attend<attend_span<Bf16DotKernel<0>>>(problem, blocks, query);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < dot.size(); ++i) {
        difference += (amx[i] - dot[i]) * (amx[i] - dot[i]);
        norm += dot[i] * dot[i];
    }
    return std::sqrt(difference / norm);
}

}  // namespace

int main() {
    for (const int64_t head_dim : {64, 80, 96, 128, 256})
        for (const int64_t group : {2, 4, 8, 9, 16})
            for (const int64_t block_size : {8, 16, 24, 32, 48})
                for (const int64_t num_tokens : {5, 16, 17, 100, 333})
                    for (const float sharpness : {1.0f, 20.0f}) {
                        const KvLayout layout{Element::kBFloat16, head_dim, block_size};
                        const double difference = relative_difference({layout, group, num_tokens, sharpness});
                        if (difference < 2e-4) continue;
                        std::printf("head_dim %d, group %d, blocks of %d, %d tokens, sharpness %g: difference %g\n",
                                    static_cast<int>(head_dim), static_cast<int>(group), static_cast<int>(block_size),
                                    static_cast<int>(num_tokens), sharpness, difference);
                        return 1;
                    }
    std::printf("equal\n");
    return 0;
}
