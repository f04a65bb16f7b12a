// The parts of the Python module, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace pacpu {

void bind_flag_sequence(pybind11::module_& module);

}  // namespace pacpu
