#pragma once

#include "kernel.h"

#ifdef PACPU_WITH_ISPC
namespace pacpu {

extern const Target kIspcAvx2Target;
extern const Target kIspcAvx512Target;

}  // namespace pacpu
#endif
