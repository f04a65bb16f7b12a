#include "kernel_amx.h"
#include "kernel_x86.h"

namespace pacpu {

void attend_bf16_amx(const Span& span) { attend_span_by_pairs<AmxBf16Kernel>(span); }

}  // namespace pacpu
