// Flags in memory between the pool's workers and a GPU, or whoever stands in for it: 32-bit words, 0 or 1.
//
// Acquire and release are all that this needs, on both sides of each flag:
// - ready: a GPU's writes cross PCIe as posted writes, which stay in order, and a stream-ordered 32-bit write comes
//   after the copies queued before it. Seen from x86 the data is in memory before the flag; x86 does not reorder
//   loads, and the acquire keeps the compiler from doing so.
// - done: outputs are ordinary stores and x86 makes stores visible in order, so the flag comes after them, also to a
//   device that reads memory. A non-temporal store would need a fence of its own (sfence) before it; none is used.
// - lowering needs no order of its own: it comes before the work is published, hence before that work's done flag, and
//   the GPU touches a lowered flag again only after it has seen a later done flag.
#pragma once

#include <cstdint>

namespace pacpu {

// Builtins and not std::atomic_ref, which is C++20: the words are the caller's.
inline bool is_raised(const uint32_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE) != 0; }
inline void raise_flag(uint32_t* flag) { __atomic_store_n(flag, 1u, __ATOMIC_RELEASE); }
inline void lower_flag(uint32_t* flag) { __atomic_store_n(flag, 0u, __ATOMIC_RELAXED); }

}  // namespace pacpu
