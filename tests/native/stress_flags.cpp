// stress_flags ROUNDS: a thread in the GPU's place hands data to a flag sequence and checks every answer. A round is
// one layer of one sub-batch. The data is plain memory, ordered by nothing but the flags, so under ThreadSanitizer
// this tests the ordering itself.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "flag_sequence.h"
#include "flags.h"

namespace {

using pacpu::FlagSequence;
using pacpu::FlagStep;

constexpr int64_t kNumLayers = 5, kNumSubBatches = 2, kNumItems = 3, kItemWords = 8;
constexpr auto kTimeout = std::chrono::seconds(30);

// Attention's stand-in: every output is its input plus the layer. Arrays are used again in each layer, as in a plan.
class AddLayer final : public pacpu::LayerSource {
  public:
    explicit AddLayer(std::shared_ptr<pacpu::WorkerPool> pool) : pool_(std::move(pool)) {}
    void start(int64_t layer, uint32_t* done_flag) override {
        layer_ = layer;
        ticket_ = pool_->submit(&AddLayer::run_item, this, kNumItems, done_flag);
    }
    void wait() override { finished_ns_ = pool_->wait(ticket_); }
    int64_t finished_ns() const override { return finished_ns_; }

    std::vector<int64_t> input = std::vector<int64_t>(kNumItems * kItemWords);
    std::vector<int64_t> output = std::vector<int64_t>(kNumItems * kItemWords);
    std::chrono::milliseconds delay{0};

  private:
    static void run_item(void* source, int64_t item, int) noexcept {
        auto& self = *static_cast<AddLayer*>(source);
        if (self.delay.count() > 0) std::this_thread::sleep_for(self.delay);
        for (int64_t i = item * kItemWords; i < (item + 1) * kItemWords; ++i) {
            const auto at = static_cast<size_t>(i);
            self.output[at] = self.input[at] + self.layer_;
        }
    }

    const std::shared_ptr<pacpu::WorkerPool> pool_;
    int64_t layer_ = 0;
    uint64_t ticket_ = 0;
    int64_t finished_ns_ = 0;
};

void fail(const char* what, int64_t round) {
    std::fprintf(stderr, "stress_flags: %s in round %lld\n", what, static_cast<long long>(round));
    std::exit(1);
}

struct Rig {
    explicit Rig(int num_threads)
        : pool(std::make_shared<pacpu::WorkerPool>(num_threads, std::vector<int>{})),
          sequence(pool, ready.data(), done.data(), static_cast<int64_t>(ready.size())) {
        for (int64_t i = 0; i < kNumSubBatches; ++i) sources.push_back(std::make_unique<AddLayer>(pool));
    }

    static int64_t slot(int64_t layer, int64_t sub_batch) { return layer * kNumSubBatches + sub_batch; }

    std::vector<FlagStep> steps() const {
        std::vector<FlagStep> steps;
        for (int64_t layer = 0; layer < kNumLayers; ++layer)
            for (int64_t sub_batch = 0; sub_batch < kNumSubBatches; ++sub_batch)
                steps.push_back(
                    {sources[static_cast<size_t>(sub_batch)].get(), layer, slot(layer, sub_batch), sub_batch});
        return steps;
    }

    // The GPU's part: an input of the round's own, ready, and later done and the output.
    void raise(int64_t round, int64_t sub_batch) {
        auto& input = sources[static_cast<size_t>(sub_batch)]->input;
        std::iota(input.begin(), input.end(), round);
        pacpu::raise_flag(&ready[static_cast<size_t>(slot(round % kNumLayers, sub_batch))]);
    }
    void await(int64_t round, int64_t sub_batch) const {
        const int64_t layer = round % kNumLayers;
        const uint32_t* flag = &done[static_cast<size_t>(slot(layer, sub_batch))];
        const auto deadline = std::chrono::steady_clock::now() + kTimeout;
        for (int64_t looks = 1; !pacpu::is_raised(flag); ++looks) {
            if (looks % 64 != 0) continue;
            std::this_thread::yield();
            if (std::chrono::steady_clock::now() > deadline) fail("no answer", round);
        }
        const auto& output = sources[static_cast<size_t>(sub_batch)]->output;
        for (size_t i = 0; i < output.size(); ++i)
            if (output[i] != round + static_cast<int64_t>(i) + layer) fail("wrong data", round);
    }

    std::vector<uint32_t> ready = std::vector<uint32_t>(kNumLayers * kNumSubBatches);
    std::vector<uint32_t> done = std::vector<uint32_t>(kNumLayers * kNumSubBatches);
    std::shared_ptr<pacpu::WorkerPool> pool;
    std::vector<std::unique_ptr<AddLayer>> sources;
    FlagSequence sequence;
};

// One stream serves the sub-batches in turn, each a layer ahead of its answer, and runs ahead of arm().
void run_rounds(int64_t num_rounds, int num_threads) {
    Rig rig(num_threads);
    const int64_t num_iterations = num_rounds / (kNumLayers * kNumSubBatches);
    std::thread gpu([&rig, num_iterations] {
        for (int64_t round = 0; round <= num_iterations * kNumLayers; ++round)
            for (int64_t sub_batch = 0; sub_batch < kNumSubBatches; ++sub_batch) {
                if (round > 0) rig.await(round - 1, sub_batch);
                if (round < num_iterations * kNumLayers) rig.raise(round, sub_batch);
            }
    });
    for (int64_t i = 0; i < num_iterations; ++i) {
        rig.sequence.arm(rig.steps(), kTimeout);
        rig.sequence.wait();
    }
    gpu.join();
}

// The time limit is the GPU's; work may take longer.
void run_slow_work() {
    Rig rig(2);
    for (auto& source : rig.sources) source->delay = std::chrono::milliseconds(400);
    rig.sequence.arm(rig.steps(), std::chrono::milliseconds(200));
    rig.raise(0, 0);
    rig.await(0, 0);
    rig.raise(0, 1);
    rig.await(0, 1);
    try {
        rig.sequence.wait();
    } catch (const pacpu::LostFlag&) {
        return;
    }
    fail("a lost flag went unnoticed", 0);
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t num_rounds = argc == 2 ? std::atoll(argv[1]) : 0;
    if (num_rounds < 1) {
        std::fprintf(stderr, "usage: stress_flags ROUNDS\n");
        return 2;
    }
    run_slow_work();
    for (int num_threads = 1; num_threads <= 3; ++num_threads) {
        const auto start = std::chrono::steady_clock::now();
        run_rounds(num_rounds / 3, num_threads);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        std::printf("stress_flags: %lld rounds, %d workers, %.1f s\n", static_cast<long long>(num_rounds / 3),
                    num_threads, seconds.count());
    }
    return 0;
}
