#include "kernel_bf16_dot.h"
#include "kernel_int8_vnni.h"
#include "kernel_x86.h"

namespace pacpu {

void attend_bf16_dot(const Span& span) {
    if (span.layout.head_dim == 128) return attend_span<Bf16DotKernel<128>>(span);
    if (span.layout.head_dim == 64) return attend_span<Bf16DotKernel<64>>(span);
    attend_span<Bf16DotKernel<0>>(span);
}
void attend_int8_vnni(const Span& span) {
    if (span.layout.head_dim == 128) return attend_span<Int8VnniKernel<128>>(span);
    if (span.layout.head_dim == 64) return attend_span<Int8VnniKernel<64>>(span);
    attend_span<Int8VnniKernel<0>>(span);
}

}  // namespace pacpu
