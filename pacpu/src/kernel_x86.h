// Kernels written with intrinsics for instructions that ISPC does not reach.
#pragma once

#include "kernel.h"

namespace pacpu {

#ifdef PACPU_WITH_AVX512_BF16
bool runs_avx512_bf16();
void attend_bf16_dot(const Span& span);
void attend_int8_vnni(const Span& span);
#endif
#ifdef PACPU_WITH_AMX_BF16
constexpr int64_t kMaxAmxGroup = 16;  // query heads to a KV head: rows of a matrix tile
// Asks the kernel for the matrix tiles when first called.
bool runs_amx_bf16();
void attend_bf16_amx(const Span& span);  // up to kMaxAmxGroup
#endif

}  // namespace pacpu
