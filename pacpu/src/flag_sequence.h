// Layers started by flags that a GPU stream raises, and answered by flags that it waits for: no Python in between.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "layer_source.h"
#include "worker_pool.h"

namespace pacpu {

struct LostFlag : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct FlagStep {
    LayerSource* source;
    int64_t layer, slot, sub_batch;
};

// For each step the GPU puts its data in memory and raises ready[slot]; later it waits for done[slot]. A worker that
// sees the flag lowers it, and with it the done flag of the sub-batch's step before, perhaps of the sequence before:
// the GPU has used that output, for it has made data from it. So constants are all that the GPU ever writes or waits
// for. It must raise the flags in the order of the steps and those of a sub-batch only after the step before is done.
//
// A sequence that ends early, by a lost flag, an error or cancel(), raises the done flags of all steps not started, so
// that the GPU runs on to its end, over useless data. See flags.h for the order of memory.
class FlagSequence final : private Poller {
  public:
    // Lowers all flags: uint32 [num_slots] each, the caller's for as long as this lives.
    FlagSequence(std::shared_ptr<WorkerPool> pool, uint32_t* ready, uint32_t* done, int64_t num_slots);
    ~FlagSequence();
    FlagSequence(const FlagSequence&) = delete;
    FlagSequence& operator=(const FlagSequence&) = delete;

    // From here until wait() returns the sources are the sequence's. `timeout` is how long a ready flag may take when
    // no started work is left. After a sequence that ended early it lowers all flags, so the GPU must be at rest.
    // Throws std::invalid_argument for steps that cannot be, std::runtime_error when the pool is closed or has another
    // sequence.
    void arm(std::vector<FlagStep> steps, std::chrono::nanoseconds timeout);
    // Returns when the sequence has ended and its work is complete. Throws LostFlag, or what a source threw.
    void wait();
    // Ends the sequence early, if one is armed; from any thread. wait() is still to be called, and throws nothing new.
    void cancel() { cancelled_.store(true); }
    // From a ready flag seen to its layer complete, summed over the steps of the last sequence that wait() has ended.
    int64_t busy_ns() const { return busy_ns_; }

  private:
    bool poll() noexcept override;
    void lower_all();
    void check_steps(const std::vector<FlagStep>& steps) const;
    void start_step(const FlagStep& step);
    void finish(LayerSource* source, int64_t started_ns);
    void check_deadline(const FlagStep& step);
    bool work_is_under_way() const;
    bool end_early() noexcept;

    const std::shared_ptr<WorkerPool> pool_;
    uint32_t* const ready_;
    uint32_t* const done_;
    const int64_t num_slots_;

    bool armed_ = false;
    std::atomic<bool> cancelled_{false};
    // Of the polling worker until the sequence has ended.
    std::vector<FlagStep> steps_;
    size_t next_step_ = 0;
    std::chrono::nanoseconds timeout_{};
    std::chrono::steady_clock::time_point deadline_;
    int64_t looks_ = 0;
    std::map<int64_t, int64_t> last_slots_;    // by sub-batch: where its latest step raises done; outlives a sequence
    std::map<LayerSource*, int64_t> started_;  // and not waited for, with when
    int64_t busy_ns_ = 0;
    bool ended_early_ = false;
    std::exception_ptr error_;
};

}  // namespace pacpu
