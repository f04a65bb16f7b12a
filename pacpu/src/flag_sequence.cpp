#include "flag_sequence.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "flags.h"

namespace pacpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLooksPerClockRead = 64;

std::string describe(const FlagStep& step) {
    return "ready[" + std::to_string(step.slot) + "] (layer " + std::to_string(step.layer) + ", sub-batch " +
           std::to_string(step.sub_batch) + ")";
}

}  // namespace

FlagSequence::FlagSequence(std::shared_ptr<WorkerPool> pool, uint32_t* ready, uint32_t* done, int64_t num_slots)
    : pool_(std::move(pool)), ready_(ready), done_(done), num_slots_(num_slots) {
    lower_all();
}

FlagSequence::~FlagSequence() {
    if (!armed_) return;
    cancel();
    try {
        wait();
    } catch (...) {  // nobody is left to tell
    }
}

void FlagSequence::arm(std::vector<FlagStep> steps, std::chrono::nanoseconds timeout) {
    if (armed_) throw std::runtime_error("arm() while a sequence is armed: wait() first");
    check_steps(steps);
    if (ended_early_) lower_all();
    steps_ = std::move(steps);
    next_step_ = 0;
    timeout_ = timeout;
    deadline_ = Clock::now() + timeout;
    busy_ns_ = 0;
    cancelled_.store(false);
    pool_->set_poller(this);
    armed_ = true;
}

void FlagSequence::lower_all() {
    for (int64_t slot = 0; slot < num_slots_; ++slot) {
        lower_flag(ready_ + slot);
        lower_flag(done_ + slot);
    }
    last_slots_.clear();
    ended_early_ = false;
}

void FlagSequence::check_steps(const std::vector<FlagStep>& steps) const {
    if (steps.empty()) throw std::invalid_argument("steps: expected one or more, got none");
    auto raised = ended_early_ ? std::map<int64_t, int64_t>{} : last_slots_;
    for (const FlagStep& step : steps) {
        if (step.slot < 0 || step.slot >= num_slots_)
            throw std::invalid_argument("slot: expected 0.." + std::to_string(num_slots_ - 1) + ", got " +
                                        std::to_string(step.slot));
        for (const auto& [sub_batch, slot] : raised)
            if (slot == step.slot)
                throw std::invalid_argument("slot " + std::to_string(slot) + ": expected one for each layer and " +
                                            "sub-batch, got it twice in a row: done[" + std::to_string(slot) +
                                            "] is lowered only by the next step of sub-batch " +
                                            std::to_string(sub_batch));
        raised[step.sub_batch] = step.slot;
    }
}

void FlagSequence::wait() {
    if (!armed_) throw std::runtime_error("wait() without arm()");
    pool_->wait(this);
    armed_ = false;
    for (const auto& [source, started_ns] : started_) {
        try {
            finish(source, started_ns);
        } catch (...) {
            if (!error_) error_ = std::current_exception();
        }
    }
    started_.clear();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

bool FlagSequence::poll() noexcept {
    if (cancelled_.load(std::memory_order_relaxed)) return end_early();
    try {
        const FlagStep& step = steps_[next_step_];
        if (!is_raised(ready_ + step.slot)) {
            if (++looks_ % kLooksPerClockRead == 0) check_deadline(step);
            return true;
        }
        start_step(step);
    } catch (...) {
        error_ = std::current_exception();
        return end_early();
    }
    return ++next_step_ < steps_.size();
}

void FlagSequence::start_step(const FlagStep& step) {
    lower_flag(ready_ + step.slot);
    const auto [last, is_first] = last_slots_.try_emplace(step.sub_batch, step.slot);
    if (!is_first) lower_flag(done_ + std::exchange(last->second, step.slot));
    const auto now = Clock::now();
    const auto pending = started_.find(step.source);
    if (pending != started_.end()) {
        const int64_t started_ns = pending->second;
        started_.erase(pending);
        finish(step.source, started_ns);  // no wait to speak of: its done flag has been seen
    }
    step.source->start(step.layer, done_ + step.slot);
    started_[step.source] = std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count();
    deadline_ = now + timeout_;
}

void FlagSequence::finish(LayerSource* source, int64_t started_ns) {
    source->wait();
    busy_ns_ += std::max<int64_t>(0, source->finished_ns() - started_ns);
}

void FlagSequence::check_deadline(const FlagStep& step) {
    if (pool_->closing()) throw std::runtime_error("the worker pool was closed under an armed flag sequence");
    const auto now = Clock::now();
    if (work_is_under_way()) deadline_ = now + timeout_;  // which the GPU may be waiting for
    // The flag once more, for this thread may have been off its core when the GPU was not.
    if (now < deadline_ || is_raised(ready_ + step.slot)) return;
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%g", std::chrono::duration<double>(timeout_).count());
    throw LostFlag("lost flag: " + describe(step) + " was not raised within " + seconds + " s; " +
                   std::to_string(next_step_) + " of " + std::to_string(steps_.size()) + " steps were started");
}

bool FlagSequence::work_is_under_way() const {
    return std::any_of(last_slots_.begin(), last_slots_.end(),
                       [&](const auto& last) { return !is_raised(done_ + last.second); });
}

bool FlagSequence::end_early() noexcept {
    for (; next_step_ < steps_.size(); ++next_step_) raise_flag(done_ + steps_[next_step_].slot);
    ended_early_ = true;
    return false;
}

}  // namespace pacpu
