#include "kernel_amx.h"
#include "kernel_x86.h"

namespace pacpu {

void attend_bf16_amx(const Span& span) {
    // With one head, a matrix tile is a vector.
    if (span.group > 1 && span.group <= AmxBf16Kernel::kMaxGroup)
        attend_span<AmxBf16Kernel>(span);
    else
        attend_bf16_dot(span);
}

}  // namespace pacpu
