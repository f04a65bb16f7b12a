// Writes K and V of one token into its place in a piece (layout.h).
#pragma once

#include "kernel.h"

namespace pacpu {

// key and value hold head_dim elements of `source`; `token` counts from the block's start. In int8, a token's scale is
// its largest magnitude / 127, and NaN where an element is not finite, so that the result shows it.
void store_token(const KvLayout& layout, const Target& target, Element source, const char* key, const char* value,
                 char* piece, int64_t token);

}  // namespace pacpu
