// Persistent worker threads that take the items of queued jobs from an atomic counter. Knows nothing of attention.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace pacpu {

// Work that is yet to come: asked for by idle workers, one at a time.
class Poller {
  public:
    // Looks once and may submit jobs, one a call. False ends it: the pool then touches it no more. Must not throw.
    virtual bool poll() noexcept = 0;

  protected:
    ~Poller() = default;
};

// Jobs are served first in, first out: a worker goes on to the next job when none of a job's items is left to take,
// so two jobs may run at the same time, but an item of a later job never starts before all of an earlier one have.
class WorkerPool {
  public:
    // Called once per item with the item's number and the worker's; must not throw.
    using Work = void (*)(void* context, int64_t item, int worker) noexcept;

    // cpus: empty, or one CPU number per thread. Throws std::system_error when a thread cannot be pinned.
    WorkerPool(int num_threads, const std::vector<int>& cpus);
    ~WorkerPool();
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;

    int num_threads() const { return num_threads_; }
    // Queues a job of 1 or more items and returns its ticket, after the job kMaxJobs before it is done. Throws
    // std::runtime_error when the pool is closed. The last item to be done raises the done flag, if there is one.
    uint64_t submit(Work work, void* context, int64_t num_items, uint32_t* done_flag = nullptr);
    // Returns when every item of the job is done, and when that was: nanoseconds of the steady clock. May be called
    // from any thread, more than once, while fewer than kMaxJobs jobs have been submitted since.
    int64_t wait(uint64_t ticket);
    // Until the poller ends no worker sleeps: idle ones poll or spin, for a wake-up costs tens of microseconds. Throws
    // std::runtime_error when the pool is closed or has a poller. With a single thread no others may meanwhile have
    // kMaxJobs jobs queued, since a submitting poller would wait for jobs that only its own thread can do.
    void set_poller(Poller* poller);
    // Returns when the poller has ended.
    void wait(const Poller* poller);
    // Finishes what was submitted and joins the threads; later submissions are refused. A poller has to end by itself
    // when it sees the pool closing.
    void close();
    bool closing() const { return closing_.load(); }

    static constexpr int kMaxJobs = 64;

  private:
    // A late worker may look at a slot whose job is long over, so slots live as long as the pool, and items are taken
    // only while the ticket in the upper half of `remaining` is still the worker's.
    struct alignas(64) Job {
        std::atomic<uint64_t> remaining{0};  // (ticket mod 2^32) << 32 | items not yet taken
        alignas(64) std::atomic<int64_t> unfinished{0};
        std::atomic<uint64_t> finished_ticket{0};
        int64_t finished_ns = 0;  // published by finished_ticket
        Work work = nullptr;
        void* context = nullptr;
        int64_t num_items = 0;
        uint32_t* done_flag = nullptr;
    };

    Job& job(uint64_t ticket) { return jobs_[ticket % kMaxJobs]; }
    void pin(int worker, int cpu);
    void work_loop(int worker);
    bool await_job(uint64_t ticket);
    void poll_until_job(uint64_t ticket);
    void wake_workers();
    void wake_waiters();
    template <typename Finished>
    void wait_until(Finished finished);
    void run_items(uint64_t ticket, int worker);

    const int num_threads_;
    std::array<Job, kMaxJobs> jobs_;
    std::atomic<uint64_t> last_ticket_{0};  // tickets start at 1
    std::atomic<bool> closing_{false};
    std::atomic<Poller*> poller_{nullptr};
    alignas(64) std::atomic<bool> polling_{false};  // a worker has taken the poller to itself
    std::mutex submit_mutex_;
    std::mutex close_mutex_;
    std::mutex sleep_mutex_;
    std::condition_variable work_arrived_;
    std::condition_variable job_finished_;
    std::atomic<int> sleeping_workers_{0};
    std::atomic<int> sleeping_waiters_{0};
    std::vector<std::thread> threads_;
};

}  // namespace pacpu
