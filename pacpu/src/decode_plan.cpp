#include "decode_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "convert.h"
#include "flags.h"

namespace pacpu {
namespace {

constexpr int64_t kAlignBytes = 64;
// Chunks a thread gets of long rows at most: enough that a slow core leaves its share to the others.
constexpr int64_t kSlotsPerThread = 32;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align_up(int64_t bytes) { return ceil_div(bytes, kAlignBytes) * kAlignBytes; }

char* aligned_start(const ArrayView& workspace) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data);
    return workspace.data + (align_up(static_cast<int64_t>(address)) - static_cast<int64_t>(address));
}

int64_t chunks_of(int64_t num_tokens, int64_t chunk_tokens) {
    return std::max<int64_t>(1, ceil_div(num_tokens, chunk_tokens));
}

}  // namespace

int64_t WorkspaceShape::thread_bytes() const {
    const int64_t heads = num_q_heads / num_kv_heads;
    const int64_t pointers = 2 * kSpanTokens * static_cast<int64_t>(sizeof(void*));
    return pointers + 2 * align_up(heads * head_dim * 4) + 2 * align_up(heads * 4);
}

int64_t WorkspaceShape::slot_bytes() const { return align_up(num_q_heads * (head_dim + 2) * 4); }

int64_t WorkspaceShape::recommended_bytes(int64_t max_rows, int64_t max_context, int64_t num_threads) const {
    const int64_t useful_slots = max_rows * chunks_of(max_context, kSpanTokens);
    const int64_t slots = std::min(useful_slots, num_threads * kSlotsPerThread);
    return kAlignBytes + num_threads * thread_bytes() + slots * slot_bytes();
}

DecodePlan::DecodePlan(std::shared_ptr<WorkerPool> pool, PlanArrays arrays, float scale, const Target& target)
    : pool_(std::move(pool)),
      arrays_(std::move(arrays)),
      scale_(scale),
      target_(target),
      kernel_(target.kernels[static_cast<int>(arrays_.k_cache.element)]),
      num_layers_(arrays_.k_cache.shape[0]),
      num_blocks_(arrays_.k_cache.shape[1]),
      num_kv_heads_(arrays_.k_cache.shape[2]),
      block_size_(arrays_.k_cache.shape[3]),
      head_dim_(arrays_.k_cache.shape[4]),
      num_q_heads_(arrays_.query.shape[1]),
      heads_per_kv_head_(num_q_heads_ / num_kv_heads_),
      workspace_shape_{num_q_heads_, num_kv_heads_, head_dim_},
      workspace_(aligned_start(arrays_.workspace)) {
    const int64_t thread_bytes = pool_->num_threads() * workspace_shape_.thread_bytes();
    const int64_t usable_bytes = arrays_.workspace.data + arrays_.workspace.shape[0] - workspace_;
    num_slots_ = (usable_bytes - thread_bytes) / workspace_shape_.slot_bytes();
    if (usable_bytes < thread_bytes || num_slots_ < 1)
        throw std::invalid_argument("workspace: expected at least " +
                                    std::to_string(kAlignBytes + thread_bytes + workspace_shape_.slot_bytes()) +
                                    " bytes for " + std::to_string(pool_->num_threads()) + " threads, got " +
                                    std::to_string(arrays_.workspace.shape[0]));
    unfinished_chunks_.reset(new std::atomic<int64_t>[static_cast<size_t>(num_slots_ * num_kv_heads_)]);
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
    partition(num_rows);
    begun_ = true;
}

void DecodePlan::check_rows(int64_t num_rows) const {
    const int64_t max_tokens = arrays_.block_tables.shape[1] * block_size_;
    for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t length = context_lens_[static_cast<size_t>(row)];
        if (length < 0 || length > max_tokens)
            throw std::invalid_argument("context_lens[" + std::to_string(row) + "]: expected 0.." +
                                        std::to_string(max_tokens) + " (" +
                                        std::to_string(arrays_.block_tables.shape[1]) + " blocks of " +
                                        std::to_string(block_size_) + " tokens), got " + std::to_string(length));
        for (int64_t index = 0; index < ceil_div(length, block_size_); ++index) {
            const int64_t block = block_number(row, index);
            if (block < 0 || block >= num_blocks_)
                throw std::invalid_argument("block_tables[" + std::to_string(row) + ", " + std::to_string(index) +
                                            "]: expected a block in 0.." + std::to_string(num_blocks_ - 1) + ", got " +
                                            std::to_string(block) + " (context_lens[" + std::to_string(row) +
                                            "] = " + std::to_string(length) + ")");
        }
    }
}

// Doubles the chunk until the partial results fit the workspace; they always do when no row is split.
void DecodePlan::partition(int64_t num_rows) {
    int64_t chunk_tokens = kSpanTokens / 2;
    int64_t slots_needed;
    do {
        chunk_tokens *= 2;
        slots_needed = 0;
        for (int64_t length : context_lens_)
            if (length > chunk_tokens) slots_needed += chunks_of(length, chunk_tokens);
    } while (slots_needed > num_slots_);
    chunks_.clear();
    int64_t next_slot = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t length = context_lens_[static_cast<size_t>(row)];
        const int64_t num_chunks = chunks_of(length, chunk_tokens);
        const int64_t first_slot = next_slot;
        for (int64_t index = 0; index < num_chunks; ++index) {
            const int64_t first = index * chunk_tokens;
            chunks_.push_back({row, first, std::min(chunk_tokens, length - first), first_slot,
                               num_chunks > 1 ? num_chunks : 0, first_slot + index});
        }
        if (num_chunks == 1) continue;
        next_slot += num_chunks;
        for (int64_t head = 0; head < num_kv_heads_; ++head)
            unfinished_chunks_[static_cast<size_t>(first_slot * num_kv_heads_ + head)].store(num_chunks);
    }
}

void DecodePlan::start(int64_t layer, uint32_t* done_flag) {
    if (!begun_) throw std::runtime_error("start() before begin(), or after begin() or a layer failed: begin() first");
    if (pending_) throw std::runtime_error("start() while a layer is at the workers: wait() first");
    if (layer < 0 || layer >= num_layers_)
        throw std::invalid_argument("layer: expected 0.." + std::to_string(num_layers_ - 1) + ", got " +
                                    std::to_string(layer));
    layer_ = layer;
    const auto num_items = static_cast<int64_t>(chunks_.size()) * num_kv_heads_;
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
        const Chunk& chunk = self.chunks_[static_cast<size_t>(item / self.num_kv_heads_)];
        self.attend(chunk, item % self.num_kv_heads_, self.scratch(worker));
    } catch (...) {
        std::lock_guard lock(self.error_mutex_);
        if (!self.error_) self.error_ = std::current_exception();
    }
}

void DecodePlan::attend(const Chunk& chunk, int64_t kv_head, const Scratch& scratch) {
    const int64_t length = context_lens_[static_cast<size_t>(chunk.row)];
    const int64_t first_head = kv_head * heads_per_kv_head_;
    const auto head_dim = static_cast<int>(head_dim_);
    // Only the chunk that ends a row reads the row's new token, so no barrier parts storing from attending.
    if (arrays_.new_key && length > 0 && chunk.first_token + chunk.num_tokens == length)
        store_new_token(chunk.row, kv_head, length - 1);
    const char* query = arrays_.query.data + chunk.row * arrays_.query.strides_bytes[0] +
                        first_head * head_dim_ * element_bytes(arrays_.query.element);
    load_floats(arrays_.query.element, query, static_cast<int>(heads_per_kv_head_) * head_dim, scratch.query);
    for (int64_t i = 0; i < heads_per_kv_head_ * head_dim_; ++i) scratch.query[i] *= scale_;

    Scratch state = scratch;
    if (chunk.num_slots > 0) {
        float* slot = slot_state(chunk.slot);
        state.accumulator = slot + first_head * head_dim_;
        state.maximum = slot + num_q_heads_ * head_dim_ + first_head;
        state.sum = state.maximum + num_q_heads_;
    }
    std::fill_n(state.accumulator, heads_per_kv_head_ * head_dim_, 0.0f);
    std::fill_n(state.maximum, heads_per_kv_head_, std::numeric_limits<float>::lowest());
    std::fill_n(state.sum, heads_per_kv_head_, 0.0f);
    for (int64_t done = 0; done < chunk.num_tokens; done += kSpanTokens) {
        const int64_t count = std::min<int64_t>(kSpanTokens, chunk.num_tokens - done);
        point_at_tokens(chunk, chunk.first_token + done, count, kv_head, scratch);
        kernel_(static_cast<int32_t>(heads_per_kv_head_), head_dim, static_cast<int32_t>(count), state.query,
                state.keys, state.values, state.accumulator, state.maximum, state.sum);
    }
    if (chunk.num_slots > 0) {
        auto& unfinished = unfinished_chunks_[static_cast<size_t>(chunk.first_slot * num_kv_heads_ + kv_head)];
        if (unfinished.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
        unfinished.store(chunk.num_slots, std::memory_order_relaxed);  // for the next layer
        return merge(chunk, kv_head, scratch);
    }
    for (int64_t head = 0; head < heads_per_kv_head_; ++head)
        write_output(chunk.row, first_head + head, state.accumulator + head * head_dim_, state.sum[head],
                     scratch.query);
}

void DecodePlan::store_new_token(int64_t row, int64_t kv_head, int64_t token) const {
    const int64_t block = block_number(row, token / block_size_);
    const auto head_dim = static_cast<int>(head_dim_);
    const auto store = [&](const ArrayView& source, const ArrayView& cache) {
        const char* from =
            source.data + row * source.strides_bytes[0] + kv_head * head_dim_ * element_bytes(source.element);
        char* to = cache.data + block_offset(cache, block, kv_head) +
                   token % block_size_ * head_dim_ * element_bytes(cache.element);
        float values[256];
        if (source.element == cache.element) {
            std::memcpy(to, from, static_cast<size_t>(head_dim_ * element_bytes(cache.element)));
        } else {
            load_floats(source.element, from, head_dim, values);
            store_floats(cache.element, values, head_dim, to);
        }
    };
    store(*arrays_.new_key, arrays_.k_cache);
    store(*arrays_.new_value, arrays_.v_cache);
}

void DecodePlan::point_at_tokens(const Chunk& chunk, int64_t first, int64_t count, int64_t kv_head,
                                 const Scratch& scratch) const {
    const int64_t token_bytes = head_dim_ * element_bytes(arrays_.k_cache.element);
    for (int64_t done = 0; done < count;) {
        const int64_t token = first + done;
        const int64_t in_block = token % block_size_;
        const int64_t run = std::min(block_size_ - in_block, count - done);
        const int64_t block = block_number(chunk.row, token / block_size_);
        const char* key = arrays_.k_cache.data + block_offset(arrays_.k_cache, block, kv_head) + in_block * token_bytes;
        const char* value =
            arrays_.v_cache.data + block_offset(arrays_.v_cache, block, kv_head) + in_block * token_bytes;
        for (int64_t i = 0; i < run; ++i) {
            scratch.keys[done + i] = key + i * token_bytes;
            scratch.values[done + i] = value + i * token_bytes;
        }
        done += run;
    }
    for (int64_t padded = count; padded % kTokenBlock != 0; ++padded) scratch.keys[padded] = scratch.keys[count - 1];
}

void DecodePlan::merge(const Chunk& chunk, int64_t kv_head, const Scratch& scratch) const {
    for (int64_t head = kv_head * heads_per_kv_head_; head < (kv_head + 1) * heads_per_kv_head_; ++head) {
        float highest = std::numeric_limits<float>::lowest();
        for (int64_t i = 0; i < chunk.num_slots; ++i)
            highest = std::max(highest, slot_state(chunk.first_slot + i)[num_q_heads_ * head_dim_ + head]);
        float sum = 0;
        std::fill_n(scratch.accumulator, head_dim_, 0.0f);
        for (int64_t i = 0; i < chunk.num_slots; ++i) {
            const float* slot = slot_state(chunk.first_slot + i);
            const float* maximum = slot + num_q_heads_ * head_dim_;
            const float weight = std::exp(maximum[head] - highest);
            sum += weight * maximum[num_q_heads_ + head];
            for (int64_t d = 0; d < head_dim_; ++d) scratch.accumulator[d] += weight * slot[head * head_dim_ + d];
        }
        write_output(chunk.row, head, scratch.accumulator, sum, scratch.query);
    }
}

void DecodePlan::write_output(int64_t row, int64_t head, const float* accumulator, float sum, float* normalized) const {
    const float inverse = context_lens_[static_cast<size_t>(row)] == 0 ? 0.0f : 1.0f / sum;
    for (int64_t d = 0; d < head_dim_; ++d) normalized[d] = accumulator[d] * inverse;
    char* to = arrays_.output.data + row * arrays_.output.strides_bytes[0] +
               head * head_dim_ * element_bytes(arrays_.output.element);
    store_floats(arrays_.output.element, normalized, static_cast<int>(head_dim_), to);
}

DecodePlan::Scratch DecodePlan::scratch(int worker) const {
    char* start = workspace_ + worker * workspace_shape_.thread_bytes();
    const int64_t rows_bytes = align_up(heads_per_kv_head_ * head_dim_ * 4);
    const int64_t heads_bytes = align_up(heads_per_kv_head_ * 4);
    auto* pointers = reinterpret_cast<const void**>(start);
    start += 2 * kSpanTokens * static_cast<int64_t>(sizeof(void*));
    return {reinterpret_cast<float*>(start),
            reinterpret_cast<float*>(start + rows_bytes),
            reinterpret_cast<float*>(start + 2 * rows_bytes),
            reinterpret_cast<float*>(start + 2 * rows_bytes + heads_bytes),
            pointers,
            pointers + kSpanTokens};
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
int64_t DecodePlan::block_offset(const ArrayView& cache, int64_t block, int64_t kv_head) const {
    if (block < 0 || block >= num_blocks_)
        throw std::runtime_error("block_tables changed after begin(): block " + std::to_string(block) +
                                 " is outside 0.." + std::to_string(num_blocks_ - 1));
    return layer_ * cache.strides_bytes[0] + block * cache.strides_bytes[1] + kv_head * cache.strides_bytes[2];
}

}  // namespace pacpu
