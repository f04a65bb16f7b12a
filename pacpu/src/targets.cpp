// The table of compiled targets, and which of them this CPU can run.
#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "kernel.h"
#include "kernel_cpp.h"
#include "kernel_ispc.h"
#include "kernel_read.h"
#include "kernel_x86.h"

#ifdef PACPU_WITH_AVX512_BF16
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pacpu {

#ifdef PACPU_WITH_AVX512_BF16
bool runs_avx512_bf16() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

#ifdef PACPU_WITH_AMX_BF16
bool runs_amx_bf16() {
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl; for the whole process
    static const bool granted = [] {
        unsigned eax, ebx, ecx, edx;
        if (!runs_avx512_bf16() || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
        if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
        return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }();
    return granted;
}
#endif

namespace {

// Where a family of instructions has nothing to offer, its target is the best of the others.
#ifdef PACPU_WITH_ISPC
const Target& kAvx512Base = kIspcAvx512Target;
#else
const Target& kAvx512Base = kPortableTarget;
#endif

[[maybe_unused]] Target with_kernels(const char* name, bool (*runnable)(), SpanKernel bfloat16, SpanKernel int8) {
    Target target = kAvx512Base;
    target.name = name;
    target.runnable = runnable;
    target.attend[static_cast<int>(Element::kBFloat16)] = bfloat16;
    target.attend[static_cast<int>(Element::kInt8)] = int8;
    return target;
}

#ifdef PACPU_WITH_AMX_BF16
// Where there is AMX, a bf16 dot product takes as long as the two multiplications it replaces, and a matrix tile with
// one or two rows leaves most of the unit idle.
void attend_bf16_by_group(const Span& span) {
    constexpr int64_t kMinAmxGroup = 3;
    if (span.group >= kMinAmxGroup && span.group <= kMaxAmxGroup) return attend_bf16_amx(span);
#ifdef PACPU_WITH_ISPC
    kIspcAvx512Target.attend[static_cast<int>(Element::kBFloat16)](span);
#else
    attend_bf16_dot(span);
#endif
}
#endif

// Best first.
const std::vector<const Target*>& compiled_targets() {
#ifdef PACPU_WITH_AMX_BF16
    static const Target amx_bf16 = with_kernels("amx_bf16", runs_amx_bf16, attend_bf16_by_group, attend_int8_vnni);
#endif
#ifdef PACPU_WITH_AVX512_BF16
    static const Target avx512_bf16 = with_kernels("avx512_bf16", runs_avx512_bf16, attend_bf16_dot, attend_int8_vnni);
#endif
    static const std::vector<const Target*> targets = {
#ifdef PACPU_WITH_AMX_BF16
        &amx_bf16,
#endif
#ifdef PACPU_WITH_AVX512_BF16
        &avx512_bf16,
#endif
#ifdef PACPU_WITH_ISPC
        &kIspcAvx512Target, &kIspcAvx2Target,
#endif
        &kPortableTarget,
    };
    return targets;
}

}  // namespace

std::vector<const Target*> runnable_targets() {
    std::vector<const Target*> runnable;
    for (const Target* target : compiled_targets())
        if (target->runnable()) runnable.push_back(target);
    return runnable;
}

// All but attention as the best target does it.
static const Target& read_runs_target() {
    static const Target target = [] {
        Target reading = *runnable_targets().front();
        reading.name = kReadRuns;
        std::fill(std::begin(reading.attend), std::end(reading.attend), best_read_kernel());
        return reading;
    }();
    return target;
}

std::vector<std::string> compiled_target_names() {
    std::vector<std::string> names;
    for (const Target* target : compiled_targets()) names.emplace_back(target->name);
    return names;
}

const Target& find_target(const std::string& name) {
    const std::vector<const Target*> runnable = runnable_targets();
    if (name == "auto") return *runnable.front();
    if (name == kReadRuns) return read_runs_target();
    std::string expected = "auto";
    for (const Target* target : runnable) {
        if (name == target->name) return *target;
        expected += std::string(", ") + target->name;
    }
    throw std::invalid_argument("target: expected one of " + expected + ", got " + name);
}

}  // namespace pacpu
