// Paged decode attention over fixed arrays: stores the new K and V of each row, then attends, item by item.
// Arrays come in checked; block tables and context lengths are checked here, for they change with every iteration.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "kernel.h"
#include "layer_source.h"
#include "work_partition.h"
#include "worker_pool.h"

namespace pacpu {

struct ArrayView {
    char* data;
    std::vector<int64_t> shape;
    std::vector<int64_t> strides_bytes;
    Element element;  // meaningless for kv, block_tables, context_lens and the workspace
};

struct PlanArrays {
    ArrayView kv;                          // bytes [num_layers, num_blocks, num_kv_heads, piece_bytes]
    ArrayView query;                       // [max_rows, num_q_heads, head_dim]
    std::optional<ArrayView> new_key;      // [max_rows, num_kv_heads, head_dim]
    std::optional<ArrayView> new_value;    // likewise
    ArrayView output;                      // [max_rows, num_q_heads, head_dim]
    ArrayView block_tables, context_lens;  // int32 [max_rows, max_blocks_per_row], [max_rows]
    ArrayView workspace;                   // bytes
};

struct WorkspaceShape {
    int64_t num_q_heads, head_dim;

    int64_t thread_bytes() const;  // query and state of the item at hand, and the kernel's scratch
    int64_t slot_bytes() const;    // state of one chunk of a row, all query heads
    // Room for the most chunks that a plan makes of such rows.
    int64_t recommended_bytes(int64_t max_rows, int64_t max_context, int64_t num_threads) const;
};

class DecodePlan final : public LayerSource {
  public:
    DecodePlan(std::shared_ptr<WorkerPool> pool, PlanArrays arrays, const KvLayout& layout, float scale,
               const Target& target);
    ~DecodePlan();

    void begin(int64_t num_rows);
    void start(int64_t layer, uint32_t* done_flag = nullptr) override;
    void wait() override;
    const Target& target() const { return target_; }
    // When the layer last waited for was complete: nanoseconds of the steady clock; 0 before, or if it had no work.
    int64_t finished_ns() const override { return finished_ns_; }

  private:
    struct Scratch {
        float *query, *accumulator, *maximum, *sum;
        char* kernel;
    };

    static void run_item(void* plan, int64_t item, int worker) noexcept;
    void check_rows(int64_t num_rows) const;
    void attend(const WorkItem& item, const Scratch& scratch);
    void store_new_token(const WorkItem& item) const;
    void attend_tiles(const WorkItem& item, const Scratch& state) const;
    void merge(const WorkItem& item, const Scratch& scratch) const;
    void write_output(int64_t row, int64_t head, const float* accumulator, float sum) const;
    Scratch scratch(int worker) const;
    float* slot_state(int64_t slot) const;
    int64_t block_number(int64_t row, int64_t index) const;
    char* piece(int64_t row, int64_t index, int64_t kv_head) const;

    const std::shared_ptr<WorkerPool> pool_;
    const PlanArrays arrays_;
    const KvLayout layout_;
    const float query_factor_;  // scale * log2(e)
    const Target& target_;
    const SpanKernel attend_span_;
    const int64_t num_layers_, num_blocks_, num_kv_heads_, head_dim_, num_q_heads_, group_;
    const WorkspaceShape workspace_shape_;
    char* workspace_;
    int64_t max_slots_;

    bool begun_ = false;
    int64_t layer_ = 0;
    uint64_t ticket_ = 0;  // of the job at the workers
    int64_t finished_ns_ = 0;
    bool pending_ = false;
    std::vector<int64_t> context_lens_;
    WorkPartition work_;
    std::unique_ptr<std::atomic<int64_t>[]> unfinished_chunks_;  // [max_slots, num_kv_heads], by the row's first slot
    std::mutex error_mutex_;
    std::exception_ptr error_;
};

}  // namespace pacpu
