#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "bindings.h"
#include "read_bandwidth.h"

namespace py = pybind11;

namespace pacpu {
namespace {

std::pair<int64_t, uint64_t> read_stream_at(const std::shared_ptr<WorkerPool>& pool, uintptr_t data, int64_t num_chunks,
                                            int64_t first_chunk, int64_t chunks_to_read) {
    const ReadSample sample =
        read_stream(*pool, reinterpret_cast<const void*>(data), num_chunks, first_chunk, chunks_to_read);
    return {sample.elapsed_ns, sample.checksum};
}

}  // namespace

void bind_read_bandwidth(py::module_& module) {
    module.attr("READ_CHUNK_BYTES") = kReadChunkBytes;
    module.def("read_stream", &read_stream_at, py::arg("pool"), py::kw_only(), py::arg("data"), py::arg("num_chunks"),
               py::arg("first_chunk"), py::arg("chunks_to_read"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace pacpu
