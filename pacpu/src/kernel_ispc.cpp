// Runs the ISPC kernels of one tile over spans.
#include "kernel_ispc.h"

#ifdef PACPU_WITH_ISPC
#include "span_walk.h"

#define PACPU_DECLARE_ATTEND(symbol)                                                                                 \
    extern "C" void symbol(int32_t group, int32_t head_dim, int32_t num_tokens, const float* query, const void* key, \
                           const void* value, const float* key_scales, const float* value_scales,                    \
                           const void* next_key, const void* next_value, float* accumulator, float* maximum,         \
                           float* sum);
#define PACPU_DECLARE_CONVERSIONS(symbol)                                                              \
    extern "C" void symbol##_to_float(const void* source, int64_t count, float factor, float* target); \
    extern "C" void symbol##_from_float(const float* source, int64_t count, float factor, void* target);
#define PACPU_DECLARE(isa)                                \
    PACPU_DECLARE_ATTEND(pacpu_ispc_##isa##_float32)      \
    PACPU_DECLARE_ATTEND(pacpu_ispc_##isa##_float16)      \
    PACPU_DECLARE_ATTEND(pacpu_ispc_##isa##_bfloat16)     \
    PACPU_DECLARE_ATTEND(pacpu_ispc_##isa##_int8)         \
    PACPU_DECLARE_CONVERSIONS(pacpu_ispc_##isa##_float32) \
    PACPU_DECLARE_CONVERSIONS(pacpu_ispc_##isa##_float16) \
    PACPU_DECLARE_CONVERSIONS(pacpu_ispc_##isa##_bfloat16)
PACPU_DECLARE(avx2)
PACPU_DECLARE(avx512)

namespace pacpu {
namespace {

using AttendTile = decltype(&pacpu_ispc_avx2_float32);

template <AttendTile kAttendTile>
class IspcKernel {
  public:
    static constexpr bool kStreams = false;

    explicit IspcKernel(const Span& span) : span_(span) {}

    void attend(const Tile& tile, int64_t kv_head) const {
        const int64_t head = kv_head * span_.group, head_dim = span_.layout.head_dim;
        kAttendTile(static_cast<int32_t>(span_.group), static_cast<int32_t>(head_dim),
                    static_cast<int32_t>(tile.num_tokens), span_.query + head * head_dim, tile.key, tile.value,
                    tile.key_scales, tile.value_scales, tile.next_key, tile.next_value,
                    span_.accumulator + head * head_dim, span_.maximum + head, span_.sum + head * kTileTokens);
    }

  private:
    const Span& span_;
};

// ISPC compiles its avx2 target for Haswell and its avx512skx target for Skylake-X.
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

}  // namespace

#define PACPU_TARGET(isa)                                                                                          \
    {                                                                                                              \
        "ispc_" #isa,                                                                                              \
        runs_##isa,                                                                                                \
        {attend_span<IspcKernel<pacpu_ispc_##isa##_float32>>, attend_span<IspcKernel<pacpu_ispc_##isa##_float16>>, \
         attend_span<IspcKernel<pacpu_ispc_##isa##_bfloat16>>, attend_span<IspcKernel<pacpu_ispc_##isa##_int8>>},  \
        {pacpu_ispc_##isa##_float32_to_float, pacpu_ispc_##isa##_float16_to_float,                                 \
         pacpu_ispc_##isa##_bfloat16_to_float},                                                                    \
        {pacpu_ispc_##isa##_float32_from_float, pacpu_ispc_##isa##_float16_from_float,                             \
         pacpu_ispc_##isa##_bfloat16_from_float},                                                                  \
    }
const Target kIspcAvx2Target = PACPU_TARGET(avx2);
const Target kIspcAvx512Target = PACPU_TARGET(avx512);

}  // namespace pacpu
#endif
