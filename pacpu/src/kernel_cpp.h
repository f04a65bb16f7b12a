#pragma once

#include "kernel.h"

namespace pacpu {

extern const Target kPortableTarget;

}  // namespace pacpu
