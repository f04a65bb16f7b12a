#include "kernel_bf16_dot.h"
#include "kernel_int8_vnni.h"
#include "kernel_x86.h"

namespace pacpu {

void attend_bf16_dot(const Span& span) { attend_span<Bf16DotKernel>(span); }
void attend_int8_vnni(const Span& span) { attend_span<Int8VnniKernel>(span); }

}  // namespace pacpu
