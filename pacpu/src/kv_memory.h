// The memory of a KV cache: one slab of zeros, aligned to 2 MiB, on 2 MiB pages where the system grants them.
#pragma once

#include <cstddef>

namespace pacpu {

class WorkerPool;

class KvMemory {
  public:
    // Maps num_bytes >= 1 without touching them. Throws std::bad_alloc when the system refuses.
    explicit KvMemory(size_t num_bytes);
    ~KvMemory();
    KvMemory(const KvMemory&) = delete;
    KvMemory& operator=(const KvMemory&) = delete;

    char* data() const { return data_; }
    size_t num_bytes() const { return num_bytes_; }
    // Writes zeros to the bytes [begin, end), begin < end, one 2 MiB page after another: by the pool's threads, or by
    // the caller when there is no pool. Throws std::runtime_error when the pool is closed.
    void touch(WorkerPool* pool, size_t begin, size_t end);

  private:
    const size_t num_bytes_;
    char* data_;
    char* mapping_;  // with the guards around the data
};

}  // namespace pacpu
