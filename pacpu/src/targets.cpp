// The table of compiled kernels, and which of them this CPU can run.
#include <stdexcept>

#include "kernel.h"
#include "kernel_cpp.h"

#ifdef PACPU_WITH_ISPC
#define PACPU_DECLARE(symbol)                                                                                       \
    extern "C" void symbol(int32_t, int32_t, int32_t, const float*, const void* const*, const void* const*, float*, \
                           float*, float*);
PACPU_DECLARE(pacpu_ispc_avx2_float32)
PACPU_DECLARE(pacpu_ispc_avx2_float16)
PACPU_DECLARE(pacpu_ispc_avx2_bfloat16)
PACPU_DECLARE(pacpu_ispc_avx512_float32)
PACPU_DECLARE(pacpu_ispc_avx512_float16)
PACPU_DECLARE(pacpu_ispc_avx512_bfloat16)
#undef PACPU_DECLARE
#endif

namespace pacpu {
namespace {

#ifdef PACPU_WITH_ISPC
// ISPC compiles its avx2 target for Haswell and its avx512skx target for Skylake-X.
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

const Target kAvx512Target = {
    "ispc_avx512", runs_avx512, {pacpu_ispc_avx512_float32, pacpu_ispc_avx512_float16, pacpu_ispc_avx512_bfloat16}};
const Target kAvx2Target = {
    "ispc_avx2", runs_avx2, {pacpu_ispc_avx2_float32, pacpu_ispc_avx2_float16, pacpu_ispc_avx2_bfloat16}};
#endif

// Best first.
std::vector<const Target*> compiled_targets() {
    return {
#ifdef PACPU_WITH_ISPC
        &kAvx512Target,
        &kAvx2Target,
#endif
        &kPortableTarget,
    };
}

}  // namespace

std::vector<const Target*> runnable_targets() {
    std::vector<const Target*> runnable;
    for (const Target* target : compiled_targets())
        if (target->runnable()) runnable.push_back(target);
    return runnable;
}

std::vector<std::string> compiled_target_names() {
    std::vector<std::string> names;
    for (const Target* target : compiled_targets()) names.emplace_back(target->name);
    return names;
}

const Target& find_target(const std::string& name) {
    const std::vector<const Target*> runnable = runnable_targets();
    if (name == "auto") return *runnable.front();
    std::string expected = "auto";
    for (const Target* target : runnable) {
        if (name == target->name) return *target;
        expected += std::string(", ") + target->name;
    }
    throw std::invalid_argument("target: expected one of " + expected + ", got " + name);
}

}  // namespace pacpu
