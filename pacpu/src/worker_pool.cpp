#include "worker_pool.h"

#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>

#include "flags.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pacpu {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the gap between two layers of a small model, shorter than a scheduler's time slice. A wake-up costs
// tens of microseconds, spinning costs the core to whoever else could use it.
constexpr auto kWorkerSpin = std::chrono::microseconds(50);
// The waiter often holds the core that a worker needs.
constexpr auto kWaiterSpin = std::chrono::microseconds(20);
constexpr int kPausesPerClockRead = 32;

void pause_core() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// True when `ready` became true within the time.
template <typename Ready>
bool spin_until(Ready ready, Clock::duration limit) {
    if (ready()) return true;
    const auto deadline = Clock::now() + limit;
    do {
        for (int i = 0; i < kPausesPerClockRead; ++i) {
            pause_core();
            if (ready()) return true;
        }
    } while (Clock::now() < deadline);
    return false;
}

uint64_t pack(uint64_t ticket, int64_t items) { return ticket << 32 | static_cast<uint64_t>(items); }

}  // namespace

WorkerPool::WorkerPool(int num_threads, const std::vector<int>& cpus) : num_threads_(num_threads) {
    threads_.reserve(static_cast<size_t>(num_threads));
    try {
        for (int worker = 0; worker < num_threads; ++worker) {
            threads_.emplace_back([this, worker] { work_loop(worker); });
            if (!cpus.empty()) pin(worker, cpus[static_cast<size_t>(worker)]);
        }
    } catch (...) {
        close();
        throw;
    }
}

WorkerPool::~WorkerPool() { close(); }

void WorkerPool::pin(int worker, int cpu) {
#ifdef __linux__
    int error = EINVAL;
    if (cpu >= 0 && cpu < CPU_SETSIZE) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        error = pthread_setaffinity_np(threads_[static_cast<size_t>(worker)].native_handle(), sizeof set, &set);
    }
    if (error != 0)
        throw std::system_error(error, std::generic_category(), "cpus: cannot pin to CPU " + std::to_string(cpu));
#else
    (void)worker;
    (void)cpu;
    throw std::system_error(std::make_error_code(std::errc::not_supported), "cpus: pinning needs Linux");
#endif
}

uint64_t WorkerPool::submit(Work work, void* context, int64_t num_items, uint32_t* done_flag) {
    if (num_items > INT32_MAX) throw std::runtime_error("too many work items: " + std::to_string(num_items));
    std::lock_guard lock(submit_mutex_);
    if (closing_.load()) throw std::runtime_error("the worker pool is closed");
    const uint64_t ticket = last_ticket_.load(std::memory_order_relaxed) + 1;
    Job& next = job(ticket);
    if (ticket > kMaxJobs) wait(ticket - kMaxJobs);
    next.work = work;
    next.context = context;
    next.num_items = num_items;
    next.done_flag = done_flag;
    next.unfinished.store(num_items, std::memory_order_relaxed);
    next.remaining.store(pack(ticket, num_items), std::memory_order_release);
    last_ticket_.store(ticket);  // sequentially consistent with sleeping_workers_: one of the two sides sees the other
    wake_workers();
    return ticket;
}

void WorkerPool::set_poller(Poller* poller) {
    std::lock_guard lock(submit_mutex_);
    if (closing_.load()) throw std::runtime_error("the worker pool is closed");
    Poller* none = nullptr;
    if (!poller_.compare_exchange_strong(none, poller)) throw std::runtime_error("the worker pool is polling already");
    wake_workers();
}

// After a sequentially consistent store of what they wait for.
void WorkerPool::wake_workers() {
    if (sleeping_workers_.load() == 0) return;
    {
        std::lock_guard lock(sleep_mutex_);
    }
    work_arrived_.notify_all();
}

void WorkerPool::wake_waiters() {
    if (sleeping_waiters_.load() == 0) return;
    {
        std::lock_guard lock(sleep_mutex_);
    }
    job_finished_.notify_all();
}

template <typename Finished>
void WorkerPool::wait_until(Finished finished) {
    if (spin_until(finished, kWaiterSpin)) return;
    std::unique_lock lock(sleep_mutex_);
    ++sleeping_waiters_;
    job_finished_.wait(lock, finished);
    --sleeping_waiters_;
}

int64_t WorkerPool::wait(uint64_t ticket) {
    Job& awaited = job(ticket);
    wait_until([&] { return awaited.finished_ticket.load() >= ticket; });
    return awaited.finished_ns;
}

void WorkerPool::wait(const Poller* poller) {
    wait_until([&] { return poller_.load() != poller; });
}

void WorkerPool::close() {
    std::lock_guard close_lock(close_mutex_);
    {
        std::lock_guard submit_lock(submit_mutex_);
        std::lock_guard sleep_lock(sleep_mutex_);
        closing_.store(true);
    }
    work_arrived_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

void WorkerPool::work_loop(int worker) {
    for (uint64_t ticket = 1; await_job(ticket); ++ticket) run_items(ticket, worker);
}

// False when the pool closes and no such job was submitted.
bool WorkerPool::await_job(uint64_t ticket) {
    const auto arrived = [&] { return last_ticket_.load() >= ticket; };
    const auto stirred = [&] { return arrived() || poller_.load() != nullptr || closing_.load(); };
    while (!arrived()) {
        if (!spin_until(stirred, kWorkerSpin)) {
            std::unique_lock lock(sleep_mutex_);
            ++sleeping_workers_;
            work_arrived_.wait(lock, stirred);
            --sleeping_workers_;
        }
        poll_until_job(ticket);
        if (closing_.load()) return arrived();
    }
    return true;
}

// Also returns when there is no poller, or it ends.
void WorkerPool::poll_until_job(uint64_t ticket) {
    const auto idle = [&] { return last_ticket_.load() < ticket && poller_.load() != nullptr; };
    const auto polite_from = Clock::now() + kWorkerSpin;
    bool polling = false;
    for (int64_t looks = 1; idle(); ++looks) {
        if (!polling) polling = !polling_.load(std::memory_order_relaxed) && !polling_.exchange(true);
        if (polling) {
            Poller* const poller = poller_.load();  // again, for another worker may have ended it
            if (poller != nullptr && !poller->poll()) {
                poller_.store(nullptr);
                wake_waiters();
            }
        }
        pause_core();
        // The thread that raises the flags may need this core.
        if (looks % kPausesPerClockRead == 0 && Clock::now() > polite_from) std::this_thread::yield();
    }
    if (polling) polling_.store(false);
}

void WorkerPool::run_items(uint64_t ticket, int worker) {
    Job& current = job(ticket);
    uint64_t state = current.remaining.load(std::memory_order_acquire);
    const auto takes_item = [&] {
        while (state >> 32 == (ticket & UINT32_MAX) && (state & UINT32_MAX) != 0)
            if (current.remaining.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel)) return true;
        return false;
    };
    while (takes_item()) {
        const int64_t left = static_cast<int64_t>(state & UINT32_MAX);
        current.work(current.context, current.num_items - left, worker);
        if (current.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            current.finished_ns =
                std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
            if (current.done_flag != nullptr) raise_flag(current.done_flag);
            // From here on the waiter may free the job's context.
            current.finished_ticket.store(ticket);
            wake_waiters();
        }
    }
}

}  // namespace pacpu
