#include <memory>

#include "bindings.h"
#include "kv_memory.h"
#include "worker_pool.h"

namespace py = pybind11;

namespace pacpu {

void bind_kv_memory(py::module_& module) {
    py::class_<KvMemory>(module, "Memory", py::buffer_protocol())
        .def(py::init<size_t>(), py::arg("num_bytes"))
        .def(
            "touch",
            [](KvMemory& self, const std::shared_ptr<WorkerPool>& pool, size_t begin, size_t end) {
                py::gil_scoped_release release;
                self.touch(pool.get(), begin, end);
            },
            py::arg("pool").none(true), py::arg("begin"), py::arg("end"))
        .def_buffer([](KvMemory& self) {
            return py::buffer_info(reinterpret_cast<unsigned char*>(self.data()),
                                   static_cast<py::ssize_t>(self.num_bytes()));
        });
}

}  // namespace pacpu
