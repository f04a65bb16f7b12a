#include "decode_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "flags.h"
#include "kv_store.h"

namespace pacpu {
namespace {

constexpr int64_t kAlignBytes = 64;
// Partial results a thread's share of the workspace has room for.
constexpr int64_t kSlotsPerThread = 32;
// Tiles that a kernel is called for, at most: each call starts anew to fetch ahead.
constexpr int64_t kSpanTiles = 64;
constexpr float kLog2E = 1.44269504f;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align_up(int64_t bytes) { return ceil_div(bytes, kAlignBytes) * kAlignBytes; }

char* aligned_start(const ArrayView& workspace) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    return workspace.data + (align_up(static_cast<int64_t>(address)) - static_cast<int64_t>(address));
}

}  // namespace

int64_t WorkspaceShape::thread_bytes() const {
    return 2 * align_up(num_q_heads * head_dim * 4) + align_up(num_q_heads * 4) +
           align_up(num_q_heads * kTileTokens * 4) + align_up(kernel_scratch_bytes(num_q_heads, head_dim));
}

int64_t WorkspaceShape::slot_bytes() const { return align_up(num_q_heads * (head_dim + 2) * 4); }

int64_t WorkspaceShape::recommended_bytes(int64_t max_rows, int64_t max_context, int64_t num_threads) const {
    const int64_t useful_slots = max_rows * ceil_div(max_context, kChunkTokens);
    const int64_t slots = std::min(useful_slots, num_threads * kSlotsPerThread);
    return kAlignBytes + num_threads * thread_bytes() + slots * slot_bytes();
}

DecodePlan::DecodePlan(std::shared_ptr<WorkerPool> pool, PlanArrays arrays, const KvLayout& layout, float scale,
                       const Target& target)
    : pool_(std::move(pool)),
      arrays_(std::move(arrays)),
      layout_(layout),
      query_factor_(scale * kLog2E),
      target_(target),
      attend_span_(target.attend[static_cast<int>(layout.element)]),
      num_layers_(arrays_.kv.shape[0]),
      num_blocks_(arrays_.kv.shape[1]),
      num_kv_heads_(arrays_.kv.shape[2]),
      head_dim_(layout.head_dim),
      num_q_heads_(arrays_.query.shape[1]),
      group_(num_q_heads_ / num_kv_heads_),
      workspace_shape_{num_q_heads_, head_dim_},
      workspace_(aligned_start(arrays_.workspace)) {
    const int64_t thread_bytes = pool_->num_threads() * workspace_shape_.thread_bytes();
    const int64_t usable_bytes = arrays_.workspace.data + arrays_.workspace.shape[0] - workspace_;
    max_slots_ = (usable_bytes - thread_bytes) / workspace_shape_.slot_bytes();
    if (usable_bytes < thread_bytes || max_slots_ < 1)
        throw std::invalid_argument("workspace: expected at least " +
                                    std::to_string(kAlignBytes + thread_bytes + workspace_shape_.slot_bytes()) +
                                    " bytes for " + std::to_string(pool_->num_threads()) + " threads, got " +
                                    std::to_string(arrays_.workspace.shape[0]));
    unfinished_chunks_.reset(new std::atomic<int64_t>[static_cast<size_t>(max_slots_ * num_kv_heads_)]);
}

DecodePlan::~DecodePlan() {
    if (pending_) pool_->wait(ticket_);
}

void DecodePlan::begin(int64_t num_rows) {
    if (pending_) throw std::runtime_error("begin() while a layer is at the workers: wait() first");
    begun_ = false;
    if (num_rows < 0 || num_rows > arrays_.query.shape[0])
        throw std::invalid_argument("num_rows: expected 0.." + std::to_string(arrays_.query.shape[0]) + ", got " +
                                    std::to_string(num_rows));
    context_lens_.resize(static_cast<size_t>(num_rows));
    for (int64_t row = 0; row < num_rows; ++row) {
        int32_t length;
        std::memcpy(&length, arrays_.context_lens.data + row * arrays_.context_lens.strides_bytes[0], sizeof length);
        context_lens_[static_cast<size_t>(row)] = length;
    }
    check_rows(num_rows);
    partition_work(layout_, num_kv_heads_, pool_->num_threads(), max_slots_, context_lens_, &work_);
    for (const WorkItem& item : work_.items)
        if (item.num_slots > 0)
            unfinished_chunks_[static_cast<size_t>(item.first_slot * num_kv_heads_ + item.first_head)].store(
                item.num_slots);
    begun_ = true;
}

void DecodePlan::check_rows(int64_t num_rows) const {
    const int64_t block_size = layout_.block_size;
    const int64_t max_tokens = arrays_.block_tables.shape[1] * block_size;
    for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t length = context_lens_[static_cast<size_t>(row)];
        if (length < 0 || length > max_tokens)
            throw std::invalid_argument("context_lens[" + std::to_string(row) + "]: expected 0.." +
                                        std::to_string(max_tokens) + " (" +
                                        std::to_string(arrays_.block_tables.shape[1]) + " blocks of " +
                                        std::to_string(block_size) + " tokens), got " + std::to_string(length));
        for (int64_t index = 0; index < ceil_div(length, block_size); ++index) {
            const int64_t block = block_number(row, index);
            if (block < 0 || block >= num_blocks_)
                throw std::invalid_argument("block_tables[" + std::to_string(row) + ", " + std::to_string(index) +
                                            "]: expected a block in 0.." + std::to_string(num_blocks_ - 1) + ", got " +
                                            std::to_string(block) + " (context_lens[" + std::to_string(row) +
                                            "] = " + std::to_string(length) + ")");
        }
    }
}

void DecodePlan::start(int64_t layer, uint32_t* done_flag) {
    if (!begun_) throw std::runtime_error("start() before begin(), or after begin() or a layer failed: begin() first");
    if (pending_) throw std::runtime_error("start() while a layer is at the workers: wait() first");
    if (layer < 0 || layer >= num_layers_)
        throw std::invalid_argument("layer: expected 0.." + std::to_string(num_layers_ - 1) + ", got " +
                                    std::to_string(layer));
    layer_ = layer;
    const auto num_items = static_cast<int64_t>(work_.items.size());
    ticket_ = num_items > 0 ? pool_->submit(&DecodePlan::run_item, this, num_items, done_flag) : 0;
    if (num_items == 0 && done_flag != nullptr) raise_flag(done_flag);
    pending_ = true;
}

void DecodePlan::wait() {
    if (!pending_) throw std::runtime_error("wait() without start()");
    finished_ns_ = ticket_ != 0 ? pool_->wait(ticket_) : 0;
    pending_ = false;
    std::lock_guard lock(error_mutex_);
    if (!error_) return;
    begun_ = false;
    std::rethrow_exception(std::exchange(error_, nullptr));
}

void DecodePlan::run_item(void* plan, int64_t item, int worker) noexcept {
    auto& self = *static_cast<DecodePlan*>(plan);
    try {
        self.attend(self.work_.items[static_cast<size_t>(item)], self.scratch(worker));
    } catch (...) {
        std::lock_guard lock(self.error_mutex_);
        if (!self.error_) self.error_ = std::current_exception();
    }
}

void DecodePlan::attend(const WorkItem& item, const Scratch& scratch) {
    // Only the chunk that ends a row reads the row's new token, so no barrier parts storing from attending.
    if (arrays_.new_key && item.ends_row && item.num_tiles > 0) store_new_token(item);
    const int64_t first_head = item.first_head * group_, num_heads = item.num_heads * group_;
    const char* query = arrays_.query.data + item.row * arrays_.query.strides_bytes[0] +
                        first_head * head_dim_ * element_bytes(arrays_.query.element);
    target_.to_float[static_cast<int>(arrays_.query.element)](query, num_heads * head_dim_, query_factor_,
                                                              scratch.query);
    Scratch state = scratch;
    float* slot = item.num_slots > 0 ? slot_state(item.slot) : nullptr;
    if (slot != nullptr) {
        state.accumulator = slot + first_head * head_dim_;
        state.maximum = slot + num_q_heads_ * head_dim_ + first_head;
    }
    std::fill_n(state.accumulator, num_heads * head_dim_, 0.0f);
    std::fill_n(state.maximum, num_heads, std::numeric_limits<float>::lowest());
    std::fill_n(state.sum, num_heads * kTileTokens, 0.0f);
    attend_tiles(item, state);
    for (int64_t head = 0; head < num_heads; ++head) {
        const float* lanes = state.sum + head * kTileTokens;
        const float sum = std::accumulate(lanes, lanes + kTileTokens, 0.0f);
        if (slot != nullptr)
            slot[num_q_heads_ * (head_dim_ + 1) + first_head + head] = sum;
        else
            write_output(item.row, first_head + head, state.accumulator + head * head_dim_, sum);
    }
    if (slot == nullptr) return;
    auto& unfinished = unfinished_chunks_[static_cast<size_t>(item.first_slot * num_kv_heads_ + item.first_head)];
    if (unfinished.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    unfinished.store(item.num_slots, std::memory_order_relaxed);  // for the next layer
    merge(item, scratch);
}

void DecodePlan::store_new_token(const WorkItem& item) const {
    const int64_t token = context_lens_[static_cast<size_t>(item.row)] - 1;
    const ArrayView &key = *arrays_.new_key, &value = *arrays_.new_value;
    for (int64_t head = item.first_head; head < item.first_head + item.num_heads; ++head) {
        const int64_t offset = head * head_dim_ * element_bytes(key.element);
        store_token(layout_, target_, key.element, key.data + item.row * key.strides_bytes[0] + offset,
                    value.data + item.row * value.strides_bytes[0] + offset,
                    piece(item.row, token / layout_.block_size, head), token % layout_.block_size);
    }
}

void DecodePlan::attend_tiles(const WorkItem& item, const Scratch& state) const {
    const int64_t tiles_per_block = layout_.tiles_per_block();
    const int64_t length = context_lens_[static_cast<size_t>(item.row)];
    const char* blocks[kSpanTiles + 1];
    for (int64_t done = 0; done < item.num_tiles; done += kSpanTiles) {
        const int64_t first_tile = item.first_tile + done;
        const int64_t num_tiles = std::min(kSpanTiles, item.num_tiles - done);
        const int64_t first_block = first_tile / tiles_per_block;
        for (int64_t block = first_block; block * tiles_per_block < first_tile + num_tiles; ++block)
            blocks[block - first_block] = piece(item.row, block, item.first_head);
        attend_span_({layout_, item.num_heads, group_, arrays_.kv.strides_bytes[2], blocks,
                      first_tile % tiles_per_block, num_tiles, length - first_block * layout_.block_size, state.query,
                      state.accumulator, state.maximum, state.sum, state.kernel});
    }
}

void DecodePlan::merge(const WorkItem& item, const Scratch& scratch) const {
    const int64_t maximum = num_q_heads_ * head_dim_, sum = num_q_heads_ * (head_dim_ + 1);
    for (int64_t head = item.first_head * group_; head < (item.first_head + item.num_heads) * group_; ++head) {
        float highest = std::numeric_limits<float>::lowest();
        for (int64_t i = 0; i < item.num_slots; ++i)
            highest = std::max(highest, slot_state(item.first_slot + i)[maximum + head]);
        float total = 0;
        std::fill_n(scratch.accumulator, head_dim_, 0.0f);
        for (int64_t i = 0; i < item.num_slots; ++i) {
            const float* slot = slot_state(item.first_slot + i);
            const float weight = std::exp2(slot[maximum + head] - highest);
            total += weight * slot[sum + head];
            for (int64_t d = 0; d < head_dim_; ++d) scratch.accumulator[d] += weight * slot[head * head_dim_ + d];
        }
        write_output(item.row, head, scratch.accumulator, total);
    }
}

void DecodePlan::write_output(int64_t row, int64_t head, const float* accumulator, float sum) const {
    const float inverse = context_lens_[static_cast<size_t>(row)] == 0 ? 0.0f : 1.0f / sum;
    const ArrayView& output = arrays_.output;
    char* to = output.data + row * output.strides_bytes[0] + head * head_dim_ * element_bytes(output.element);
    target_.from_float[static_cast<int>(output.element)](accumulator, head_dim_, inverse, to);
}

DecodePlan::Scratch DecodePlan::scratch(int worker) const {
    char* start = workspace_ + worker * workspace_shape_.thread_bytes();
    const auto take = [&start](int64_t bytes) { return std::exchange(start, start + align_up(bytes)); };
    const int64_t rows_bytes = num_q_heads_ * head_dim_ * 4;
    Scratch scratch;
    scratch.query = reinterpret_cast<float*>(take(rows_bytes));
    scratch.accumulator = reinterpret_cast<float*>(take(rows_bytes));
    scratch.maximum = reinterpret_cast<float*>(take(num_q_heads_ * 4));
    scratch.sum = reinterpret_cast<float*>(take(num_q_heads_ * kTileTokens * 4));
    scratch.kernel = start;
    return scratch;
}

// Accumulator [num_q_heads, head_dim], then maximum [num_q_heads], then sum [num_q_heads].
float* DecodePlan::slot_state(int64_t slot) const {
    const int64_t threads_bytes = pool_->num_threads() * workspace_shape_.thread_bytes();
    return reinterpret_cast<float*>(workspace_ + threads_bytes + slot * workspace_shape_.slot_bytes());
}

int64_t DecodePlan::block_number(int64_t row, int64_t index) const {
    const auto& tables = arrays_.block_tables;
    int32_t block;
    std::memcpy(&block, tables.data + row * tables.strides_bytes[0] + index * tables.strides_bytes[1], sizeof block);
    return block;
}

// begin() saw valid tables, but they are the caller's memory and this read must stay inside the cache.
char* DecodePlan::piece(int64_t row, int64_t index, int64_t kv_head) const {
    const int64_t block = block_number(row, index);
    if (block < 0 || block >= num_blocks_)
        throw std::runtime_error("block_tables changed after begin(): block " + std::to_string(block) +
                                 " is outside 0.." + std::to_string(num_blocks_ - 1));
    const std::vector<int64_t>& strides = arrays_.kv.strides_bytes;
    return arrays_.kv.data + layer_ * strides[0] + block * strides[1] + kv_head * strides[2];
}

}  // namespace pacpu
