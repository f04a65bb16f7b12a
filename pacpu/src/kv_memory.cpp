#include "kv_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "worker_pool.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace pacpu {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

// Whole huge pages, so that the last bytes get one too.
size_t round_up(size_t num_bytes) { return (num_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes; }

struct Zeroing {
    char* begin;
    size_t num_bytes;
};

void zero_page(void* context, int64_t item, int) noexcept {
    const Zeroing& zeroing = *static_cast<const Zeroing*>(context);
    const size_t start = static_cast<size_t>(item) * kHugePageBytes;
    std::memset(zeroing.begin + start, 0, std::min(kHugePageBytes, zeroing.num_bytes - start));
}

}  // namespace

#ifdef __linux__

namespace {

// Room to align the data and leave inaccessible pages on both sides: the kernel then never joins the data with a
// neighbour into one mapping, so /proc/self/smaps counts the data's huge pages alone, and an overrun is a fault.
size_t mapping_bytes(size_t num_bytes) { return round_up(num_bytes) + 2 * kHugePageBytes; }

}  // namespace

KvMemory::KvMemory(size_t num_bytes) : num_bytes_(num_bytes) {
    void* mapping = mmap(nullptr, mapping_bytes(num_bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mapping_ = static_cast<char*>(mapping);
    data_ = mapping_ + (kHugePageBytes - reinterpret_cast<uintptr_t>(mapping_) % kHugePageBytes);
    if (mprotect(data_, round_up(num_bytes), PROT_READ | PROT_WRITE) != 0) {
        munmap(mapping_, mapping_bytes(num_bytes));
        throw std::bad_alloc();
    }
    madvise(data_, round_up(num_bytes), MADV_HUGEPAGE);  // refused by a kernel without huge pages, which will do too
}

KvMemory::~KvMemory() { munmap(mapping_, mapping_bytes(num_bytes_)); }

#else

KvMemory::KvMemory(size_t num_bytes)
    : num_bytes_(num_bytes),
      data_(static_cast<char*>(::operator new(round_up(num_bytes), std::align_val_t{kHugePageBytes}))),
      mapping_(data_) {}

KvMemory::~KvMemory() { ::operator delete(mapping_, std::align_val_t{kHugePageBytes}); }

#endif

void KvMemory::touch(WorkerPool* pool, size_t begin, size_t end) {
    Zeroing zeroing{data_ + begin, end - begin};
    const auto num_items = static_cast<int64_t>(round_up(zeroing.num_bytes) / kHugePageBytes);
    if (pool != nullptr) {
        pool->wait(pool->submit(&zero_page, &zeroing, num_items));
    } else {
        for (int64_t item = 0; item < num_items; ++item) zero_page(&zeroing, item, 0);
    }
}

}  // namespace pacpu
