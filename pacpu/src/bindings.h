// The parts of the Python module, a file each.
#pragma once

#include <pybind11/pybind11.h>

namespace pacpu {

void bind_flag_sequence(pybind11::module_& module);
void bind_kv_memory(pybind11::module_& module);
void bind_read_bandwidth(pybind11::module_& module);

}  // namespace pacpu
